"""What one step added to one choice of an answer, as whoever follows the request is told."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.protocol.answers import FinishReason
from tandem.protocol.kv import KVTransferParams
from tandem.protocol.logprobs import TokenLogprobs


@dataclass(frozen=True)
class Update:
    """What one step added to one choice of an answer."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    """The tokens the step added."""
    reason: FinishReason | None = None
    """Set on a choice's last update."""
    error: str | None = None
    """Why the request failed, with the reason `error`."""
    status: int = 500
    """HTTP status of that failure."""
    ticket: KVTransferParams | None = None
    """On a prefill instance: what fetches the blocks. It comes first, before they are computed."""
    choice: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each token, where they were asked for."""
    reused: int = 0
    """Tokens of the prompt whose keys and values did not have to be computed for this request."""
    pulled_at: float | None = None
    """When keys and values from another instance were here, by `time.monotonic`."""
