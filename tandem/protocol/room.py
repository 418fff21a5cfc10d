"""What a router asks of an instance's blocks.

`POST /tandem/reserve` keeps room, `POST /tandem/renew` a ticket, `POST /tandem/release` gives up either.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from tandem.errors import RequestError

Name = Annotated[str, Meta(min_length=1, max_length=256)]


class Reserve(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Keep blocks free for a request to come."""

    tokens: Annotated[int, Meta(ge=1)]
    """For how many, prompt and answer together."""


class Renew(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Somebody else will use this ticket: is it good, and for a lease's time from now?"""

    ticket: Name
    """The ticket's `remote_request_id`."""


class Release(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Nobody will use these blocks; one of the two."""

    ticket: Name | None = None
    """The ticket's `remote_request_id`."""
    reservation: Name | None = None

    @property
    def name(self) -> str:
        """Whose blocks they are.

        Raises:
            RequestError: Neither is named, or both are.
        """
        one, *others = [name for name in (self.ticket, self.reservation) if name is not None] or ("",)
        if others or not one:
            raise RequestError("ticket: name either a ticket or a reservation, one of the two", param="ticket")
        return one
