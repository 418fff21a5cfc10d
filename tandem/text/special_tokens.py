"""The tokens a folder declares beside its vocabulary, read and written, and cut out of a text before it is tokenised.

Source: Hugging Face `tokenizer_config.json` (`added_tokens_decoder`, `bos_token` and the like), `added_tokens.json` and
`special_tokens_map.json`. The first file that gives a token its id wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tandem.errors import ModelFolderError


@dataclass(frozen=True, kw_only=True)
class SpecialToken:
    """One declared token."""

    content: str
    id: int | None
    """None where the vocabulary itself must know it."""
    special: bool
    """Whether decoding leaves it out."""
    lstrip: bool = False
    """Whether it takes the white space before it along."""
    rstrip: bool = False
    """Whether it takes the white space after it along."""
    single_word: bool = False
    """Whether it counts only between spaces."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of a text: a declared token, or text between such."""

    begin: int
    end: int
    token: SpecialToken | None


def declared_tokens(
    folder: Path, settings: dict[str, Any], added: dict[str, Any], named: dict[str, Any]
) -> list[SpecialToken]:
    """Every token the folder declares, each once.

    Args:
        folder: For messages.
        settings: `tokenizer_config.json`.
        added: `added_tokens.json`, spelling -> id.
        named: Names such as `bos_token` -> spelling, or its fields; and lists of such.

    Raises:
        ModelFolderError: A declaration is not of the form these files have.
    """
    tokens: dict[str, SpecialToken] = {}
    for number, fields in _object(folder, settings, "added_tokens_decoder").items():
        token = _token(folder, fields, id=_id(folder, number), special=False)
        tokens.setdefault(token.content, token)
    for content, number in added.items():
        _require_content(folder, content, "added_tokens.json")
        tokens.setdefault(content, SpecialToken(content=content, id=_id(folder, number), special=False))
    for value in _values(named):
        token = _token(folder, value, id=None, special=True)
        tokens[token.content] = replace(tokens.get(token.content, token), special=True)
    return list(tokens.values())


def token_fields(content: str, *, normalized: bool = False, single_word: bool = False) -> dict[str, Any]:
    """A token as `special_tokens_map.json` holds it.

    Args:
        content: Its spelling.
        normalized: Whether it is looked for in the text as the tokenizer changed it.
        single_word: Whether it counts only between spaces.
    """
    return {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": single_word}


def added_tokens_decoder(tokens: Mapping[int, str]) -> dict[str, Any]:
    """The entry of that name in `tokenizer_config.json`, for special tokens by their ids."""
    return {str(number): token_fields(content) | {"special": True} for number, content in tokens.items()}


class Cutter:
    """Finds declared tokens in a text: the leftmost first, and of several there the longest."""

    def __init__(self, tokens: Iterable[SpecialToken]) -> None:
        self._tokens = sorted((token for token in tokens if token.content), key=lambda t: len(t.content), reverse=True)
        self._pattern = re.compile("|".join(f"({_pattern(token)})" for token in self._tokens))

    def cut(self, text: str) -> Iterator[Part]:
        """The parts of `text`, in order and without gaps; empty ones are left out."""
        at = 0
        for match in self._pattern.finditer(text) if self._tokens else ():
            assert match.lastindex is not None
            token, begin = self._tokens[match.lastindex - 1], match.start()
            if token.lstrip:
                # Not by the expression: it would look at white space without a token again from each blank of it.
                begin = at + len(text[at:begin].rstrip())
            if begin > at:
                yield Part(begin=at, end=begin, token=None)
            yield Part(begin=begin, end=match.end(), token=token)
            at = match.end()
        if at < len(text):
            yield Part(begin=at, end=len(text), token=None)


def spelling(value: Any) -> str:
    """The text of a named token, which is either that text or an object that holds it as `content`."""
    return str(value["content"]) if isinstance(value, dict) and "content" in value else str(value)


def _pattern(token: SpecialToken) -> str:
    pattern = re.escape(token.content)
    if token.single_word:
        pattern = f"(?<![^ ]){pattern}(?![^ ])"
    return pattern + (r"\s*" if token.rstrip else "")


def _values(named: dict[str, Any]) -> Iterator[Any]:
    for value in named.values():
        if isinstance(value, list):
            yield from value
        elif value:
            yield value


def _token(folder: Path, fields: Any, **known: Any) -> SpecialToken:
    content = fields.get("content") if isinstance(fields, dict) else fields
    if not isinstance(content, str):
        raise ModelFolderError(f"{folder}: a declared token is {fields!r:.200}; correct it in tokenizer_config.json")
    _require_content(folder, content, "tokenizer_config.json or special_tokens_map.json")
    if not isinstance(fields, dict):
        return SpecialToken(content=content, **known)
    flags = {name: fields.get(name) is True for name in ("lstrip", "rstrip", "single_word", "special")}
    return SpecialToken(content=content, **(flags | known | {"special": known["special"] or flags["special"]}))


def _require_content(folder: Path, content: str, file: str) -> None:
    """An empty token would be found everywhere, and in no place."""
    if not content:
        raise ModelFolderError(f"{folder}: declares a token without characters; remove it from {file}")


def _object(folder: Path, settings: dict[str, Any], name: str) -> dict[str, Any]:
    fields = settings.get(name) or {}
    if not isinstance(fields, dict):
        raise ModelFolderError(f"{folder}: {name} in tokenizer_config.json is no object; copy the file again")
    return fields


def _id(folder: Path, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise ModelFolderError(
            f"{folder}: a declared token has the id {value!r:.200}; correct it in tokenizer_config.json"
        )
    return number
