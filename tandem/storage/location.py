"""`Location`: a place in a bucket, as people write it: `s3://bucket/key`, or `obs://bucket/key`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from tandem.errors import UsageError

SCHEMES: Final = ("s3", "obs")
URL: Final = re.compile(r"(?P<scheme>[a-z0-9]+)://(?P<bucket>[^/]*)/?(?P<key>.*)", re.DOTALL)
BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True)
class Location:
    """An object, or all objects below a key; a key has no slash at its ends, and an empty one is the whole bucket."""

    scheme: str
    bucket: str
    key: str

    @classmethod
    def of(cls, text: str) -> Location | None:
        """The location that a text names; None where it names a path of this machine.

        Raises:
            UsageError: It has the form of a location, and is none.
        """
        match = URL.fullmatch(text)
        if match is None:
            return None
        scheme, bucket, key = match["scheme"], match["bucket"], match["key"].rstrip("/")
        if scheme not in SCHEMES:
            known = " or ".join(f"{one}://" for one in SCHEMES)
            raise UsageError(f"{text}: {scheme}:// is no storage that is known; use {known}")
        if not BUCKET.fullmatch(bucket):
            raise UsageError(f"{text}: {bucket!r} is no name of a bucket; write {scheme}://BUCKET/KEY")
        if key and any(part in ("", ".", "..") for part in key.split("/")):
            raise UsageError(f"{text}: a key has no empty part, no . and no ..; write {scheme}://BUCKET/KEY")
        return cls(scheme, bucket, key)

    def __truediv__(self, name: str) -> Location:
        return replace(self, key=f"{self.key}/{name}" if self.key else name)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}"

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> Location:
        """Without the last part of the key."""
        return replace(self, key=self.key.rpartition("/")[0])
