"""Who may ask: API keys, of which only hashes are kept, and how much each may ask for.

A key is 256 random bits, so a plain SHA-256 of it tells nothing about it; a hash for passwords, slow on purpose, would
cost every request its time.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from tandem.errors import RequestError, UsageError
from tandem.files import read_bytes, write_whole
from tandem.gateway.processes.board import Board
from tandem.protocol.json_body import UNREADABLE

PREFIX: Final = "tdm-"
"""How a key begins, so that one that was leaked is recognised by what looks for such."""
SCHEME: Final = "bearer"
RATES: Final = (1e-6, 1e9)
"""Requests in a minute that a key may be allowed, from one in two years: beyond them nothing can be reckoned."""

Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._@-]{1,64}\Z")]


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of a key file."""

    name: Name
    """Of whoever has it; it stands in metrics."""
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    requests_per_minute: Annotated[float, Meta(ge=RATES[0], le=RATES[1])] | None = None
    in_flight: Annotated[int, Meta(ge=1)] | None = None
    """Requests at a time."""


class Account:
    """What a key has used, at all processes of a gateway together.

    Args:
        key: Whose.
        board: Where it stands.
    """

    def __init__(self, key: Key, board: Board) -> None:
        self.key = key
        self._board = board
        self._in_flight = board.counter(f"{key.sha256} in flight")
        # Requests that may be sent at once, which grows with time, up to a minute's worth, or one; and when that was
        # reckoned, in seconds of the clock.
        self._allowance = board.common(f"{key.sha256} allowance")
        self._reckoned = board.common(f"{key.sha256} reckoned at")

    def begin(self, now: float) -> None:
        """Count a request.

        Raises:
            RequestError: 429, when the key has used what it may.
        """
        if self.key.in_flight is None and self.key.requests_per_minute is None:
            self._in_flight.add()
            return
        with self._board.changing():
            self._require_room()
            self._use_allowance(now)
            self._in_flight.add()

    def end(self) -> None:
        """It is over."""
        self._in_flight.add(-1)

    def _require_room(self) -> None:
        most = self.key.in_flight
        if most is not None and self._in_flight.total >= most:
            raise _too_many(f"{most} requests of this key are being served, which is all it may have at a time", 1.0)

    def _use_allowance(self, now: float) -> None:
        if (rate := self.key.requests_per_minute) is None:
            return
        grown = self._allowance.value + (now - self._reckoned.value) * rate / 60
        most = max(1.0, rate)
        allowance = min(most, grown) if self._reckoned.value else most
        left = allowance - 1 if allowance >= 1 else allowance
        self._allowance.value, self._reckoned.value = left, now
        if allowance < 1:
            raise _too_many(f"this key may ask {rate:g} times a minute, and has", (1 - allowance) * 60 / rate)


class Keys:
    """The keys that are known.

    Args:
        keys: All of them.
        clock: Seconds, monotonic, the same for all processes.
        board: Where it stands what they have used; None for the only process.
        path: The file they were read from, if they were.
    """

    def __init__(
        self,
        keys: tuple[Key, ...],
        clock: Callable[[], float] = time.monotonic,
        board: Board | None = None,
        path: Path | None = None,
    ) -> None:
        self._board = board or Board()
        self._accounts = [Account(key, self._board) for key in keys]
        self._clock = clock
        self.path = path

    @classmethod
    def from_file(cls, path: Path) -> Keys:
        """The keys of a file with one JSON object on each line.

        Raises:
            UsageError: Naming the file and the line at fault.
        """
        return cls(_keys(path), path=path)

    def renew(self) -> None:
        """Read the file again: who is no longer in it is no longer let in, who stays keeps what it has used.

        Raises:
            UsageError: As at first; nothing has changed then.
        """
        assert self.path is not None
        self._accounts = [Account(key, self._board) for key in _keys(self.path)]

    def on(self, board: Board) -> Keys:
        """The same keys, where what they have used stands on another board."""
        return Keys(tuple(account.key for account in self._accounts), self._clock, board, self.path)

    @contextmanager
    def admitted(self, headers: Mapping[str, str]) -> Iterator[str]:
        """Serve a request inside the block; yields the name of its key.

        Raises:
            RequestError: 401, without a known key; 429, when it has used what it may.
        """
        account = self._account(headers.get("Authorization", ""))
        account.begin(self._clock())
        try:
            yield account.key.name
        finally:
            account.end()

    def _account(self, authorization: str) -> Account:
        scheme, _, key = authorization.partition(" ")
        digest = digest_of(key.strip())
        # All are compared, and each in a time that does not depend on how much of it is right.
        found = [one for one in self._accounts if hmac.compare_digest(one.key.sha256, digest)]
        if scheme.lower() != SCHEME or not found:
            raise RequestError(
                "this service wants a key: send the header `Authorization: Bearer KEY` with one that it knows",
                status=401,
                code="invalid_api_key",
            )
        return found[0]


def new_key() -> str:
    """A key that nobody has."""
    return PREFIX + secrets.token_urlsafe(32)


def add_key(path: Path, name: str, requests_per_minute: float | None, in_flight: int | None) -> str:
    """Add a new key's hash to a file, which is made if it is missing, and return the key.

    Raises:
        UsageError: The name or a limit cannot be, the name is there already, or the file is none.
    """
    least, most = RATES
    if requests_per_minute is not None and not least <= requests_per_minute <= most:
        raise UsageError(f"--requests-per-minute {requests_per_minute:g}: must be a number of {least:g}..{most:g}")
    key = new_key()
    limits = {"requests_per_minute": requests_per_minute, "in_flight": in_flight}
    given = {what: value for what, value in limits.items() if value is not None}
    line = msgspec.json.encode({"name": name, "sha256": digest_of(key)} | given)
    before = read_bytes(path, UsageError) if path.exists() else b""
    lines = [one for one in before.splitlines() if one.strip()]
    for number, one in enumerate([*lines, line], 1):
        if _key(path, number, one).name == name and one is not line:
            raise UsageError(f"{path}: has a key of the name {name}; choose another, or take its line out")
    write_whole(path, b"".join(one + b"\n" for one in [*lines, line]))
    return key


def digest_of(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def _keys(path: Path) -> tuple[Key, ...]:
    lines = read_bytes(path, UsageError).splitlines()
    keys = tuple(_key(path, number, line) for number, line in enumerate(lines, 1) if line.strip())
    if not keys:
        raise UsageError(f"{path}: holds no key, so nobody could ask; make one with `tandem gateway-key`")
    for what in ("name", "sha256"):
        counts = Counter(getattr(key, what) for key in keys)
        if twice := next((value for value, count in counts.items() if count > 1), None):
            raise UsageError(f"{path}: {what} {twice} stands there twice; keep one")
    return keys


def _key(path: Path, number: int, line: bytes) -> Key:
    try:
        return msgspec.json.decode(line, type=Key)
    except UNREADABLE as error:
        raise UsageError(f"{path}: line {number}: {error}; write it as `tandem gateway-key` does") from None


def _too_many(why: str, wait_s: float) -> RequestError:
    return RequestError(
        f"{why}; try again in {math.ceil(wait_s)} s", status=429, code="rate_limit_exceeded", retry_after=wait_s
    )
