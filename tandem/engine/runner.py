"""One step's arithmetic: the plan's tokens through the decoder over the paged cache, and a token for each that ends."""

from __future__ import annotations

from itertools import accumulate

import torch

from tandem.engine.sampler import sample
from tandem.engine.scheduler import Plan, Work
from tandem.kv.cache import KVCache
from tandem.kv.paged import Chunk, PagedContext
from tandem.model.decoder import Decoder


class Runner:
    """Runs plans.

    Args:
        decoder: The model, in evaluation mode.
        cache: On the same device.
    """

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder = decoder
        self._cache = cache

    @property
    def vocab_size(self) -> int:
        """Number of token ids the model knows."""
        return self._decoder.config.vocab_size

    @torch.inference_mode()
    def run(self, plan: Plan) -> list[int]:
        """Compute the plan; the sampled tokens of its works that sample, in order."""
        works = plan.works
        fed = [token for work in works for token in work.sequence.token_ids[work.start : work.start + work.count]]
        chunks = [_chunk(work) for work in works]
        tokens = torch.tensor(fed, device=self._cache.device)
        hidden = self._decoder.hidden(tokens, PagedContext(self._cache, chunks))
        ends = accumulate(work.count for work in works)
        last = [end - 1 for end, work in zip(ends, works, strict=True) if work.samples]
        sequences = [work.sequence for work in works if work.samples]
        if not sequences:
            return []
        logits = self._decoder.logits(hidden[torch.tensor(last, device=hidden.device)])
        return sample(logits, [s.sampling for s in sequences], [s.output_count for s in sequences])


def _chunk(work: Work) -> Chunk:
    prompt = len(work.sequence.request.prompt)
    return Chunk(blocks=work.blocks, start=work.start, count=work.count, prompt=prompt)
