"""How the gateway shows workers who it is, and knows who they are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tandem.errors import UsageError
from tandem.files import read_bytes
from tandem.protocol.tls import TlsFiles

KEY: Final = re.compile(r"[!-~]{1,512}")
"""What may stand in a header: ASCII without spaces."""


@dataclass(frozen=True, kw_only=True)
class WorkerAccess:
    """The same for all workers.

    Raises:
        UsageError: The key's file cannot be read, or holds no key.
    """

    tls: TlsFiles | None = None
    """What it shows, and asks of, those with https:// URLs; None trusts whom the system trusts, and shows nothing."""
    api_key: Path | None = None
    """File with the key that they want, such as vLLM's `--api-key`; None passes the client's on, if it is not ours."""

    def __post_init__(self) -> None:
        self.headers()

    def headers(self) -> dict[str, str]:
        """What each request to a worker says, whoever asks."""
        if self.api_key is None:
            return {}
        try:
            text = read_bytes(self.api_key, UsageError).decode(errors="replace").strip()
        except UsageError as error:
            raise UsageError(f"--worker-api-key-file {error}") from None
        if not KEY.fullmatch(text):
            raise UsageError(
                f"--worker-api-key-file {self.api_key}: holds no key: one line of printable ASCII without spaces"
            )
        return {"Authorization": f"Bearer {text}"}

    def check_urls(self, urls: tuple[str, ...]) -> None:
        """Refuse to speak in the clear where certificates were given.

        Raises:
            UsageError: Naming the URL.
        """
        if self.tls is not None and (clear := next((url for url in urls if url.startswith("http://")), None)):
            raise UsageError(f"{clear}: would be spoken to in the clear; --worker-ca and --worker-cert want https://")
