"""A token that was drawn: it travels with a hand-off and joins an answer."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from tandem.protocol.logprobs import TokenLogprobs


class Sampled(msgspec.Struct, frozen=True):
    """One token drawn."""

    token: Annotated[int, Meta(ge=0)]
    logprobs: TokenLogprobs | None = None
    """Where they were asked for."""
