"""One model on several ranks: the first is this process, which tells the others every step and computes it with them.

RankedModel ──Step──┬──▶ LocalModel           rank 0, this process
                    ├──▶ tandem.engine.rank   rank 1
                    └──▶ ...
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from tandem.engine.followers import Followers
from tandem.engine.local_model import LocalModel
from tandem.engine.rank import Meeting, Task, use_threads
from tandem.engine.rank_memory import SharedFile, shared
from tandem.engine.step import Step
from tandem.errors import ProcessError
from tandem.kv.cache import KVCache
from tandem.model.families import read_config
from tandem.model.folder import load
from tandem.model.sharding import narrowed
from tandem.parallel.collectives import ProcessGroup

THREADS = "OMP_NUM_THREADS"


class RankedModel:
    """Computes steps together with the other ranks' processes; `start_model` makes it.

    Args:
        own: The first rank's part.
        followers: The other ranks, loaded and connected.
        until_closed: What `close` undoes.
    """

    def __init__(self, own: LocalModel, followers: Followers, until_closed: ExitStack) -> None:
        self._own = own
        self._followers = followers
        self._until_closed = until_closed

    @property
    def vocab_size(self) -> int:
        """Number of token ids the model knows."""
        return self._own.vocab_size

    def logits(self, step: Step) -> Tensor | None:
        """[rows, V], or None where no row is wanted.

        Raises:
            ProcessError: A rank died; nothing can be computed any more.
        """
        try:
            self._followers.send(step)
            return self._own.logits(step)
        except (OSError, RuntimeError, ProcessError) as error:
            raise self._followers.cause(error) from error

    def watch(self, on_death: Callable[[ProcessError], object]) -> None:
        """Have `on_death` called once when a rank dies, also between steps, from a thread of its own."""
        self._followers.watch(on_death)

    def close(self) -> None:
        """End the other ranks; no step may be under way. May be called again."""
        self._until_closed.close()


def start_model(folder: Path, caches: Sequence[KVCache]) -> LocalModel | RankedModel:
    """Load a model folder over as many ranks as there are caches, in the dtype of these.

    Args:
        folder: Holds the model.
        caches: One per rank, in order, from `rank_caches`.

    Raises:
        ModelFolderError: The folder cannot be loaded.
        UsageError: The model cannot be shared out among so many ranks.
        ProcessError: A rank died or failed meanwhile.
    """
    own, ranks = caches[0], len(caches)
    if ranks == 1:
        return LocalModel(load(folder, own.device, own.layout.torch_dtype), own)
    narrowed(read_config(folder), ranks - 1, ranks)  # refused before anything is started
    with ExitStack() as stack:
        tasks = _tasks(folder, caches)
        group = ProcessGroup(own.device, 0, ranks)
        stack.callback(group.abort)
        # In memory and without a name: nothing of it stays behind, however this process ends. Never closed, since the
        # group writes to what lies under its number when it is let go of.
        meeting = os.memfd_create("meeting")
        files = [task.memory.file for task in tasks if isinstance(task.memory, SharedFile)]
        followers = Followers(tasks, [meeting, *files], group.abort)
        stack.callback(followers.close)
        use_threads(tasks[0].threads)
        decoder = load(folder, own.device, own.layout.torch_dtype, group, followers.check)
        followers.wait_until_loaded()
        _connect(group, followers, Meeting(path=f"/proc/self/fd/{meeting}"))
        return RankedModel(LocalModel(decoder, own), followers, stack.pop_all())


def _connect(group: ProcessGroup, followers: Followers, meeting: Meeting) -> None:
    def join() -> None:
        followers.send(meeting)
        group.join()

    group.meet(meeting.path)
    followers.alongside(join)


def _tasks(folder: Path, caches: Sequence[KVCache]) -> list[Task]:
    """What every rank but the first has to know."""
    return [
        Task(
            rank=rank,
            ranks=len(caches),
            folder=str(folder),
            device=str(cache.device),
            layout=cache.layout,
            blocks=len(cache.blocks),
            memory=shared(cache),
            threads=_threads(len(caches)) if cache.device.type == "cpu" else None,
        )
        for rank, cache in enumerate(caches)
        if rank > 0
    ]


def _threads(ranks: int) -> int | None:
    """Each rank's share of the processors, unless the user has decided."""
    return None if THREADS in os.environ else max(1, len(os.sched_getaffinity(0)) // ranks)
