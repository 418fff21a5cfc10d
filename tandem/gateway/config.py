"""Everything a gateway is told at its start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from tandem.errors import UsageError
from tandem.gateway.admission.queue_limits import QueueLimits
from tandem.gateway.door.keys import Keys
from tandem.gateway.fleet.fleet import ChangeConfig
from tandem.gateway.front import Api
from tandem.gateway.observability.visibility import Visibility
from tandem.gateway.request.length_limit import LengthLimit
from tandem.gateway.request.limits import Limits
from tandem.gateway.wire.worker import base_url
from tandem.gateway.wire.worker_access import WorkerAccess
from tandem.gateway.workers.expected import Expected
from tandem.gateway.workers.patience import Patience
from tandem.gateway.workers.policy import PolicyName
from tandem.protocol.tls import TlsFiles

MOST_WORKERS: Final = 256


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """Everything a gateway is told at its start.

    Raises:
        UsageError: No decode URL and no topology file, or both; a URL that is none, or is given twice; or a number that
            cannot be.
    """

    decode: tuple[str, ...] = ()
    """Base URLs of the decode instances; without `prefill`, of instances that do both."""
    prefill: tuple[str, ...] = ()
    """Base URLs of the prefill instances."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 only where asked for."""
    port: int = 9000
    """Port to listen on; 0 for any free one."""
    grace_s: float = 3.0
    """How long open requests may still take after a stop was asked for."""
    health_period_s: float = 1.0
    """Seconds between two health checks of one worker."""
    expected: tuple[Expected, ...] = ()
    """Who must answer at each URL, prefill then decode; then no request is taken before all have handed over."""
    ready_timeout_s: float | None = None
    """Longest wait for those expected; None waits for ever."""
    api: Api = "openai"
    """What clients speak: OpenAI's API, or that of vLLM 0.5.0's own server."""
    policy: PolicyName = "least_loaded"
    """Whose turn it is, among those who are up."""
    short_tokens: int = 0
    """With fewer tokens to compute, a prompt is left to a decode instance."""
    patience: Patience = field(default_factory=Patience)
    """How long a worker may be silent."""
    queue: QueueLimits = field(default_factory=QueueLimits)
    """Who waits, and for how long, when there is no room."""
    keys: Keys | None = None
    """Who may ask; None lets everybody."""
    limits: Limits = field(default_factory=Limits)
    """What a client may send, ask for and keep us waiting for."""
    tls: TlsFiles | None = None
    """What it shows clients, and asks of them; None speaks in the clear."""
    access: WorkerAccess = field(default_factory=WorkerAccess)
    """What it shows workers, and asks of them."""
    length_limit: LengthLimit | None = None
    """The longest request that is let through; None leaves that to the instances."""
    visibility: Visibility = field(default_factory=Visibility)
    """What it shows of each request."""
    workers: int = 1
    """Processes that share the work; more than one have a supervisor."""
    change: ChangeConfig = field(default_factory=ChangeConfig)
    """How the instances may change; a topology file takes the place of `prefill` and `decode`."""

    def __post_init__(self) -> None:
        if self.change.topology is not None and (self.prefill or self.decode):
            raise UsageError(f"{self.change.topology}: says who the instances are; leave out --prefill and --decode")
        if self.change.topology is None and not self.decode:
            raise UsageError("decode: no instance given; pass at least one with --decode http://HOST:PORT")
        if not 1 <= self.workers <= MOST_WORKERS:
            raise UsageError(f"workers: {self.workers} processes cannot be; choose 1 to {MOST_WORKERS} with --workers")
        if self.short_tokens < 0:
            raise UsageError(
                f"short_tokens: {self.short_tokens} is no length; choose 0 or more with --short-prompt-tokens"
            )
        if not 0 <= self.port < 2**16:
            raise UsageError(f"port: {self.port} is not a port; choose one from 1 to 65535, or 0 for any free one")
        for role in ("prefill", "decode"):
            object.__setattr__(self, role, tuple(base_url(role, url) for url in getattr(self, role)))
        urls = self.prefill + self.decode
        self.access.check_urls(urls)
        for url in urls:
            if urls.count(url) > 1:
                raise UsageError(f"{url}: given {urls.count(url)} times; give each instance once, in one role")
