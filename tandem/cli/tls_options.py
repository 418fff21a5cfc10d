"""Options about TLS that several commands have, or that one has many of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tandem.gateway.wire.worker_access import WorkerAccess
    from tandem.protocol.tls import TlsFiles


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """What an HTTP port shows its clients, and asks of them."""

    tls_cert: Path | None = None
    """PEM file with the certificate that clients are shown. Default: plain HTTP."""
    tls_key: Path | None = None
    """PEM file with its key, not encrypted."""
    tls_client_ca: Path | None = None
    """PEM file with the CA whose certificates clients must show. Default: they need none."""

    @property
    def files(self) -> TlsFiles | None:
        """The files; None where none is given."""
        from tandem.protocol.tls import server_tls

        return server_tls(self.tls_cert, self.tls_key, self.tls_client_ca)


@dataclass(frozen=True, kw_only=True)
class ClientTls:
    """What a service shows us, and is shown."""

    cert: Path | None = None
    """PEM file with the certificate that it is shown, where it wants one."""
    key: Path | None = None
    """PEM file with its key, not encrypted."""
    ca: Path | None = None
    """PEM file with the CA that signed its certificate. Default: whom the system trusts."""

    @property
    def files(self) -> TlsFiles:
        """The files."""
        from tandem.protocol.tls import TlsFiles

        return TlsFiles(side="operator", cert=self.cert, key=self.key, ca=self.ca)


@dataclass(frozen=True, kw_only=True)
class WorkerTls:
    """What a gateway shows instances, and asks of them."""

    worker_ca: Path | None = None
    """PEM file with the CA that signed the instances' certificates. Default: whom the system trusts."""
    worker_cert: Path | None = None
    """PEM file with the certificate that instances are shown. Default: none."""
    worker_key: Path | None = None
    """PEM file with its key, not encrypted."""
    worker_api_key_file: Path | None = None
    """File with the key that instances want, such as vLLM's --api-key. Default: the client's is passed on, unless
    --api-keys is given."""

    @property
    def access(self) -> WorkerAccess:
        """All of it."""
        from tandem.gateway.wire.worker_access import WorkerAccess
        from tandem.protocol.tls import client_tls

        tls = client_tls(self.worker_cert, self.worker_key, self.worker_ca)
        return WorkerAccess(tls=tls, api_key=self.worker_api_key_file)
