"""Families whose tokenizer is a rank file: Qwen 1 (`qwen.tiktoken`) and GLM-4 (`tokenizer.model`).

Source: the tokenizer files of Qwen-7B-Chat and glm-4-9b-chat.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tandem.files import json_bytes
from tandem.text.byte_alphabet import token_bytes
from tandem.text.byte_pairs import train_byte_pairs
from tandem.text.making.corpus import sample_texts
from tandem.text.making.ids import TokenizerIds
from tandem.text.rank_file import GLM4_TOKENS, GLM4_WORDS, QWEN_TOKENS, QWEN_WORDS
from tandem.text.special_tokens import added_tokens_decoder


@dataclass(frozen=True, kw_only=True)
class RankFamily:
    """One family's files."""

    name: str
    """Of the rank file."""
    words: str
    """Expression that splits a text into words."""
    tokens: tuple[str, ...]
    """Special tokens, after the last rank."""
    ends: tuple[str, ...]
    """Special tokens that end an answer."""
    declares: bool = False
    """Whether `tokenizer_config.json` lists the special tokens with their ids."""
    composed: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    """What else it says."""

    def write(self, folder: Path, vocab_size: int) -> TokenizerIds:
        """Write the files into an existing folder."""
        ranks = vocab_size - len(self.tokens)
        backend = train_byte_pairs(sample_texts(), ranks, words=[self.words], composed=self.composed)
        tokens = sorted(backend.get_vocab().items(), key=lambda item: item[1])
        lines = [b"%s %d\n" % (base64.b64encode(token_bytes(token)), rank) for token, rank in tokens]
        (folder / self.name).write_bytes(b"".join(lines))
        special = {token: ranks + at for at, token in enumerate(self.tokens)}
        declared = {"added_tokens_decoder": added_tokens_decoder(dict(enumerate(self.tokens, ranks)))}
        settings = (declared if self.declares else {}) | self.settings
        (folder / "tokenizer_config.json").write_bytes(json_bytes(settings))
        eos = tuple(special[token] for token in self.ends)
        return TokenizerIds(bos=None, eos=eos, pad=special["<|endoftext|>"], size=vocab_size)


QWEN = RankFamily(
    name="qwen.tiktoken",
    words=QWEN_WORDS,
    tokens=QWEN_TOKENS,
    ends=("<|im_end|>", "<|endoftext|>"),
    composed=True,
    settings={
        "model_max_length": 32768,
        "tokenizer_class": "QWenTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
    },
)

GLM4 = RankFamily(
    name="tokenizer.model",
    words=GLM4_WORDS,
    tokens=GLM4_TOKENS,
    ends=("<|endoftext|>", "<|user|>", "<|observation|>"),
    declares=True,
    settings={
        "additional_special_tokens": list(GLM4_TOKENS),
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLM4Tokenizer", None]},
        "clean_up_tokenization_spaces": False,
        "do_lower_case": False,
        "eos_token": "<|endoftext|>",
        "model_max_length": 128000,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "remove_space": False,
        "tokenizer_class": "ChatGLM4Tokenizer",
    },
)
