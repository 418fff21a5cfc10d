"""An operator's side of a gateway's `/admin`."""

from __future__ import annotations

import http.client
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlsplit

import msgspec

from tandem.errors import ProcessError, RequestError, UsageError
from tandem.protocol.admin import TopologyState
from tandem.protocol.identity import Role
from tandem.protocol.tls import TlsFiles

TIMEOUT_S: Final = 10.0


class Said(msgspec.Struct):
    """What is wrong, in the gateway's words."""

    message: str


class Refusal(msgspec.Struct):
    """An error's body."""

    error: Said


class AdminClient:
    """Asks a gateway which workers it has, and tells it which it shall have. No proxy is heeded.

    Every method raises:
        RequestError: The gateway refuses; the message is its own.
        ProcessError: It does not answer, or is no gateway with `/admin`.

    Args:
        url: The gateway's base URL.
        key: One of its admin keys.
        tls: What it is shown, and who must have signed what it shows; None trusts whom the system trusts.
    """

    def __init__(self, url: str, key: str, tls: TlsFiles | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url}: is not a gateway's base URL; write http://HOST:PORT")
        self._url = url
        self._secure = parts.scheme == "https"
        self._place = parts.hostname, parts.port
        self._key = key
        self._tls = tls

    def topology(self) -> TopologyState:
        """All workers, and how each is doing."""
        return self._ask("GET", "/admin/topology")

    def add(self, role: Role, url: str, name: str | None = None) -> TopologyState:
        """Add a worker, under the next free name of its role where none is given."""
        place = {"role": role, "url": url} | ({} if name is None else {"name": name})
        return self._ask("POST", "/admin/workers", place)

    def drain(self, name: str) -> TopologyState:
        """Give a worker no further requests."""
        return self._ask("POST", f"{_path(name)}/drain")

    def undrain(self, name: str) -> TopologyState:
        """Give a worker requests again, once it has handed over."""
        return self._ask("POST", f"{_path(name)}/undrain")

    def remove(self, name: str, *, now: bool = False) -> TopologyState:
        """Take a worker out when it has finished what it has, or now."""
        return self._ask("DELETE", f"{_path(name)}{'?now' if now else ''}")

    def _ask(self, method: str, path: str, body: Any = None) -> TopologyState:
        status, answer = self._exchange(method, path, None if body is None else msgspec.json.encode(body))
        try:
            if status == HTTPStatus.OK:
                return msgspec.json.decode(answer, type=TopologyState)
            refusal = msgspec.json.decode(answer, type=Refusal)
        except (msgspec.DecodeError, UnicodeError):
            raise ProcessError(f"{self._url}: answers {path} with status {status} and no gateway's words") from None
        message = refusal.error.message
        if status == HTTPStatus.NOT_FOUND and message.startswith(path):
            message = f"{self._url}: has no /admin; start the gateway with --admin-key-file"
        raise RequestError(message, status=status)

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        connection = self._connection()
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {self._key}"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ProcessError(f"{self._url}: does not answer ({error}); is the gateway running there?") from None
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._place
        if not self._secure:
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        context = (self._tls or TlsFiles(side="operator")).context()
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)


def _path(name: str) -> str:
    return f"/admin/workers/{quote(name, safe='')}"
