"""Families whose tokenizer is a SentencePiece model: Llama 2, Mistral, Yi, ChatGLM 3 and Baichuan 2.

Source: the tokenizer files of Llama-2-7b-chat-hf, Mistral-7B-Instruct-v0.2, Yi-6B-Chat, chatglm3-6b and
Baichuan2-13B-Chat, without the `tokenizer.json` some of them have beside.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tandem.errors import UsageError
from tandem.files import json_bytes
from tandem.text.making.corpus import sample_texts
from tandem.text.making.ids import TokenizerIds
from tandem.text.sentence_piece import CHATGLM_TOKENS
from tandem.text.special_tokens import added_tokens_decoder, token_fields


@dataclass(frozen=True, kw_only=True)
class PieceFamily:
    """One family's files. Ids 0 to 2 are `<unk>`, bos and eos, then `symbols`, bytes and merges."""

    bos: str = "<s>"
    eos: str = "</s>"
    symbols: tuple[str, ...] = ()
    """Pieces that are found in any text."""
    appended: int = 0
    """Ids after the last piece that the family's own code adds."""
    space_first: bool = True
    """Whether the model puts a space before every text."""
    ends: tuple[str, ...] = ()
    """Pieces that end an answer, beside `eos`."""
    pad: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """`tokenizer_config.json`."""
    named: dict[str, Any] = field(default_factory=dict)
    """`special_tokens_map.json`; none is written where this is empty."""
    roles: tuple[str, ...] = ()
    """Baichuan's pieces for user and assistant."""

    def write(self, folder: Path, vocab_size: int) -> TokenizerIds:
        """Write the files into an existing folder."""
        (folder / "tokenizer.model").write_bytes(self._train(vocab_size - self.appended))
        (folder / "tokenizer_config.json").write_bytes(json_bytes(self.settings))
        if self.named:
            (folder / "special_tokens_map.json").write_bytes(json_bytes(self.named))
        number = {piece: at for at, piece in enumerate(("<unk>", self.bos, self.eos, *self.symbols))}
        user, assistant = (number[piece] for piece in self.roles) if self.roles else (None, None)
        return TokenizerIds(
            bos=1, eos=(*(number[piece] for piece in self.ends), 2), pad=self.pad, size=vocab_size, user=user,
            assistant=assistant,
        )  # fmt: skip

    def _train(self, vocab_size: int) -> bytes:
        # Loaded here and not above: only this needs the trainer.
        import sentencepiece

        least = 3 + len(self.symbols) + 256
        if vocab_size <= least:
            raise UsageError(
                f"vocab_size: {vocab_size} pieces have no room for bytes; use over {least + self.appended}"
            )
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample_texts()),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            # The rest of the characters are spelled in bytes; a small vocabulary has better uses.
            character_coverage=0.998,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=self.space_first,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            user_defined_symbols=list(self.symbols),
            bos_piece=self.bos,
            eos_piece=self.eos,
            num_threads=1,
            minloglevel=2,
        )
        return model.getvalue()


_LLAMA_NAMED = {"bos_token": token_fields("<s>"), "eos_token": token_fields("</s>"), "unk_token": token_fields("<unk>")}
_LLAMA_SETTINGS: dict[str, Any] = {
    "add_bos_token": True,
    "add_eos_token": False,
    "added_tokens_decoder": added_tokens_decoder({0: "<unk>", 1: "<s>", 2: "</s>"}),
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "pad_token": None,
    "sp_model_kwargs": {},
    "tokenizer_class": "LlamaTokenizer",
    "unk_token": "<unk>",
}

LLAMA2 = PieceFamily(settings=_LLAMA_SETTINGS | {"legacy": False, "model_max_length": 4096}, named=_LLAMA_NAMED)

MISTRAL = PieceFamily(settings=_LLAMA_SETTINGS | {"legacy": True, "model_max_length": 32768}, named=_LLAMA_NAMED)

YI = PieceFamily(
    bos="<|startoftext|>",
    eos="<|endoftext|>",
    symbols=("<|Human|>", "<|Assistant|>", "<|System|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"),
    space_first=False,
    ends=("<|im_end|>",),
    pad=0,
    settings=_LLAMA_SETTINGS
    | {
        "add_bos_token": False,
        "added_tokens_decoder": added_tokens_decoder({
            0: "<unk>", 1: "<|startoftext|>", 2: "<|endoftext|>", 6: "<|im_start|>", 7: "<|im_end|>", 8: "<|im_sep|>",
        }),
        "bos_token": "<|startoftext|>",
        "eos_token": "<|im_end|>",
        "legacy": True,
        "model_max_length": 4096,
        "pad_token": "<unk>",
    },
    named={
        "bos_token": token_fields("<|startoftext|>"), "eos_token": token_fields("<|im_end|>"),
        "pad_token": token_fields("<unk>"), "unk_token": token_fields("<unk>"),
    },
)  # fmt: skip

CHATGLM3 = PieceFamily(
    appended=len(CHATGLM_TOKENS),
    pad=0,
    settings={
        "name_or_path": "THUDM/chatglm3-6b",
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    },
)

_BAICHUAN_NAMED = {
    name: token_fields(content, normalized=True, single_word=True)
    for name, content in (("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", "<unk>"), ("unk_token", "<unk>"))
}

BAICHUAN2 = PieceFamily(
    symbols=("<reserved_106>", "<reserved_107>"),
    space_first=False,
    pad=0,
    settings={
        "add_bos_token": False,
        "add_eos_token": False,
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
        **{name: {"__type": "AddedToken", **token} for name, token in _BAICHUAN_NAMED.items()},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "sp_model_kwargs": {},
        "tokenizer_class": "BaichuanTokenizer",
    },
    named=_BAICHUAN_NAMED,
    roles=("<reserved_106>", "<reserved_107>"),
)
