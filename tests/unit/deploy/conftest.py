"""A real, tiny instance for deployments to run: an HTTP server with a lifeline, told by its name how to behave."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tandem.deploy.local import CommandBuilder
from tandem.deploy.port import free_ports
from tandem.topology.topology import Instance, Role, Topology

SERVER = """
import http.server, signal, subprocess, sys, time
from tandem.protocol.lifeline import hold_lifeline
name, host, port = sys.argv[1:]
hold_lifeline(grace=1)
print(f"{name} starts", flush=True)
if "broken" in name:
    print("\\n".join(f"line {i}" for i in range(100)))
    sys.exit(7)
if "stubborn" in name:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: (print(f"{name} ends", flush=True), sys.exit(0)))
if "parent" in name:
    grandchild = subprocess.Popen(["sleep", "300"])
    print(f"grandchild {grandchild.pid}", flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if "never" in name or time.monotonic() - began < 0.3 else 200)
        self.end_headers()
    def log_message(self, *_):
        pass
began = time.monotonic()
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""


@pytest.fixture
def server_command(tmp_path: Path) -> CommandBuilder:
    script = tmp_path / "server.py"
    script.write_text(SERVER)

    def command(_: Topology, instance: Instance) -> list[str]:
        return [sys.executable, str(script), instance.name, instance.host, str(instance.port)]

    return command


@pytest.fixture
def one_of_each() -> Callable[..., Topology]:
    """Makes a topology of a gateway, a prefill and a decode instance, named as told."""

    def make(prefill: str = "prefill-0", decode: str = "decode-0", gateway: str = "gateway") -> Topology:
        names = {gateway: Role.GATEWAY, decode: Role.DECODE, prefill: Role.PREFILL}
        ports = free_ports("127.0.0.1", len(names))
        return Topology(
            model="m",
            instances=tuple(
                Instance(name=name, role=role, host="127.0.0.1", port=port)
                for (name, role), port in zip(names.items(), ports, strict=True)
            ),
        )

    return make
