"""TLS from the client to the gateway and from the gateway to real instances, and files renewed while all of it runs."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import aiohttp
import pytest
import uvloop
from certificates import Authority, Pair
from chaos.instance import Instance
from fake_worker import WORDS, running, words
from gateway_rig import BODY, Rig, rigged, until

from tandem.errors import UsageError
from tandem.gateway.config import GatewayConfig
from tandem.gateway.door.keys import Keys, add_key
from tandem.gateway.server import Gateway
from tandem.gateway.wire.worker_access import WorkerAccess
from tandem.protocol.renewal import PERIOD_S
from tandem.protocol.tls import TlsFiles

SOON = PERIOD_S + 1
ROLES: tuple[Literal["prefill", "decode"], ...] = ("prefill", "decode")


@pytest.fixture(scope="module")
def stranger(pki: Path) -> Authority:
    return Authority.new(pki, "stranger")


def client(ca: Authority, pair: Pair | None = None) -> TlsFiles:
    cert, key = (pair.cert, pair.key) if pair else (None, None)
    return TlsFiles(side="client", ca=ca.cert, cert=cert, key=key)


def runs(scenario: Callable[[], Awaitable[None]], seconds: float = 20) -> None:
    uvloop.run(asyncio.wait_for(scenario(), seconds))


async def text_of(rig: Rig, context: ssl.SSLContext, **fields: Any) -> str:
    async with rig.post(BODY | fields, ssl=context) as response:
        assert response.status == 200
        return await response.text()


def test_clients_are_spoken_to_over_tls(authority: Authority, stranger: Authority, pair: Pair) -> None:
    async def scenario() -> None:
        async with rigged(tls=TlsFiles(side="server", cert=pair.cert, key=pair.key)) as rig:
            assert rig.url.startswith("https://127.0.0.1:")
            trusting = client(authority).context()
            assert WORDS[0] in await text_of(rig, trusting)
            assert (await text_of(rig, trusting, stream=True)).endswith("data: [DONE]\n\n")
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await text_of(rig, client(stranger).context())
            with pytest.raises(aiohttp.ClientError):
                await rig.http.get(rig.url.replace("https", "http") + "/health")
            async with rig.http.get(rig.url + "/health", ssl=trusting) as response:
                assert response.status == 200

    runs(scenario)


def test_clients_must_show_a_certificate_where_that_is_wanted(
    authority: Authority, stranger: Authority, pair: Pair, pki: Path
) -> None:
    wanting = TlsFiles(side="server", cert=pair.cert, key=pair.key, ca=authority.cert)
    known, unknown = authority.signs(pki, "known"), stranger.signs(pki, "unknown")

    async def scenario() -> None:
        async with rigged(tls=wanting) as rig:
            assert WORDS[0] in await text_of(rig, client(authority, known).context())
            for refused in (client(authority), client(authority, unknown)):
                with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
                    await text_of(rig, refused.context())
            assert len(rig.decode.bodies) == 1

    runs(scenario)


def test_a_renewed_certificate_is_shown_without_a_restart(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    own = Pair(tmp_path / "cert", tmp_path / "key")
    own.cert.write_bytes(pair.cert.read_bytes())
    own.key.write_bytes(pair.key.read_bytes())
    trusting = client(authority).context()

    async def shown(rig: Rig) -> bytes:
        host, port = rig.url.removeprefix("https://").split(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=trusting)
        writer.close()
        return writer.get_extra_info("ssl_object").getpeercert(binary_form=True)

    async def scenario() -> None:
        async with rigged(tls=TlsFiles(side="server", cert=own.cert, key=own.key)) as rig:
            assert await shown(rig) == ssl.PEM_cert_to_DER_cert(pair.cert.read_text())
            later = authority.signs(tmp_path, "later")
            own.cert.write_bytes(later.cert.read_bytes())
            own.key.write_bytes(later.key.read_bytes())

            async def is_new() -> bool:
                return await shown(rig) == ssl.PEM_cert_to_DER_cert(later.cert.read_text())

            await asyncio.wait_for(until(is_new), SOON)

    runs(scenario)


@asynccontextmanager
async def served(urls: dict[str, tuple[str, ...]], access: WorkerAccess) -> AsyncIterator[Gateway]:
    gateway = Gateway(GatewayConfig(**urls, port=0, grace_s=0.1, access=access))
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()


def test_only_the_right_workers_and_the_right_gateway_come_together(
    authority: Authority, stranger: Authority, pair: Pair, pki: Path
) -> None:
    own, false = authority.signs(pki, "own"), stranger.signs(pki, "false")
    elsewhere = authority.signs(pki, "elsewhere", "subjectAltName=DNS:elsewhere")

    async def is_up(shown: Pair, access: WorkerAccess) -> bool:
        files = TlsFiles(side="server", cert=shown.cert, key=shown.key, ca=authority.cert)
        async with (
            running(words, tls=files.context()) as worker,
            served({"decode": (worker.url,)}, access) as gateway,
            aiohttp.ClientSession() as http,
        ):
            async with http.post(gateway.url + "/v1/completions", json=BODY) as response:
                assert worker.url not in await response.text()
                assert response.status in (200, 503)
            return not gateway.pool.down

    async def scenario() -> None:
        assert await is_up(pair, WorkerAccess(tls=client(authority, own)))
        assert not await is_up(pair, WorkerAccess(tls=client(authority)))
        assert not await is_up(pair, WorkerAccess(tls=client(authority, false)))
        assert not await is_up(pair, WorkerAccess(tls=client(stranger, own)))
        assert not await is_up(pair, WorkerAccess())
        assert not await is_up(elsewhere, WorkerAccess(tls=client(authority, own)))

    runs(scenario)


def test_certificates_do_not_go_with_workers_in_the_clear(authority: Authority) -> None:
    access = WorkerAccess(tls=client(authority))
    with pytest.raises(UsageError, match=r"^http://b:1: would be spoken to in the clear"):
        GatewayConfig(prefill=("https://a:1",), decode=("http://b:1",), access=access)


class Shielded(Instance):
    """An instance that speaks TLS and wants its clients' certificates."""

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"


