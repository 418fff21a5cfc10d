"""The command of a real instance, and what it says it holds."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp

from chaos.router.mock.wire import MODEL

EngineName = Literal["tandem", "vllm"]
USAGE = re.compile(r"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc)\{.*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One instance as its front starts it."""

    name: EngineName
    role: str
    model: Path
    port: int
    kv_port: int
    lease_s: float
    url: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", f"http://127.0.0.1:{self.port}")

    @property
    def command(self) -> list[str]:
        """What starts it."""
        return self._vllm if self.name == "vllm" else self._tandem

    @property
    def environment(self) -> dict[str, str]:
        """Beside what its front has."""
        one = {"OMP_NUM_THREADS": "1"}
        if self.name == "tandem":
            return one
        side_channel = {"VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1", "VLLM_NIXL_SIDE_CHANNEL_PORT": str(self.kv_port)}
        return one | side_channel | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

    @property
    def _tandem(self) -> list[str]:
        given = {
            "role": self.role,
            "port": self.port,
            "kv-port": self.kv_port,
            "device": "cpu",
            "served-model-name": MODEL,
            "max-model-len": 512,
            "kv-cache-gib": 0.05,
            "max-num-seqs": 64,
            "max-num-batched-tokens": 256,
            "kv-lease-seconds": self.lease_s,
        }
        options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        return [sys.executable, "-m", "tandem", "instance", str(self.model), *options]

    @property
    def _vllm(self) -> list[str]:
        found = shutil.which("vllm")
        assert found is not None, "vllm is not in PATH"
        connector = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}
        given = {
            "host": "127.0.0.1",
            "port": self.port,
            "served-model-name": MODEL,
            "dtype": "float32",
            "max-model-len": 512,
            "max-num-seqs": 64,
            "kv-transfer-config": json.dumps(connector),
        }
        options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        return [found, "serve", str(self.model), "--enforce-eager", "--no-enable-prefix-caching", *options]

    async def held(self, http: aiohttp.ClientSession) -> dict[str, Any]:
        """What it holds: requests by kind as `active`, `leases`, `reservations`."""
        return await (self._held_by_vllm(http) if self.name == "vllm" else self._held_by_tandem(http))

    async def _held_by_tandem(self, http: aiohttp.ClientSession) -> dict[str, Any]:
        async with http.get(f"{self.url}/tandem/audit") as response:
            audit = await response.json()
        wrong = {name: audit[name] for name in ("sequences", "pulls", "leaked", "torn", "doubly_owned")}
        return {"active": wrong, "leases": audit["leases"], "reservations": audit["reservations"]}

    async def _held_by_vllm(self, http: aiohttp.ClientSession) -> dict[str, Any]:
        async with http.get(f"{self.url}/metrics") as response:
            page = dict(USAGE.findall(await response.text()))
        requests = {name: int(float(page.get(name, 0))) for name in ("num_requests_running", "num_requests_waiting")}
        # Blocks of nobody's request are those of tickets.
        leases = int(float(page.get("kv_cache_usage_perc", 0)) > 0 and not any(requests.values()))
        return {"active": requests, "leases": leases, "reservations": 0}
