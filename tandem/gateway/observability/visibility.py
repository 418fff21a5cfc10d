"""What a gateway shows of each request, beside `/metrics`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Format = Literal["text", "json"]


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """The access log and traces; each field is an option of the command."""

    access_log: str | None = None
    """File that gets a line for each request; - for standard error. Default: none."""
    access_log_format: Format = "text"
    """text, as name=value, or json, an object on each line."""
    access_log_clients: bool = False
    """Tell the addresses of clients, too."""
    otlp_endpoint: str | None = None
    """URL of a collector that takes OpenTelemetry's traces as OTLP over HTTP, such as http://127.0.0.1:4318. Default:
    what OTEL_EXPORTER_OTLP_ENDPOINT says, else no traces."""
