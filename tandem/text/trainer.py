"""Trains a byte-level BPE tokenizer and writes it as a Hugging Face folder would have it.

Bytes are the alphabet, so every text can be encoded and there is no unknown token. Turns are marked by special tokens
alone, without newlines or role names between them: no token can reach from a prompt into an answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from tandem.errors import UsageError
from tandem.files import json_bytes, whole_folder

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
SPECIAL_TOKENS = (BOS, EOS, PAD, USER, ASSISTANT, SYSTEM, END)
"""In the order of their ids, which are 0 to 6."""

SMALLEST = len(SPECIAL_TOKENS) + 256
"""Special tokens and one token for each byte."""

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] not in ('system', 'user', 'assistant') -%}
        {{- raise_exception('role ' ~ message['role'] ~ ' is unknown; use system, user or assistant') -}}
    {%- endif -%}
    {{- '<|' ~ message['role'] ~ '|>' ~ message['content'] ~ '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path, max_length: int) -> None:
    """Train on `texts` and write the tokenizer files.

    Args:
        texts: Documents; the result depends on them and `vocab_size` alone.
        vocab_size: Number of ids, special tokens included.
        folder: Receives `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`; must not exist.
        max_length: `model_max_length`, tokens the model was made for.

    Raises:
        UsageError: `vocab_size` has no room for the bytes, or the texts are too few to fill it.
    """
    if vocab_size < SMALLEST:
        raise UsageError(f"vocab_size {vocab_size}: a byte-level tokenizer needs at least {SMALLEST}; raise it")
    backend = _train(texts, vocab_size)
    if (size := backend.get_vocab_size(with_added_tokens=True)) != vocab_size:
        raise UsageError(f"vocab_size {vocab_size}: the texts hold only {size} tokens; lower it or add texts")
    with whole_folder(folder) as part:
        (part / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
        (part / "tokenizer_config.json").write_bytes(json_bytes(_settings(max_length)))
        (part / "special_tokens_map.json").write_bytes(json_bytes(dict(_named())))


def _train(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, SPECIAL_TOKENS.index(BOS))]
    )
    return backend


def _named() -> dict[str, str]:
    return {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}


def _settings(max_length: int) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
        **_named(),
    }
