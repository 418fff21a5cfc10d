"""Where a thread is, read from its Python frames: which collective, of which module, or which line of whose code.

A collective over gloo returns when all ranks have come, so its function is on the stack for as long as one is missing.
On NVIDIA and Ascend devices it returns at once, and the thread waits at the next number it reads; there the flight
recorder's last collective says how far a rank came (`last_collective`).
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from tandem.training.guard.diagnosis import Last

COLLECTIVES = re.compile(
    r"(all_reduce|reduce|all_gather|gather|reduce_scatter|scatter|broadcast|all_to_all)"
    r"(?:_single|_into_tensor|_tensor|_coalesced|_object|_object_list|_autograd)*"
    r"|barrier|monitored_barrier|send|recv|wait_tensor|init_process_group|new_group|split_group|join"
)
"""Functions in which a rank waits for others; variants count as what they are variants of."""
MODULES = (
    "torch.distributed.distributed_c10d",
    "torch.distributed._functional_collectives",
    "torch.distributed.nn.functional",
    "tandem.parallel.collectives",
)
WAITS = {"foreach_all_gather_copy_out": "all_gather", "wait_for_unshard": "all_gather"}
"""Where FSDP waits for what it began earlier."""
RECORDERS = ("_dump_nccl_trace_json", "_dump_fr_trace_json")
"""Of NCCL's collectives, and of those of other backends that keep one."""
ROOT = "the root module"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank is."""

    collective: str | None
    """Such as `all_gather`; None where it is in none."""
    module: str | None
    """Whose parameters or gradients FSDP is moving, such as `layers.3`."""
    line: str
    """Innermost function, file and line; where that is not our own code, also who of ours called it."""


def main_place() -> Place:
    """Where the main thread is now; in a backward pass that runs on threads of its own, where the first of those is."""
    frames = sys._current_frames()
    main = frames.pop(threading.main_thread().ident or 0)
    found = place(main)
    if found.collective is None and main.f_code.co_name == "_engine_run_backward":
        others = (place(frame) for ident, frame in frames.items() if ident != threading.get_ident())
        return next((other for other in others if other.collective is not None), found)
    return found


def place(innermost: FrameType) -> Place:
    """Where a thread with this stack is."""
    frames = list(_outwards(innermost))
    return Place(
        collective=next((name for frame in frames if (name := _collective(frame)) is not None), None),
        module=next((name for frame in frames if (name := _module(frame)) is not None), None),
        line=_line(frames),
    )


def last_collective() -> Last | None:
    """The newest entry of torch's flight recorder, where it keeps one (in torch 2.13 unless TORCH_FR_BUFFER_SIZE is 0).

    Its form is no promise of torch's: where it is another one, nothing is known.
    """
    c10d = sys.modules.get("torch._C._distributed_c10d")
    dumps = [getattr(c10d, name) for name in RECORDERS if hasattr(c10d, name)]
    try:
        entries = [entry for dump in dumps for entry in json.loads(dump(True, False)).get("entries", ())]
        newest = max(entries, key=lambda entry: int(entry["time_created_ns"]))
        name = str(newest["profiling_name"]).rpartition(":")[2]
        return Last(name=name, group=str(newest["process_group"][0]), number=int(newest["collective_seq_id"]))
    except (KeyError, TypeError, ValueError, RuntimeError):
        return None


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _collective(frame: FrameType) -> str | None:
    name = frame.f_code.co_name
    if name in WAITS:
        return WAITS[name]
    match = COLLECTIVES.fullmatch(name) if frame.f_globals.get("__name__") in MODULES else None
    return None if match is None else match[1] or name


def _module(frame: FrameType) -> str | None:
    group = frame.f_locals.get("self")
    if type(group).__name__ != "FSDPParamGroup":
        return None
    return getattr(group, "_module_fqn", None) or ROOT


def _line(frames: list[FrameType]) -> str:
    ours = next((frame for frame in frames if str(frame.f_globals.get("__name__")).startswith("tandem.")), frames[0])
    inner = _shown(frames[0])
    return inner if ours is frames[0] else f"{inner}, called from {_shown(ours)}"


def _shown(frame: FrameType) -> str:
    return f"{frame.f_code.co_name}, {frame.f_code.co_filename}:{frame.f_lineno}"
