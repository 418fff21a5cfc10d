"""Trains a byte-level BPE tokenizer and writes it as a Hugging Face folder would have it.

Bytes are the alphabet, so every text can be encoded and there is no unknown token. Turns are marked by special tokens
alone, without newlines or role names between them: no token can reach from a prompt into an answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import processors

from tandem.files import whole_folder
from tandem.text.byte_pairs import train_byte_pairs, write_byte_pairs

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
SPECIAL_TOKENS = (BOS, EOS, PAD, USER, ASSISTANT, SYSTEM, END)
"""In the order of their ids, which are 0 to 6."""
NAMED = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}

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
    backend = train_byte_pairs(texts, vocab_size, first_tokens=SPECIAL_TOKENS)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, SPECIAL_TOKENS.index(BOS))]
    )
    with whole_folder(folder) as part:
        write_byte_pairs(part, backend, _settings(max_length), NAMED)


def _settings(max_length: int) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
        **NAMED,
    }
