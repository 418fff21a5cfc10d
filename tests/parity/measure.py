"""How the decoder is run for a comparison: whole sequences, and the way an engine serves them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from parity.cases import Case
from parity.references import Reference, write
from tandem.kv.cache import CacheLayout, KVCache
from tandem.kv.paged import Chunk, PagedContext
from tandem.model.context import CausalContext
from tandem.model.decoder import Decoder
from tandem.model.folder import load

CPU = torch.device("cpu")
SEQUENCES = ((110, 100), (80, 64), (70, 20), (9, 1))
"""Tokens of each sequence and of its prompt; most go beyond what the small configurations were made for."""
BLOCK = 4
"""Tokens in a block of the cache."""


@dataclass(frozen=True)
class Distance:
    """How far the decoder is from a reference."""

    whole: float
    """Most that a logit differs in a prompt computed at once."""
    served: float
    """The same with several sequences side by side, prompts in chunks, then token by token."""
    spread: float
    """Standard deviation of the reference's logits."""


def measure(case: Case, folder: Path) -> Distance:
    """Compare the decoder that loads a reference's folder with that reference."""
    reference = write(case, folder)
    return distance(load(folder, CPU), reference)


def distance(decoder: Decoder, reference: Reference) -> Distance:
    """Compare a decoder with a reference that has the same weights."""
    prompts = [length for length, _ in SEQUENCES]
    sequences = [tokens_of(length, decoder.config.vocab_size) for length in prompts]
    expected = [reference(tokens, len(tokens)) for tokens in sequences]
    at_once = [whole(decoder, tokens) for tokens in sequences]
    answered = [reference(tokens, prompt) for tokens, (_, prompt) in zip(sequences, SEQUENCES, strict=True)]
    in_steps = served(decoder, sequences, [prompt for _, prompt in SEQUENCES])
    return Distance(
        whole=_most(at_once, expected), served=_most(in_steps, answered), spread=float(torch.cat(expected).std())
    )


def tokens_of(length: int, vocabulary: int) -> list[int]:
    """Random tokens, other ones for each length."""
    return random.Random(length).choices(range(vocabulary), k=length)


def whole(decoder: Decoder, tokens: list[int]) -> Tensor:
    """Logits of one sequence, computed at once, [T, V]."""
    with torch.inference_mode():
        return decoder(torch.tensor([tokens]), CausalContext(1, len(tokens), CPU))[0]  # type: ignore[no-any-return]


def served(decoder: Decoder, sequences: list[list[int]], prompts: list[int], dtype: str = "float32") -> list[Tensor]:
    """Logits of several sequences, [T, V] each, that advance side by side in steps of unequal chunks."""
    cache, tables = _memory(decoder, sequences, dtype)
    schedule, done = random.Random(0), [0] * len(sequences)
    out: list[list[Tensor]] = [[] for _ in sequences]
    while waiting := [number for number, tokens in enumerate(sequences) if done[number] < len(tokens)]:
        batch = schedule.sample(waiting, schedule.randint(1, len(waiting)))
        counts = {n: _count(schedule, done[n], prompts[n]) for n in batch}
        chunks = [Chunk(tables[n], done[n], counts[n], prompts[n]) for n in batch]
        tokens = [token for n in batch for token in sequences[n][done[n] : done[n] + counts[n]]]
        with torch.inference_mode():
            logits = decoder(torch.tensor(tokens), PagedContext(cache, chunks))
        for n, part in zip(batch, logits.split(list(counts.values())), strict=True):
            out[n].append(part)
            done[n] += counts[n]
    return [torch.cat(parts) for parts in out]


def _count(schedule: random.Random, done: int, prompt: int) -> int:
    """A piece of the prompt while there is some, then one token."""
    return min(schedule.randint(1, 60), prompt - done) if done < prompt else 1


def _memory(decoder: Decoder, sequences: list[list[int]], dtype: str) -> tuple[KVCache, list[list[int]]]:
    """A cache that is full of garbage, and for each sequence blocks from anywhere in it."""
    needed = [-(-len(tokens) // BLOCK) for tokens in sequences]
    cache = KVCache(CacheLayout.of(decoder.config, dtype, BLOCK), sum(needed), CPU)
    cache.blocks.fill_(1e4)
    free = random.Random(1).sample(range(sum(needed)), sum(needed))
    return cache, [[free.pop() for _ in range(count)] for count in needed]


def _most(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))
