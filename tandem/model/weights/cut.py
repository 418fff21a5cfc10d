"""The part of a parameter that one rank holds, and of a checkpoint's tensors what fills it. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from tandem.model.weights.fit import Piece


@dataclass(frozen=True, slots=True)
class Cut:
    """A run of places in one dimension of a parameter; the other dimensions are whole."""

    dim: int
    places: range


def cut(pieces: Iterable[Piece], cuts: Mapping[str, Cut]) -> Iterator[Piece]:
    """The pieces that fill cut parameters.

    Args:
        pieces: Of the whole parameters.
        cuts: Parameter name -> its part; those that are not named stay whole.
    """
    for piece in pieces:
        one = cuts.get(piece.rows.name)
        if one is None:
            yield piece
        elif piece.rows.expert is None or one.dim:
            yield _part(piece, one)
        elif piece.rows.expert in one.places:
            yield replace(piece, rows=replace(piece.rows, expert=piece.rows.expert - one.places.start))


def _part(piece: Piece, one: Cut) -> Piece:
    # A stacked parameter's first dimension is that of its experts, each of which is a piece.
    if one.dim == (piece.rows.expert is not None):
        return replace(piece, first=piece.first + one.places.start)
    return replace(piece, columns=one.places)
