"""A rank but the first, as a process of its own: loads its part of the model, then computes every step it is told.

    first rank                               python -m tandem.engine.rank DESCRIPTOR
    Task ────────────────────────────────►  load
         ◄──────────────────────────────── Report
    Meeting ─────────────────────────────►  join
    Step ────────────────────────────────►  forward, with collectives
    end  ────────────────────────────────►  exit

It holds nothing that is worth saving: the first rank kills it when the instance stops, and if the first rank itself is
gone it ends by its lifeline (`protocol/lifeline.py`).
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import msgspec
import torch

from tandem.engine.channel import Channel
from tandem.engine.local_model import LocalModel
from tandem.engine.rank_memory import Shared, opened
from tandem.engine.step import Step
from tandem.errors import ProcessError, TandemError
from tandem.kv.cache import CacheLayout
from tandem.model.folder import load
from tandem.parallel.collectives import ProcessGroup
from tandem.protocol.lifeline import hold_lifeline


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank has to know."""

    rank: int
    ranks: int
    folder: str
    device: str
    layout: CacheLayout
    """Of this rank's cache."""
    blocks: int
    memory: Shared
    """Where the cache lies."""
    threads: int | None
    """That it computes with; None leaves it to torch."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of loading."""

    error: str | None = None


class Meeting(msgspec.Struct, frozen=True, kw_only=True):
    """Where all ranks that have loaded find each other."""

    path: str
    """Of a file that they have inherited under the same number."""


def main(descriptor: int) -> int:
    """Run until the first rank says that it is over; returns the exit code."""
    hold_lifeline()
    channel = Channel(socket.socket(fileno=descriptor))
    task = channel.receive(Task)
    if task is None:
        return 1
    try:
        group, model = _loaded(task)
    except TandemError as error:
        channel.send(Report(error=str(error)))
        return _until_ended(channel)
    channel.send(Report())
    meeting = channel.receive(Meeting)
    if meeting is None:
        return 1
    try:
        group.meet(meeting.path)
        group.join()
        while (step := channel.receive(Step)) is not None:
            model.logits(step)
    except ProcessError:
        return _until_ended(channel)
    return 0


def use_threads(count: int | None) -> None:
    """Compute with so many threads; None leaves it to torch."""
    if count is not None:
        torch.set_num_threads(count)


def _loaded(task: Task) -> tuple[ProcessGroup, LocalModel]:
    use_threads(task.threads)
    device = torch.device(task.device)
    group = ProcessGroup(device, task.rank, task.ranks)
    cache = opened(task.memory, task.layout, task.blocks, device)
    return group, LocalModel(load(Path(task.folder), device, task.layout.torch_dtype, group), cache)


def _until_ended(channel: Channel) -> int:
    """Wait to be killed: a rank that fails for another's sake must not seem to be the one that died."""
    while channel.receive(Step) is not None:
        pass
    return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
