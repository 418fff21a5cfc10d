"""`vllm serve` as an instance of a service: its command line and its environment.

vLLM is a program of its own, with an environment of its own: the `vllm` that PATH finds is started, nothing of it is
imported.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from tandem.errors import UsageError
from tandem.launch.connector import Connector, Device
from tandem.protocol.lifeline import leave_watcher

OWN: Final = (
    "--model", "--host", "--port", "--served-model-name", "--tensor-parallel-size", "-tp", "--kv-transfer-config",
)  # fmt: skip
"""What is set here, and may not be set again by further flags."""
UNSEEN: Final = ("--config",)
"""A file that may say the same where it is not seen here."""
ANYWHERE: Final = ("", "0.0.0.0", "::")  # noqa: S104 - named to be recognised, not to be bound
CACHE: Final = "--kv-cache-memory-bytes"
CPU_CACHE_BYTES: Final = 2**30
"""As our own instances take on a CPU; vLLM would take most of the host's memory, for every instance."""

DEFAULTS: Final = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
"""Nothing is downloaded at a start, and nobody is told of it."""
CPU_DEFAULTS: Final = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""Else every instance of a host binds its threads to the same first processors."""


@dataclass(frozen=True, kw_only=True)
class VllmServer:
    """One `vllm serve`.

    Raises:
        UsageError: A further flag says what is set here, or a value is out of range.
    """

    model: Path
    host: str
    """Address that it listens on."""
    own_host: str
    """Address at which the others reach it."""
    port: int
    names: Sequence[str]
    """Names it serves."""
    ranks: int
    """Its tensor-parallel size."""
    device: Device
    connector: Connector | None
    flags: Sequence[str] = ()
    """Further flags, handed on as they are."""

    def __post_init__(self) -> None:
        for flag in map(flag_name, self.flags):
            if any(sets(flag, own) for own in OWN) or flag in UNSEEN:
                raise UsageError(f"{flag}: tandem sets this for the instance; leave it out of the flags for vllm serve")
        if not 0 < self.port < 2**16:
            raise UsageError(f"--port {self.port}: is no port; choose one from 1 to 65535")
        if self.ranks < 1:
            raise UsageError(f"--tensor-parallel-size {self.ranks}: is no number of devices; give 1 or more")
        if self.connector is not None and self.own_host in ANYWHERE:
            raise UsageError(
                f"{self.own_host or 'an empty host'}: the other side cannot reach this instance there; "
                "name this host's own address with --kv-host"
            )

    def command(self) -> list[str]:
        """Program and arguments.

        Raises:
            UsageError: There is no `vllm`.
        """
        hand_off = [] if self.connector is None else ["--kv-transfer-config", json.dumps(self.connector.config)]
        return [
            *(vllm_program(), "serve", str(self.model)),
            *("--host", self.host, "--port", str(self.port)),
            *("--served-model-name", *self.names),
            *("--tensor-parallel-size", str(self.ranks)),
            *hand_off,
            *self._cache(),
            *self.flags,
        ]

    def _cache(self) -> Sequence[str]:
        said = any(sets(flag_name(flag), CACHE) for flag in self.flags)
        return () if said or self.device != "cpu" else (CACHE, str(CPU_CACHE_BYTES))

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """The whole environment; what the user has set stays, but for the hand-off's address and port."""
        defaults = DEFAULTS | {"VLLM_HOST_IP": self.own_host} | (CPU_DEFAULTS if self.device == "cpu" else {})
        hand_off = {} if self.connector is None else dict(self.connector.environment)
        return {**defaults, **given, **hand_off}

    def become(self) -> NoReturn:
        """Turn this process into it; signals, output and process id stay what they are.

        Raises:
            UsageError: There is no `vllm`, or it cannot be run.
        """
        command, environment = self.command(), self.environment(os.environ)
        leave_watcher()
        try:
            os.execve(command[0], command, environment)  # noqa: S606 - a list, and no shell is wanted
        except OSError as error:
            raise UsageError(f"{command[0]}: cannot be run ({error.strerror}); install vLLM again") from None


def flag_name(word: str) -> str:
    """A word of a command line as vLLM reads it: without its value, with dashes."""
    return word.partition("=")[0].replace("_", "-")


def sets(flag: str, name: str) -> bool:
    """Whether vLLM takes a flag for one of that name, shortened, or a part of it (`--name.part`)."""
    return flag == name or flag.startswith(f"{name}.") or (len(flag) > 2 and flag[:2] == "--" and name.startswith(flag))


def vllm_program() -> str:
    """The `vllm` of PATH.

    Raises:
        UsageError: There is none.
    """
    if (found := shutil.which("vllm")) is None:
        raise UsageError(
            "vllm: is not in PATH; install vLLM (on Ascend with vllm-ascend) in an environment of its own, and put its "
            "bin folder into PATH"
        )
    return found
