"""Families whose tokenizer is one `tokenizer.json`: Llama 3, Qwen 2, DeepSeek and GLM in Hugging Face's layout.

Source: the tokenizer files of Meta-Llama-3-8B-Instruct, Qwen2-7B-Instruct, DeepSeek-V3 and glm-4-9b-chat-hf.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from tandem.text.byte_pairs import train_byte_pairs, write_byte_pairs
from tandem.text.making.corpus import sample_texts
from tandem.text.making.ids import TokenizerIds
from tandem.text.rank_file import GLM4_TOKENS, GLM4_WORDS, QWEN_WORDS
from tandem.text.special_tokens import added_tokens_decoder

DEEPSEEK_WORDS = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!-/:-~]?[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


@dataclass(frozen=True, kw_only=True)
class JsonFamily:
    """One family's files."""

    words: tuple[str, ...]
    """Expressions that split a text into words."""
    first: tuple[str, ...] = ()
    """Special tokens before the vocabulary."""
    after: tuple[str, ...]
    """Special tokens after it."""
    bos: str | None = None
    eos: tuple[str, ...]
    pad: str | None = None
    around: tuple[str, ...] = ()
    """Tokens that `tokenizer.json` puts before a text."""
    composed: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    """What `tokenizer_config.json` says beside the named tokens."""

    def write(self, folder: Path, vocab_size: int) -> TokenizerIds:
        """Write the files into an existing folder."""
        backend = train_byte_pairs(
            sample_texts(), vocab_size - len(self.after), first_tokens=self.first, words=self.words,
            composed=self.composed,
        )  # fmt: skip
        backend.add_special_tokens([AddedToken(token, normalized=False) for token in self.after])
        steps: list[Any] = [processors.ByteLevel(trim_offsets=False)]
        if self.around:
            ids = [(token, _id(backend, token)) for token in self.around]
            steps.append(processors.TemplateProcessing(single=[*self.around, "$A"], special_tokens=ids))
        backend.post_processor = processors.Sequence(steps)
        named = {"bos_token": self.bos, "eos_token": self.eos[0], "pad_token": self.pad}
        added = {number: token.content for number, token in backend.get_added_tokens_decoder().items()}
        declared = {"added_tokens_decoder": added_tokens_decoder(added)}
        settings = declared | named | {"clean_up_tokenization_spaces": False} | self.settings
        write_byte_pairs(folder, backend, settings, named)
        return TokenizerIds(
            bos=None if self.bos is None else _id(backend, self.bos),
            eos=tuple(_id(backend, token) for token in self.eos),
            pad=None if self.pad is None else _id(backend, self.pad),
            size=vocab_size,
        )


LLAMA3 = JsonFamily(
    words=(GLM4_WORDS,),
    after=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    bos="<|begin_of_text|>",
    eos=("<|eot_id|>", "<|end_of_text|>"),
    around=("<|begin_of_text|>",),
    settings={"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192},
)

QWEN2 = JsonFamily(
    words=(QWEN_WORDS,),
    after=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    eos=("<|im_end|>", "<|endoftext|>"),
    pad="<|endoftext|>",
    composed=True,
    settings={"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False, "errors": "replace",
              "model_max_length": 32768, "split_special_tokens": False, "unk_token": None,
              "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]},
)  # fmt: skip

DEEPSEEK = JsonFamily(
    words=DEEPSEEK_WORDS,
    first=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"),
    after=("<｜User｜>", "<｜Assistant｜>"),
    bos="<｜begin▁of▁sentence｜>",
    eos=("<｜end▁of▁sentence｜>",),
    pad="<｜▁pad▁｜>",
    settings={"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": False,
              "legacy": True, "model_max_length": 16384, "sp_model_kwargs": {}, "unk_token": None},
)  # fmt: skip

GLM = JsonFamily(
    words=(GLM4_WORDS,),
    after=GLM4_TOKENS,
    eos=("<|endoftext|>", "<|user|>", "<|observation|>"),
    pad="<|endoftext|>",
    around=("[gMASK]", "<sop>"),
    settings={"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left", "model_max_length": 128000,
              "additional_special_tokens": list(GLM4_TOKENS)},
)  # fmt: skip


def _id(backend: tokenizers.Tokenizer, token: str) -> int:
    number = backend.token_to_id(token)
    assert number is not None, token
    return int(number)
