"""What one client may ask for, send, and keep the gateway waiting for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from tandem.errors import RequestError, UsageError

MOST_PROMPTS: Final = 2048
"""So many can be told apart before all are read."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes, counts and times, each an option of the command; what is over one is refused.

    Raises:
        UsageError: One is no number over 0, or is over what can be kept.
    """

    max_body_bytes: int = 32 * 2**20
    """Bytes of a request's body, unpacked: 413."""
    max_header_bytes: int = 8190
    """Bytes of one header: 431."""
    max_headers: int = 128
    """Headers of a request: 431."""
    max_url_bytes: int = 8190
    """Bytes of path and query: 414."""
    max_prompts: int = 128
    """Prompts of a request, up to 2048: 400."""
    max_n: int = 128
    """Answers to one prompt: 400. Prompts of one request together may have the larger of this and --max-prompts."""
    max_connections: int = 4096
    """Connections of clients at a time; beyond it those that have asked nothing for the longest are closed."""
    head_timeout: float = 10.0
    """Seconds in which a new connection must have sent the head of a request, and for its TLS handshake."""
    body_timeout: float = 20.0
    """Seconds a body may take besides 1 for each 8 KiB of it: 408."""
    idle_timeout: float = 75.0
    """Seconds until a connection between two requests is closed."""
    stall_timeout: float = 300.0
    """Seconds a client may read nothing of its answer; then its request is aborted."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                option = field.name.replace("_", "-")
                raise UsageError(f"--{option} {getattr(self, field.name)}: must be a number over 0")
        if self.max_prompts > MOST_PROMPTS:
            raise UsageError(f"--max-prompts {self.max_prompts}: must be at most {MOST_PROMPTS}")

    def check_answers(self, n: int, prompts: int) -> None:
        """Refuse too many answers to one request.

        Raises:
            RequestError: 400, naming the field.
        """
        if prompts > self.max_prompts:
            message = f"prompt: {prompts} prompts are more than {self.max_prompts}; send fewer at a time"
            raise RequestError(message, param="prompt")
        most = max(self.max_prompts, self.max_n)
        if not 1 <= n <= self.max_n or n * prompts > most:
            allowed = f"1..{self.max_n}" + (f", or in all over {most}" if prompts > 1 else "")
            message = f"n: {n} answers to {prompts} prompts are outside {allowed}; ask for fewer at a time"
            raise RequestError(message, param="n")
