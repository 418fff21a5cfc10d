"""What travels with the blocks: everything the decode side cannot work out from the request.

Penalty counts follow from the tokens, Qwen v1's alpha from the prompt's length, the random numbers from the seed; so
the first tokens and the seed are all there is.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from tandem.engine.sampled import Sampled
from tandem.errors import TransferError


class HandOff(msgspec.Struct, frozen=True):
    """A finished prefill, as the decode side goes on from it."""

    prompt: Annotated[int, Meta(ge=1)]
    """Tokens of the request's prompt; what came after them was generated before."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    """That the first tokens were drawn with, and the others shall be."""
    first: list[Sampled]
    """The next token of every choice, in the request's order."""
    reused: Annotated[int, Meta(ge=0)] = 0
    """Tokens of the prompt that did not have to be computed: whoever decodes tells it to the client."""

    def encode(self) -> bytes:
        """As it travels."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, state: bytes) -> HandOff:
        """What arrived.

        Raises:
            TransferError: It is something else.
        """
        try:
            return msgspec.msgpack.decode(state, type=cls)
        except msgspec.DecodeError as error:
            raise TransferError(f"the prefill instance handed over a state that cannot be read: {error}") from None
