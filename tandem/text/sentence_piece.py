"""SentencePiece models (`tokenizer.model`): Llama 2, Mistral, Yi, Baichuan 2 and ChatGLM 3, as their first tokenizers.

Declared tokens are cut out of a text before the library sees it, and each text between two of them is encoded by
itself. Where a model puts a space before every text, that is done for each of them (`legacy`) or for the first alone.

Source: SentencePiece; Hugging Face's LlamaTokenizer for bos, eos and `legacy`; THUDM's ChatGLMTokenizer for its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tandem.errors import ModelFolderError
from tandem.files import read_bytes
from tandem.text.backend import Span
from tandem.text.library import mapped, refused, said
from tandem.text.piece_spans import read_pieces
from tandem.text.special_tokens import Cutter, Part, SpecialToken
from tandem.text.tokenizer_json import piece_bytes

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

CHATGLM_TOKENS = (
    "[MASK]", "[gMASK]", "[sMASK]", "sop", "eop",
    "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
)  # fmt: skip
"""What ChatGLM 3 counts on from the last piece, in this order; the file itself does not know them."""

# Appended to a serialised model, a second `normalizer_spec` (field 3) is merged into the first, and its
# `add_dummy_prefix` (field 3) replaces the one there.
NO_SPACE_FIRST, SPACE_FIRST = b"\x1a\x02\x18\x00", b"\x1a\x02\x18\x01"


@dataclass(frozen=True, kw_only=True)
class SentencePieceRules:
    """What the model file does not say."""

    tokens: tuple[SpecialToken, ...] = ()
    """Declared tokens, found in every text."""
    appended: tuple[str, ...] = ()
    """Tokens that take the ids after the last piece, and are found in no text."""
    first: tuple[str, ...] = ()
    """Tokens put before a text."""
    last: tuple[str, ...] = ()
    """Tokens put after it."""
    legacy: bool = True
    """Whether the model's own setting for a space before the text holds between declared tokens too."""
    space_first: bool = True
    """Unless `legacy`: whether there is a space before the text as a whole."""


class SentencePieceModel:
    """An opened SentencePiece model.

    Args:
        path: The file.
        rules: What the file does not say.

    Raises:
        ModelFolderError: The file cannot be read or is no SentencePiece model.
    """

    def __init__(self, path: Path, rules: SentencePieceRules) -> None:
        self.path = path
        model = read_bytes(path, ModelFolderError)
        self._whole = self._begin = self._continue = _open(path, model)
        if not rules.legacy:
            self._begin = _open(path, model + (SPACE_FIRST if rules.space_first else NO_SPACE_FIRST))
            self._continue = _open(path, model + NO_SPACE_FIRST)
        self._bytes, self._control = _pieces(path, self._whole)
        self.drops_first_space = self._begin.normalize("a") != "a"
        self._spelled = {piece: self._whole.vocab_size() + at for at, piece in enumerate(rules.appended)}
        self._spelled |= {token.content: token.id for token in rules.tokens if token.id is not None}
        self._at = {number: content for content, number in self._spelled.items()}
        self.vocab_size = max(self._whole.vocab_size(), *(number + 1 for number in self._at), 0)
        self.token_count = self.vocab_size
        known = [token for token in rules.tokens if self.id_of(token.content) is not None]
        self._cutter = Cutter(known)
        self._special = {self._known(token.content) for token in known if token.special}
        self._special |= {self._spelled[content] for content in rules.appended}
        self._first = [self._known(token) for token in rules.first if self.id_of(token) is not None]
        self._last = [self._known(token) for token in rules.last if self.id_of(token) is not None]

    def id_of(self, token: str) -> int | None:
        """The id of one token or piece, if there is such a one."""
        if token in self._spelled:
            return self._spelled[token]
        number = int(self._whole.piece_to_id(token))
        return None if number == self._whole.unk_id() and self._whole.id_to_piece(number) != token else number

    def is_special(self, token: int) -> bool:
        """Whether the token is declared special, or is one of the model's control pieces."""
        return token in self._special or (token not in self._at and token in self._control)

    def bytes_of(self, token: int) -> bytes:
        """The bytes a token adds to a text; none for ids that are no token."""
        if token in self._at:
            return self._at[token].encode()
        return self._bytes[token] if 0 <= token < len(self._bytes) else b""

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Ids of `text`, with the declared tokens in it."""
        ids: list[int] = []
        for part in self._cutter.cut(text):
            if part.token is not None:
                ids.append(self._known(part.token.content))
            else:
                with mapped(refused):
                    ids += self._processor(part).encode(text[part.begin : part.end])
        return [*self._first, *ids, *self._last] if special else ids

    def encode_many(self, texts: list[str], *, special: bool) -> list[list[int]]:
        """Ids of several texts."""
        return [self.encode(text, special=special) for text in texts]

    def encode_plain(self, text: str) -> list[int]:
        """Ids of `text` as the library alone gives them: declared tokens and control pieces in it are text.

        Pieces that the model itself marks as user-defined are found even so.
        """
        with mapped(refused):
            return list(map(int, self._whole.encode(text)))

    def encode_with_offsets(self, text: str, *, special: bool) -> tuple[list[int], list[Span]]:
        """Ids, and the characters each stands for as the library has them, through its normaliser and back."""
        ids: list[int] = []
        spans: list[Span] = []
        for part in self._cutter.cut(text):
            if part.token is not None:
                found, there = [self._known(part.token.content)], [(0, part.end - part.begin)]
            else:
                found, there = _encode(self._processor(part), text[part.begin : part.end])
            ids += found
            spans += [(part.begin + begin, part.begin + end) for begin, end in there]
        if not special:
            return ids, spans
        first, last = [(0, 0)] * len(self._first), [(len(text), len(text))] * len(self._last)
        return [*self._first, *ids, *self._last], [*first, *spans, *last]

    def _processor(self, part: Part) -> SentencePieceProcessor:
        return self._continue if part.begin else self._begin

    def _known(self, token: str) -> int:
        number = self.id_of(token)
        assert number is not None, token
        return number


def _open(path: Path, model: bytes) -> SentencePieceProcessor:
    # Loaded here and not above: most folders need no SentencePiece.
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=model)
    except (RuntimeError, OSError, ValueError) as error:
        raise ModelFolderError(f"{path}: is no SentencePiece model ({said(error)}); copy the file again") from None


def _pieces(path: Path, processor: SentencePieceProcessor) -> tuple[list[bytes], frozenset[int]]:
    """The bytes of every piece, and the ids of those that are no text."""
    every = range(processor.vocab_size())
    try:
        pieces = [piece_bytes(processor.id_to_piece(number)) for number in every]
    except (RuntimeError, ValueError) as error:
        raise ModelFolderError(f"{path}: has a piece that is no text ({said(error)}); copy the file again") from None
    return pieces, frozenset(one for one in every if processor.is_control(one) or processor.is_unknown(one))


def _encode(processor: SentencePieceProcessor, text: str) -> tuple[list[int], list[Span]]:
    with mapped(refused):
        answer = processor.encode(text, out_type="serialized_proto")
    ids, spans = read_pieces(answer, text)
    return ids, _share_characters(processor, ids, spans)


def _share_characters(processor: SentencePieceProcessor, ids: Sequence[int], spans: list[Span]) -> list[Span]:
    """Give each byte piece the character it is part of, which the library gives to the last one alone."""
    for at in range(len(ids) - 2, -1, -1):
        begin, end = spans[at]
        if begin == end == spans[at + 1][0] and processor.is_byte(ids[at]):
            spans[at] = spans[at + 1]
    return spans
