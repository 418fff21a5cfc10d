"""TLS between processes: who listens shows a certificate, who connects checks it, and with a CA both do both.

A context stays the same for as long as its process runs. `renew` puts changed files into it, and connections that begin
later use them; that a CA is not trusted any more is known after a restart only.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from tandem.errors import UsageError
from tandem.files import read_bytes
from tandem.protocol.renewal import Renewal

Side = Literal["server", "client", "operator"]
"""Of a gateway: what clients see of it, what its workers do, and who looks after it."""

OPTIONS: Final[dict[Side, tuple[str, str, str]]] = {
    "server": ("--tls-cert", "--tls-key", "--tls-client-ca"),
    "client": ("--worker-cert", "--worker-key", "--worker-ca"),
    "operator": ("--cert", "--key", "--ca"),
}
"""Which options name the certificate, its key, and the CA that the other side's certificate must be of."""


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """The PEM files of one side of a connection, which are read when it is made.

    Raises:
        UsageError: They do not belong together, cannot be read, or are no PEM files; the message names option and file.
    """

    side: Side
    cert: Path | None = None
    """Its own certificate, and those between it and the CA behind it."""
    key: Path | None = None
    """The certificate's private key, not encrypted."""
    ca: Path | None = None
    """Who must have signed the other side's certificate. Without one a server asks clients for none, and a client
    trusts whom the system trusts."""

    def __post_init__(self) -> None:
        cert, key, ca = OPTIONS[self.side]
        if (self.cert is None) != (self.key is None):
            raise UsageError(f"{cert}, {key}: belong together; give both")
        if self.side == "server" and self.cert is None:
            raise UsageError(f"{ca}: needs {cert} and {key}; give them, too")
        self.context()

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return tuple(path for path in (self.cert, self.key, self.ca) if path is not None)

    def context(self) -> ssl.SSLContext:
        """A new context: TLS 1.2 and later; a client checks the host's name."""
        serves = self.side == "server"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if serves else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION  # each would cost a server much more than its client
        context.set_alpn_protocols(["http/1.1"])
        if self.ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        elif not serves:
            context.load_default_certs()
        self._load(context)
        return context

    def kept_new(self, renewal: Renewal) -> ssl.SSLContext:
        """A new context that changes with the files."""
        context = self.context()
        renewal.watch(self.paths, partial(self.renew, context))
        return context

    def renew(self, context: ssl.SSLContext) -> None:
        """Put what is in the files now into a context; one that cannot be used leaves it as it was.

        Raises:
            UsageError: As at the start.
        """
        self.context()
        self._load(context)

    def _load(self, context: ssl.SSLContext) -> None:
        cert_option, key_option, ca_option = OPTIONS[self.side]
        if self.ca is not None:
            _require_pem(ca_option, self.ca, "CERTIFICATE")
            try:
                context.load_verify_locations(cafile=self.ca)
            except OSError:
                raise UsageError(f"{ca_option} {self.ca}: holds a certificate that is damaged; copy it again") from None
        if self.cert is None or self.key is None:
            return
        _require_pem(cert_option, self.cert, "CERTIFICATE")
        _require_pem(key_option, self.key, "PRIVATE KEY")
        try:
            context.load_cert_chain(self.cert, self.key, password=_refuse)
        except _EncryptedError:
            raise UsageError(
                f"{key_option} {self.key}: is encrypted, and nobody is there to type its password; decrypt it with "
                "`openssl pkey`, and let only this service's user read it"
            ) from None
        except OSError as error:  # ssl.SSLError is one
            if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
                message = f"{key_option} {self.key}: is not the key of {cert_option} {self.cert}; give one pair's"
                raise UsageError(message) from None
            message = f"{cert_option} {self.cert}, {key_option} {self.key}: cannot be used ({error}); make them again"
            raise UsageError(message) from None


def server_tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> TlsFiles | None:
    """What `--tls-cert`, `--tls-key` and `--tls-client-ca` say; None where none is given."""
    return TlsFiles(side="server", cert=cert, key=key, ca=client_ca) if cert or key or client_ca else None


def client_tls(cert: Path | None, key: Path | None, ca: Path | None) -> TlsFiles | None:
    """What `--worker-cert`, `--worker-key` and `--worker-ca` say; None where none is given."""
    return TlsFiles(side="client", cert=cert, key=key, ca=ca) if cert or key or ca else None


class _EncryptedError(Exception):
    """OpenSSL asks for a password."""


def _refuse() -> str:
    raise _EncryptedError


def _require_pem(option: str, path: Path, kind: str) -> None:
    """Refuse a file that cannot be read, or holds nothing of this kind: OpenSSL does not say which one it was."""
    try:
        content = read_bytes(path, UsageError)
    except UsageError as error:
        raise UsageError(f"{option} {error}") from None
    if f"{kind}-----".encode() not in content:
        raise UsageError(f"{option} {path}: holds no {kind.lower()} in PEM form; give the file that does")
