"""What the ranks of a tensor-parallel group say to each other: sums and gathers of tensors.

Ranks find each other in a file that all of them can open, and connect on the loopback interface: they are processes of
one host. `torch.distributed`'s other way, a TCP store, listens on every interface.

Run on CPU (gloo) so far; NCCL and HCCL are the same calls on another device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore

from tandem.errors import ProcessError

BACKENDS = {"cuda": "nccl", "npu": "hccl"}
INTERFACES = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "HCCL_SOCKET_IFNAME": "lo"}
"""Where the backends connect, unless the user has decided."""
TIMEOUT = timedelta(minutes=5)
"""For a rank that lives but does not come to a collective; a dead one is noticed at once."""


class Group(Protocol):
    """Ranks that compute one model together; all of them call the same methods in the same order."""

    @property
    def rank(self) -> int:
        """Which one this process is, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """Replace `x` by the sum of every rank's, the same bits on all of them; returns it.

        Raises:
            ProcessError: A rank is gone.
        """

    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's [..., n], side by side in rank order: [..., size * n].

        Raises:
            ProcessError: A rank is gone.
        """


@dataclass(frozen=True)
class Solo:
    """The group of one process."""

    rank: int = 0
    size: int = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        """`x` itself."""
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """`x` itself."""
        return x


class ProcessGroup:
    """One rank's side of a group of processes.

    Args:
        device: Where this rank's tensors lie.
        rank: Which one this is.
        size: How many there are.
    """

    def __init__(self, device: torch.device, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self._device = device
        self._joined: dist.ProcessGroup | None = None

    def meet(self, meeting: str) -> None:
        """Be where the others will come; returns at once.

        Args:
            meeting: Path of a file that all ranks can reach, empty or not there at first. What lies there when the
                group is let go of is written to, so it must not be another file.

        Raises:
            ProcessError: There is no such place.
        """
        # Its folder must be there: the store tries for ever otherwise, and the whole process stands still meanwhile.
        if not Path(meeting).parent.is_dir():
            raise ProcessError(f"rank {self.rank} of {self.size}: {meeting} is gone; restart the instance")
        with self._named("meeting the other ranks"):
            self._store = FileStore(meeting, self.size)
            self._store.set_timeout(TIMEOUT)

    def join(self) -> None:
        """Connect with the other ranks where they meet; returns when all have.

        Raises:
            ProcessError: One did not.
        """
        with self._named("joining the other ranks"):
            for name, interface in INTERFACES.items():
                os.environ.setdefault(name, interface)
            self._joined = self._gloo(self._store) if self._device.type == "cpu" else self._on_device(self._store)
        self.all_reduce(torch.zeros(1, device=self._device))

    def all_reduce(self, x: Tensor) -> Tensor:
        """As `Group` says."""
        assert self._joined is not None
        with self._named("a sum over the ranks"):
            self._joined.allreduce([x]).wait()
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """As `Group` says."""
        assert self._joined is not None
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        with self._named("a gather from the ranks"):
            self._joined.allgather([parts], [x.contiguous()]).wait()
        return torch.cat(parts, dim=-1)

    def abort(self) -> None:
        """End whatever waits for a rank that is gone; from any thread, and more than once."""
        # Of gloo nothing has to be ended: it fails as soon as the rank's connections close. Aborted while it waits, it
        # hangs or takes the process with it (torch 2.13).
        if self._joined is not None and self._device.type != "cpu":
            self._joined.abort()

    def _gloo(self, store: FileStore) -> dist.ProcessGroup:
        # Made by hand, so that one process can be in several groups; `torch.distributed` itself has one for all.
        group = dist.ProcessGroup(store, self.rank, self.size)
        gloo = dist.ProcessGroup.BackendType.GLOO
        backend = dist.ProcessGroupGloo(store, self.rank, self.size, TIMEOUT)
        group._set_default_backend(gloo)
        group._register_backend(self._device, gloo, backend)
        return group

    def _on_device(self, store: FileStore) -> dist.ProcessGroup:
        """Not run yet."""
        torch.get_device_module(self._device.type).set_device(self._device)
        dist.init_process_group(
            BACKENDS[self._device.type], store=store, rank=self.rank, world_size=self.size, timeout=TIMEOUT
        )
        assert dist.group.WORLD is not None
        return dist.group.WORLD

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ProcessError(
                f"rank {self.rank} of {self.size}: {what} failed ({reason}); restart the instance"
            ) from None
