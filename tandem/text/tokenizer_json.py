"""Tokenizers of one file, `tokenizer.json`, read by the `tokenizers` library.

The library encodes. Which bytes a token stands for is read off the file's decoder, of which two kinds are known:
byte-level (GPT-2, Llama 3, Qwen 2, DeepSeek, GLM) and SentencePiece-like (Llama 2, Mistral, Yi).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from tandem.errors import ModelFolderError
from tandem.text.backend import Span
from tandem.text.byte_alphabet import token_bytes
from tandem.text.library import mapped, refused, said
from tandem.text.special_tokens import SpecialToken, spelling

BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""How SentencePiece spells a byte that no other piece covers."""

LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
"""Classes whose `add_bos_token` and `add_eos_token` count for more than what `tokenizer.json` puts around a text."""

AT_ONCE = 256
"""Texts given to the library together: it keeps some hundred times their size until all are encoded."""


class TokenizerJson:
    """An opened `tokenizer.json`.

    Args:
        path: The file.
        settings: `tokenizer_config.json`.
        declared: Tokens that the folder's other files declare; what this file lacks of them is added.

    Raises:
        ModelFolderError: The file is broken, or its decoder is of no known kind.
    """

    def __init__(self, path: Path, settings: dict[str, Any], declared: Iterable[SpecialToken] = ()) -> None:
        self.path = path
        fields, kinds = _read(path)
        self._byte_level = "ByteLevel" in kinds
        if not self._byte_level and not {"ByteFallback", "Metaspace"} & set(kinds):
            found = said(ValueError(", ".join(kinds) or "none"))
            raise ModelFolderError(
                f"{path}: its decoder ({found}) is neither byte-level nor SentencePiece's; convert it"
            )
        self._encoder = _encoder(path, json.dumps(fields))
        self.drops_first_space = _drops_first_space(kinds)
        self._declare(declared)
        self._surround(settings)
        vocabulary = self._encoder.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.token_count = len(vocabulary)
        """Distinct tokens, which are fewer than ids where the file lost some."""
        self._added = self._encoder.get_added_tokens_decoder()

    def id_of(self, token: str) -> int | None:
        """The id of one token, if there is such a token."""
        return self._encoder.token_to_id(token)

    def is_special(self, token: int) -> bool:
        """Whether the file marks the token as special."""
        return token in self._added and self._added[token].special

    def bytes_of(self, token: int) -> bytes:
        """The bytes a token adds to a text; none for ids that are no token."""
        if token in self._added:
            return self._added[token].content.encode()
        piece = self._encoder.id_to_token(token) if 0 <= token < self.vocab_size else None
        if piece is None:
            return b""
        return token_bytes(piece) if self._byte_level else piece_bytes(piece)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Ids of `text`; every token the file adds to its vocabulary is found in the text."""
        # The batch form is the one that lets other Python threads run meanwhile; a long prompt takes seconds.
        return self.encode_many([text], special=special)[0]

    def encode_many(self, texts: list[str], *, special: bool) -> list[list[int]]:
        """Ids of several texts, encoded in parallel."""
        encode, found = self._encoder.encode_batch_fast, []
        with mapped(refused):
            for begin in range(0, len(texts), AT_ONCE):
                part = encode(texts[begin : begin + AT_ONCE], add_special_tokens=special)
                found += [encoding.ids for encoding in part]
        return found

    def encode_plain(self, text: str) -> list[int]:
        """Ids of `text`, with the spelling of special tokens as text."""
        with mapped(refused):
            return self._plain.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def encode_with_offsets(self, text: str, *, special: bool) -> tuple[list[int], list[Span]]:
        """Ids, and the characters each stands for as the library has them, through its normaliser and back."""
        with mapped(refused):
            encoding = self._encoder.encode(text, add_special_tokens=special)
        return encoding.ids, encoding.offsets

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        plain = tokenizers.Tokenizer.from_str(self._encoder.to_str())
        plain.encode_special_tokens = True
        return plain

    def _declare(self, declared: Iterable[SpecialToken]) -> None:
        """Add what the file lacks, where the id comes out right; another id would be another row of the model."""
        there = {token.content for token in self._encoder.get_added_tokens_decoder().values()}
        for token in sorted((one for one in declared if one.content not in there), key=lambda one: one.id or 0):
            known = self._encoder.token_to_id(token.content)
            if known is not None or token.id == self._encoder.get_vocab_size(with_added_tokens=True):
                self._encoder.add_tokens([_added(token)])

    def _surround(self, settings: dict[str, Any]) -> None:
        """Put around a text what `tokenizer_config.json` says, for the classes where that counts."""
        if settings.get("tokenizer_class") not in LLAMA_CLASSES or "add_bos_token" not in settings:
            return
        first = [spelling(settings["bos_token"])] if settings["add_bos_token"] and settings.get("bos_token") else []
        last = [spelling(settings["eos_token"])] if settings.get("add_eos_token") and settings.get("eos_token") else []
        ids = [(token, self._encoder.token_to_id(token)) for token in first + last]
        if all(number is not None for _, number in ids):
            self._encoder.post_processor = processors.TemplateProcessing(
                single=[*first, "$A", *last], special_tokens=ids
            )


def piece_bytes(piece: str) -> bytes:
    """The bytes a SentencePiece piece stands for: `▁` is a space, `<0x0A>` a byte."""
    if byte := BYTE_PIECE.fullmatch(piece):
        return bytes([int(byte[1], 16)])
    return piece.replace("▁", " ").encode()


def _added(token: SpecialToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.content,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        single_word=token.single_word,
        normalized=not token.special,
        special=token.special,
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The file's content, and the stages of its decoder by their kinds."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        for step in _steps(fields.get("post_processor")):
            # With this set, a token that is nothing but spaces has no characters at all, and no answer would teach it.
            step.update({"trim_offsets": False} if "trim_offsets" in step else {})
            _check_template(step)
        kinds = {str(step["type"]): step for step in _steps(fields.get("decoder"))}
        _check_model(fields.get("model"))
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise ModelFolderError(f"{path}: is no tokenizer ({said(error)}); copy the file again") from None
    assert isinstance(fields, dict)
    return fields, kinds


def _steps(stage: Any) -> Iterator[dict[str, Any]]:
    """A stage of the file and, where it is a sequence, the stages in it."""
    if stage is None:
        return
    if not isinstance(stage, dict) or not isinstance(stage.get("type"), str):
        raise TypeError("its decoder or post_processor has a stage that is no object with a type")
    yield stage
    for name in ("decoders", "processors"):
        if not isinstance(inner := stage.get(name, []), list):
            raise TypeError(f"{name} is no list of stages")
        for step in inner:
            yield from _steps(step)


def _check_template(step: dict[str, Any]) -> None:
    """The library panics at the first text where a token is put around it that the stage does not list."""
    if step["type"] != "TemplateProcessing":
        return
    put = [
        piece["SpecialToken"]["id"] for form in ("single", "pair") for piece in step[form] if "SpecialToken" in piece
    ]
    if unlisted := [name for name in put if name not in step["special_tokens"]]:
        raise ValueError(f"its post_processor puts {unlisted[0]} around a text, and does not list it")


def _check_model(model: Any) -> None:
    """The library ends the process where a prefix for inner parts of words does not fit; no family of ours has one."""
    if isinstance(model, dict) and model.get("continuing_subword_prefix"):
        raise ValueError("continuing_subword_prefix is set, which no supported family does")


def _drops_first_space(decoders: dict[Any, dict[str, Any]]) -> bool:
    stripped = decoders.get("Strip", {})
    if stripped.get("content") == " " and stripped.get("start", 0) > 0:
        return True
    return "Metaspace" in decoders and decoders["Metaspace"].get("prepend_scheme", "always") != "never"


def _encoder(path: Path, source: str) -> tokenizers.Tokenizer:
    with mapped(lambda reason: ModelFolderError(f"{path}: is no tokenizer ({reason}); copy the file again")):
        encoder = tokenizers.Tokenizer.from_str(source)
    # A file may ask to cut or fill every text to one length; a prompt is taken as it is.
    encoder.no_truncation()
    encoder.no_padding()
    return encoder
