"""`LiveBytes`: how many bytes of tensors are alive while code runs, and the most there were in each of its phases.

Meant for fake tensors, which have shapes and lifetimes but no memory, so that a step of any model can be watched on any
machine in a moment. Questions about values, which fake tensors do not have, get the answer that takes most memory:
every target counts, and every expert gets its share of the tokens.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

LARGE = 32 * 2**20
"""Bytes from which glibc gives every piece pages of its own and takes them back at once; smaller ones come from its
heap, which has holes (mallopt(3), M_MMAP_THRESHOLD)."""

SCRATCH = {aten.logsumexp.default}
"""Operators that make a tensor as large as their first argument and drop it again, where nobody sees it."""


@dataclass(frozen=True)
class Snapshot:
    """What was alive when a phase had most."""

    gradients: int = 0
    other: int = 0
    """Neither gradient nor known from the beginning."""
    small: int = 0
    """Of both, what is in pieces below `LARGE`."""

    @property
    def total(self) -> int:
        """Both."""
        return self.gradients + self.other

    def plus(self, more: Snapshot, times: int) -> Snapshot:
        """This and `times` as much again of another one."""
        pairs = zip(astuple(self), astuple(more), strict=True)
        return Snapshot(*(mine + times * other for mine, other in pairs))


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is made within the block; tensors that were there before are not counted.

    Args:
        parameters: Whose gradients are told apart; not counted themselves.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most: dict[str, Snapshot] = {}
        """Phase -> what was alive at its highest."""
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._gradients: set[int] = set()
        self._answers: dict[int, int] = {}
        self._live = self._live_gradients = self._live_small = 0
        self._phase = ""
        for parameter in parameters:
            self.leave_out(parameter)
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._accumulated)  # type: ignore[no-untyped-call]

    def begin(self, phase: str) -> None:
        """What comes now belongs to `phase`."""
        self._phase = phase
        self._note()

    def leave_out(self, tensor: Tensor) -> None:
        """Do not count a tensor that was there before."""
        storage = tensor.untyped_storage()
        self._known[storage._cdata] = weakref.ref(storage)

    def mark(self, name: str) -> None:
        """Keep what is alive now, under a name of its own."""
        self.most[name] = self.now

    @property
    def now(self) -> Snapshot:
        """What is alive."""
        return self._snapshot(0)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it makes; called by torch."""
        if func in SCRATCH:
            self._note(args[0].nbytes)
        out = self._answer(func, args, kwargs or {})
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return out

    def _answer(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the operation gives, or the answer with most memory where it would have to look at values."""
        if func is aten._local_scalar_dense.default:
            return self._answers.get(args[0].untyped_storage()._cdata, 1)
        if func is aten.nonzero.default:
            return torch.empty(args[0].numel(), args[0].dim(), dtype=torch.int64, device=args[0].device)
        if func is aten.bincount.default:
            counts = torch.empty(kwargs.get("minlength") or args[2], dtype=torch.int64, device=args[0].device)
            self._answers[counts.untyped_storage()._cdata] = -(-args[0].numel() // len(counts))
            return counts
        return func(*args, **kwargs)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known[key] = weakref.ref(storage, self._forget(key, size))
        self._live += size
        self._live_small += size if size < LARGE else 0
        self._note()

    def _forget(self, key: int, size: int) -> Callable[[object], None]:
        def forget(_: object) -> None:
            del self._known[key]
            self._live -= size
            self._live_small -= size if size < LARGE else 0
            if key in self._gradients:
                self._gradients.remove(key)
                self._live_gradients -= size

        return forget

    def _accumulated(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        if storage._cdata in self._known and storage._cdata not in self._gradients:
            self._gradients.add(storage._cdata)
            self._live_gradients += storage.nbytes()

    def _note(self, scratch: int = 0) -> None:
        most = self.most.get(self._phase)
        if most is None or self._live + scratch > most.total:
            self.most[self._phase] = self._snapshot(scratch)

    def _snapshot(self, scratch: int) -> Snapshot:
        small = self._live_small + (scratch if scratch < LARGE else 0)
        return Snapshot(self._live_gradients, self._live - self._live_gradients + scratch, small)
