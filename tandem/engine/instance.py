"""One instance as a process: bind, load, serve, stop.

Ports are bound before the model is loaded, so a port in use is known at once; nobody is listened to before the model
can answer.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

import uvloop
from aiohttp import web

from tandem.engine.assembly import assemble
from tandem.engine.config import TRANSPORTS, InstanceConfig
from tandem.engine.driver import Driver
from tandem.engine.server import InstanceServer
from tandem.errors import ProcessError, UsageError
from tandem.kv.server import TransferServer
from tandem.protocol.http import app_runner
from tandem.protocol.renewal import Renewal
from tandem.protocol.stop_signals import on_stop
from tandem.protocol.tls import TlsFiles

BACKLOG = 1024
"""Connections that may wait to be accepted."""


def run_instance(config: InstanceConfig, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM, SIGHUP or Ctrl-C.

    Args:
        config: What to serve and how.
        say: Told about every phase of the start, one line each.

    Raises:
        UsageError: A port is taken or an option cannot be honoured.
        ModelFolderError: The model cannot be loaded.
        ProcessError: A step failed, so nothing can be served any more.
    """
    with _bind(config.host, config.port, "--port") as http, _bind(config.host, config.kv_port, "--kv-port") as kv:
        say(f"loading {config.model}")
        driver, server, sizes = assemble(config, kv.getsockname()[1])
        say(sizes)
        uvloop.run(_serve(config, http, kv, driver, server, say))


async def _serve(
    config: InstanceConfig,
    http: socket.socket,
    kv: socket.socket,
    driver: Driver,
    server: InstanceServer,
    say: Callable[[str], None],
) -> None:
    stop = asyncio.Event()
    on_stop(stop.set)
    driver.start()
    transfers = TransferServer(driver.holder, kv, config.transfer_timeout, TRANSPORTS[config.kv_transport])
    runner = app_runner(server.application(), grace=1.0)
    name = f"{config.role} instance at {_url(http, config.tls)}"
    renewal = Renewal()
    context = config.tls.kept_new(renewal) if config.tls else None
    renewing = asyncio.create_task(renewal.run())
    try:
        await runner.setup()
        _listen(kv, "--kv-port")
        await transfers.start()
        _listen(http, "--port")
        await web.SockSite(runner, http, ssl_context=context).start()
        say(f"{name} is ready")
        failure = await _first(stop, driver)
    finally:
        renewing.cancel()
        await driver.stop()
        await transfers.stop()
        await runner.cleanup()
    if isinstance(failure, ProcessError):
        raise ProcessError(f"{name}: {failure}") from failure
    if failure is not None:
        raise ProcessError(f"{name}: a step failed: {failure}; its log has the traceback") from failure


def _listen(sock: socket.socket, option: str) -> None:
    """Two processes may both bind a port; the second one to listen on it is refused, here and not by the event loop."""
    host, port = sock.getsockname()[:2]
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        message = f"{option} {port} on {host} was taken meanwhile ({error.strerror}); choose another"
        raise UsageError(message) from None


async def _first(stop: asyncio.Event, driver: Driver) -> BaseException | None:
    """Wait for the signal to stop, or for the engine's failure, which is returned."""
    assert driver.failure is not None
    driver.failure.add_done_callback(lambda _: stop.set())
    await stop.wait()
    return driver.failure.result() if driver.failure.done() else None


def _bind(host: str, port: int, option: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(f"--host {host}: is not an address of this machine; use one that is") from None
        raise UsageError(f"{option} {port} on {host} cannot be bound ({error.strerror}); choose another") from None
    return sock


def _url(sock: socket.socket, tls: TlsFiles | None) -> str:
    host, port = sock.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