@asynccontextmanager
async def shielded(model: Path, logs: Path, pair: Pair, ca: Authority) -> AsyncIterator[list[Instance]]:
    files = {"tls-cert": pair.cert, "tls-key": pair.key, "tls-client-ca": ca.cert}
    options = {"max-model-len": 256, "kv-cache-gib": 0.02, "max-num-batched-tokens": 64} | files
    instances: list[Instance] = [Shielded(f"{role}-0", role, model, logs, options) for role in ROLES]
    for one in instances:
        one.start()
    try:
        yield instances
    finally:
        for one in instances:
            one.ask_to_stop()
        await asyncio.gather(*(one.stopped() for one in instances))


@pytest.mark.full
def test_real_instances_are_served_over_mutual_tls(
    tiny_model: Path, tmp_path: Path, authority: Authority, pair: Pair, pki: Path
) -> None:
    """Health checks, both legs, and tickets that are given back; nobody without a certificate gets any of it."""
    trusted = client(authority, authority.signs(pki, "gateway"))
    body = {"prompt": "def main(", "max_tokens": 100, "ignore_eos": True, "stream": True}

    async def held(instances: list[Instance], http: aiohttp.ClientSession) -> bool:
        audits = [await one.audit(http) for one in instances]
        return any(audit[what] for audit in audits for what in ("sequences", "leases"))

    async def scenario() -> None:
        async with (
            shielded(tiny_model, tmp_path, pair, authority) as instances,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted.context())) as http,
        ):
            await asyncio.gather(*(one.serving(http) for one in instances))
            async with aiohttp.ClientSession() as bare:
                with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
                    await bare.get(f"{instances[0].url}/health", ssl=client(authority).context())
            urls = {one.role: (one.url,) for one in instances}
            async with served(urls, WorkerAccess(tls=trusted)) as gateway:
                async with http.post(gateway.url + "/v1/completions", json=body) as response:
                    assert response.headers["X-Tandem-Route"] == "apart"
                    assert (await response.text()).endswith("data: [DONE]\n\n")
                whole = body | {"stream": False}
                for _ in range(4):
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(http.post(gateway.url + "/v1/completions", json=whole), 0.02)

                async def nothing_is_held() -> bool:
                    return not await held(instances, http)

                await until(nothing_is_held)

    runs(scenario, 120)


def test_keys_are_taken_out_and_put_in_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    first = add_key(file, "first", None, None)

    async def scenario() -> None:
        async with rigged(keys=Keys.from_file(file)) as rig:

            async def lets_in(key: str) -> bool:
                async with rig.post(BODY, headers={"Authorization": f"Bearer {key}"}) as response:
                    return response.status == 200

            assert await lets_in(first)
            second = add_key(file, "second", None, None)
            await asyncio.wait_for(until(lambda: lets_in(second)), SOON)
            assert await lets_in(first)
            file.write_text(file.read_text().splitlines()[1])

            async def is_out() -> bool:
                return not await lets_in(first)

            await asyncio.wait_for(until(is_out), SOON)
            assert await lets_in(second)

    runs(scenario)


def test_workers_get_the_key_that_is_theirs_and_never_a_client_s(tmp_path: Path) -> None:
    file = tmp_path / "worker-key"
    file.write_text("w-1\n")

    async def scenario() -> None:
        async with rigged(access=WorkerAccess(api_key=file)) as rig:

            async def told() -> set[str | None]:
                async with rig.post(BODY, headers={"Authorization": "Bearer client"}) as response:
                    assert response.status == 200
                return {one.headers[-1].get("Authorization") for one in (rig.prefill, rig.decode)}

            assert await told() == {"Bearer w-1"}
            file.write_text("w-2\n")

            async def is_new() -> bool:
                return await told() == {"Bearer w-2"}

            await asyncio.wait_for(until(is_new), SOON)

    runs(scenario)


@pytest.mark.parametrize("text", ["", "two words", "umläut", "a\nb"])
def test_a_worker_key_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "worker-key"
    file.write_text(text)
    with pytest.raises(UsageError, match=f"^--worker-api-key-file {file}: holds no key"):
        WorkerAccess(api_key=file)
