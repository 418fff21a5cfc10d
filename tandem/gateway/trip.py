"""One client request on its way through the gateway: its body, its identity, and the headers both legs carry."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tandem.gateway.body import ClientBody

SANE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
PASSED_ON: Final = ("Authorization", "traceparent", "tracestate")


def request_id(headers: Mapping[str, str]) -> str:
    """The client's `X-Request-Id` if it is sane, else a new one: it ends up in log lines and engine ids."""
    wanted = headers.get("X-Request-Id", "")
    return wanted if SANE_ID.fullmatch(wanted) else uuid.uuid4().hex


@dataclass(frozen=True, kw_only=True)
class Trip:
    """What every leg of one request needs to know."""

    id: str
    path: str
    """The endpoint the client called; both legs call the same."""
    body: ClientBody
    headers: Mapping[str, str]
    """Sent with both legs."""
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def begin(cls, trip_id: str, path: str, raw: bytes, client_headers: Mapping[str, str]) -> Trip:
        """Set out with a client's body.

        Raises:
            RequestError: 400, when the body is not a JSON object.
        """
        headers = {name: client_headers[name] for name in PASSED_ON if name in client_headers}
        headers |= {"X-Request-Id": trip_id, "Content-Type": "application/json"}
        return cls(id=trip_id, path=path, body=ClientBody.decode(raw), headers=headers)

    @property
    def age_s(self) -> float:
        """Seconds since the request came in."""
        return time.monotonic() - self.started
