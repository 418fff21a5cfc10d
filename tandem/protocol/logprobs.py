"""Log-probabilities as processes hand them on: ids and numbers, before anybody puts them into words."""

from __future__ import annotations

import msgspec


class TokenLogprobs(msgspec.Struct, frozen=True):
    """What the model thought at one place of an answer, before penalties and temperature."""

    token: int
    """The token drawn."""
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens with theirs, the best first; as many as were asked for."""
