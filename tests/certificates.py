"""A small public-key infrastructure for tests, made with the openssl command: CAs, and what they have signed."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

SANS = "subjectAltName=DNS:localhost,IP:127.0.0.1"


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    cert: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """A CA, in a folder of its own."""

    pair: Pair

    @classmethod
    def new(cls, folder: Path, name: str = "ca") -> Authority:
        pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
        openssl("req", "-x509", *EC, "-keyout", pair.key, "-out", pair.cert, "-days", "2", "-subj", f"/CN={name}")
        return cls(pair)

    @property
    def cert(self) -> Path:
        return self.pair.cert

    def signs(self, folder: Path, name: str, extension: str = SANS) -> Pair:
        """A new pair for whoever has this name."""
        pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
        by = ("-CA", self.pair.cert, "-CAkey", self.pair.key, "-days", "2")
        wanted = ("-subj", f"/CN={name}", "-addext", extension)
        openssl("req", "-x509", *EC, "-keyout", pair.key, "-out", pair.cert, *by, *wanted)
        return pair


EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
