"""The ranks that train one model: who this one is, how they find each other, and the few words they say.

Tensors of the model travel by FSDP's collectives over `World.mesh`; this room's own messages are numbers and short
texts. Ranks of one host meet in a file; those of several hosts at a TCP store that listens on MASTER_ADDR alone, where
`torch.distributed`'s own would listen on every interface.

Run on CPU (gloo) so far; NCCL and HCCL are the same calls on another device.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore, Store, TCPStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from tandem import errors
from tandem.errors import ProcessError, TandemError, UsageError
from tandem.parallel.collectives import BACKENDS, INTERFACES
from tandem.parallel.device import is_out_of_memory
from tandem.parallel.place import Place

MEETING_S: Final = 600.0
"""Seconds the ranks of several hosts may come apart."""
PATIENCE: Final = timedelta(minutes=30)
"""For a rank that lives but does not come to a collective; a dead one is noticed at once, a hung one by a watchdog."""

Answer = TypeVar("Answer")


class Talk(Protocol):
    """Short messages among all ranks; all of them call the same methods in the same order."""

    def gather(self, text: str) -> list[str]:
        """Every rank's text, in rank order.

        Raises:
            ProcessError: A rank is gone.
        """


class Soliloquy:
    """The talk of a rank that is alone."""

    def gather(self, text: str) -> list[str]:
        """Its own text."""
        return [text]


class GlooTalk:
    """Over a group of its own, so that it can go on beside the model's collectives, in another thread."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)

    def gather(self, text: str) -> list[str]:
        """As `Talk` says; UTF-8 and no pickle."""
        ranks = dist.get_world_size()
        # A tensor has at least a byte: a zero stands for no word.
        raw = torch.frombuffer(bytearray(text.encode() or b"\0"), dtype=torch.uint8)
        with named("a word among the ranks"):
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(ranks)]
            dist.all_gather(sizes, torch.tensor([len(raw)]), group=self._group)
            padded = torch.zeros(max(int(size) for size in sizes), dtype=torch.uint8)
            padded[: len(raw)] = raw
            told = [torch.empty_like(padded) for _ in range(ranks)]
            dist.all_gather(told, padded, group=self._group)
        return [one[: int(size)].numpy().tobytes().decode().strip("\0") for one, size in zip(told, sizes, strict=True)]


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the ranks.

    Args:
        place: Which one it is.
        device: Where its tensors lie.
        mesh: All ranks in one dimension; None for a rank that is alone.
        words: What `decided` speaks over; one thread at a time.
    """

    place: Place = field(default_factory=Place)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: DeviceMesh | None = None
    words: Talk = field(default_factory=Soliloquy)

    @property
    def rank(self) -> int:
        """Which one this process is, from 0."""
        return self.place.rank

    @property
    def ranks(self) -> int:
        """How many there are."""
        return self.place.ranks

    @property
    def leads(self) -> bool:
        """Whether it is the one that speaks and writes for all."""
        return self.place.rank == 0

    def total(self, x: Tensor) -> Tensor:
        """Replace `x` by the sum of every rank's, the same bits on all of them; returns it.

        Raises:
            ProcessError: A rank is gone.
        """
        if self.mesh is not None:
            with named("a sum over the ranks"):
                dist.all_reduce(x, group=self.mesh.get_group())
        return x

    def decided(self, decide: Callable[[], Answer]) -> Answer:
        """What the rank that leads decides, for all: files may change between one rank's look at them and another's.

        Args:
            decide: Asked on that rank alone; its answer is told as JSON, which makes a list of a tuple.

        Raises:
            ProcessError: A rank is gone.
            TandemError: What it raised, on all ranks.
        """
        if self.mesh is None:
            return decide()
        answer: Answer | None = None
        error: TandemError | None = None
        if self.leads:
            try:
                answer = decide()
            except TandemError as raised:
                error = raised
        told = [type(error).__name__, str(error)] if error else [None, answer]
        kind, text = json.loads(self.words.gather(json.dumps(told) if self.leads else "")[0])
        if kind is not None:
            raise error or getattr(errors, kind)(text)
        return cast("Answer", text)

    def talk(self) -> Talk:
        """A new channel for short messages; all ranks open theirs in the same order."""
        return Soliloquy() if self.mesh is None else GlooTalk()


@contextmanager
def joined(place: Place, device: torch.device) -> Iterator[World]:
    """Meet the other ranks, and part from them at the end.

    Args:
        place: Which one this process is.
        device: Of its kind; the rank's own number of it is chosen here.

    Raises:
        ProcessError: The others did not come.
    """
    if place.ranks == 1:
        yield World(place=place, device=device)
        return
    device = _own_device(device, place.local_rank)
    for name, interface in INTERFACES.items() if place.meeting.startswith("file:") else ():
        os.environ.setdefault(name, interface)
    with named(f"meeting the other ranks at {place.meeting}"):
        store = _store(place)
        wait_for_all(store, place)
        dist.init_process_group(
            BACKENDS.get(device.type, "gloo"),
            store=store,
            rank=place.rank,
            world_size=place.ranks,
            timeout=PATIENCE,
        )
        mesh = init_device_mesh(device.type, (place.ranks,))
    try:
        yield World(place=place, device=device, mesh=mesh, words=GlooTalk())
    finally:
        dist.destroy_process_group()


def _own_device(device: torch.device, local_rank: int) -> torch.device:
    if device.type == "cpu":
        return device
    own = torch.device(device.type, local_rank)
    torch.get_device_module(device.type).set_device(own)
    return own


def _store(place: Place) -> Store:
    kind, _, where = place.meeting.partition(":")
    if kind == "file":
        return FileStore(where, place.ranks)
    host, _, port = where.rpartition(":")
    if place.rank:
        return TCPStore(host, int(port), place.ranks, is_master=False, timeout=timedelta(seconds=MEETING_S))
    listening = listen(host, int(port))
    return TCPStore(
        host,
        int(port),
        place.ranks,
        is_master=True,
        timeout=timedelta(seconds=MEETING_S),
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )


def wait_for_all(store: Store, place: Place, patience: timedelta = PATIENCE) -> None:
    """Return when every rank is at the store.

    Raises:
        ProcessError: Some did not come; they are named.
    """
    keys = [f"there/{rank}" for rank in range(place.ranks)]
    store.set(keys[place.rank], "")
    try:
        store.wait(keys, patience)
    except dist.DistStoreError:
        missing = ", ".join(str(rank) for rank, key in enumerate(keys) if not store.check([key]))
        seconds = patience.total_seconds()
        raise ProcessError(
            f"of {place.ranks} ranks, these did not come to {place.meeting} in {seconds:g} s: {missing}; start the "
            "same line on every host, each with its NODE_RANK"
        ) from None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on one address alone.

    Raises:
        UsageError: The address is not this host's, or the port is taken.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        with closed_on_error(listening):
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(1024)
    except OSError as error:
        raise UsageError(
            f"MASTER_ADDR {host}, port {port}: cannot be listened on ({error.strerror}); name an address of the host "
            "with NODE_RANK 0, and a free MASTER_PORT"
        ) from None
    return listening


@contextmanager
def closed_on_error(listening: socket.socket) -> Iterator[None]:
    """Leave no socket open where it could not be used."""
    try:
        yield
    except OSError:
        listening.close()
        raise


@contextmanager
def named(what: str) -> Iterator[None]:
    """Give what torch raises about other ranks a name and a place; other errors pass.

    Raises:
        ProcessError: A rank is gone, or did not come.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_others_fault(error):
            raise
        reason = str(error).splitlines()[0]
        raise ProcessError(f"{what} failed ({reason}); look at the log of the rank that ended first") from None


def is_others_fault(error: RuntimeError) -> bool:
    """Whether a collective failed, and not what a rank computes by itself.

    By the error's type, or, since gloo raises plain errors, by where it was raised: within torch.distributed, which
    stands around all of FSDP's collectives and of ours. Memory that runs out there is no other rank's fault.
    """
    if isinstance(error, dist.DistError):
        return True
    return _raised_in(error).startswith("torch.distributed") and not is_out_of_memory(error)


def _raised_in(error: BaseException) -> str:
    """The module of the innermost function that an error has come through."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals["__name__"])
