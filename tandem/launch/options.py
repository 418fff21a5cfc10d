"""The start command's flags as values, parsed by the table of all flags."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

from tandem.errors import UsageError
from tandem.launch.flag import Flag, Kind
from tandem.launch.flags import FLAGS
from tandem.topology.topology import Engine

COMMAND = "tandem serve --from-rank-table"
END = "--"
"""Ends our flags; what follows is for vLLM."""

DESCRIPTION = """\
Start the prefill, decode or scheduler role that a rank table gives this process. Which one follows from the local
table; the environment says where the tables are (GLOBAL_RANK_TABLE_FILE_PATH, RANK_TABLE_FILE_PATH) and, to the
scheduler alone, the instances' ports (NODE_PORTS) and the API it speaks (USE_OPENAI: 1 for OpenAI's, 0 for vLLM's own).
"""
EPILOG = (
    "Every flag of vLLM 0.5.0 that is not listed here is accepted as needless or refused by name: docs/vllm-flags.md"
)

MOST = 2**31
"""Over every number that makes sense."""
BLOCK_SIZE = 16
"""vLLM 0.5.0's."""


def whole(text: str) -> int:
    """A whole number as everybody writes it: Python's `1_000` and other scripts' digits are none."""
    if not re.fullmatch("-?[0-9]+", text):
        raise ValueError
    return int(text)


def number(text: str) -> float:
    """A finite number."""
    if not math.isfinite(value := float(text)):
        raise ValueError
    return value


TYPES: Mapping[Kind, Callable[[str], object]] = {"text": str, "whole": whole, "number": number, "texts": str}
METAVARS = {"text": "TEXT", "whole": "N", "number": "X", "texts": "TEXT"}
LEVELS = ("critical", "error", "warning", "info", "debug", "trace")
DTYPES = {"half": "float16", "float": "float32"}
"""vLLM's other names for two of them."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is implemented of the flags, with vLLM 0.5.0's defaults; the words are those of `FLAGS`."""

    model: str = ""
    dtype: str = "auto"
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    block_size: int | None = None
    """None leaves it to the engine: `BLOCK_SIZE` in ours, in vLLM what suits the device."""
    enable_prefix_caching: bool = False
    gpu_memory_utilization: float = 0.9
    max_num_batched_tokens: int | None = None
    max_num_seqs: int = 256
    quantization: str = "None"
    device: Literal["auto", "cpu", "cuda", "npu"] = "auto"
    enable_chunked_prefill: bool = False
    served_model_name: Sequence[str] = ()
    host: str | None = None
    port: int = 8000
    uvicorn_log_level: str = "info"
    global_rank_table: str | None = None
    rank_table: str | None = None
    kv_cache_gib: float | None = None
    kv_port: int = 0
    ready_timeout: float | None = None
    engine: Engine = "native"
    needless: Sequence[str] = ()
    """Those that were given, which another engine may have a use for."""
    vllm_flags: Sequence[str] = ()
    """What follows `--`: flags for `vllm serve`, handed on as they are."""

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError("--model: is missing; give the model folder")
        for name, value, allowed in self._ranges():
            if value is not None and value not in allowed:
                last = "" if allowed.stop == MOST else f" to {allowed.stop - 1}"
                raise UsageError(f"--{name} {value}: is out of range; give a number from {allowed.start}{last}")
        if not all(self.names):
            raise UsageError("--served-model-name: is empty; give a name, or leave it out")
        if self.ready_timeout is not None and self.ready_timeout <= 0:
            raise UsageError(f"--ready-timeout {self.ready_timeout:g}: is no time; give seconds, or leave it out")
        require_one_of("--uvicorn-log-level", self.uvicorn_log_level, LEVELS)
        require_one_of("--device", self.device, ("auto", "cpu", "cuda", "npu"))
        require_one_of("--engine", self.engine, get_args(Engine))
        if self.vllm_flags and self.engine != "vllm":
            raise UsageError("--: what follows is for vllm serve; give --engine vllm, or leave it out")
        object.__setattr__(self, "dtype", DTYPES.get(self.dtype, self.dtype))

    def _ranges(self) -> Iterator[tuple[str, int | None, range]]:
        yield "port", self.port, range(2**16)
        yield "kv-port", self.kv_port, range(2**16)
        yield "max-model-len", self.max_model_len, range(1, MOST)
        yield "max-num-seqs", self.max_num_seqs, range(1, MOST)
        yield "max-num-batched-tokens", self.max_num_batched_tokens, range(1, MOST)
        yield "tensor-parallel-size", self.tensor_parallel_size, range(1, MOST)
        yield "block-size", self.block_size, range(1, MOST)

    @property
    def names(self) -> tuple[str, ...]:
        """The names clients may ask for."""
        return tuple(self.served_model_name) or (self.model,)

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Options:
        """Read a command line.

        Raises:
            UsageError: A flag is refused, unknown or has a wrong value; the message names it.
        """
        words = list(arguments)
        end = words.index(END) if END in words else len(words)
        require_whole_names(words[:end])
        given, unknown = build_parser().parse_known_args(words[:end])
        if unknown:
            name = unknown[0].partition("=")[0]
            raise UsageError(f"{name}: is no flag of vLLM 0.5.0 nor of tandem; see `{COMMAND} --help`")
        return cls(**vars(given), vllm_flags=tuple(words[end + 1 :]))


def require_one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse another value.

    Raises:
        UsageError: Naming the flag and what it takes.
    """
    if value not in allowed:
        raise UsageError(f"{name} {value}: unknown; choose {', '.join(allowed)}")


def require_whole_names(words: Sequence[str]) -> None:
    """Refuse short flags that are none: argparse would take `-t 2` for `-tp 2`.

    Raises:
        UsageError: Naming the first.
    """
    known = {name for flag in FLAGS for name in flag.names} | {"-h"}
    for word in words:
        if re.match("-[A-Za-z]", word) and (name := word.partition("=")[0]) not in known:
            raise UsageError(f"{name}: is no flag of vLLM 0.5.0 nor of tandem; see `{COMMAND} --help`")


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        """Say it as every other command does."""
        raise UsageError(f"{message.removeprefix('argument ')}; see `{COMMAND} --help`")


class Refuse(argparse.Action):
    """Ends the parse at a flag that is not supported, unless its value asks for nothing."""

    def __init__(self, *, flag: Flag, **settings: Any) -> None:
        super().__init__(**settings)
        self._flag = flag

    def __call__(self, parser: argparse.ArgumentParser, given: argparse.Namespace, values: Any, _: Any = None) -> None:
        """Look at the values."""
        if len(values) != 1 or values[0] not in self._flag.accepted:
            raise UsageError(self._flag.refusal())


class Pass(argparse.Action):
    """Takes note that a needless flag was given."""

    def __call__(
        self, parser: argparse.ArgumentParser, given: argparse.Namespace, values: Any, name: str | None = None
    ) -> None:
        """Leave everything else as it is."""
        given.needless = (*getattr(given, "needless", ()), name)


def build_parser() -> Parser:
    """A parser of every flag; what is not given is left out of the result."""
    parser = Parser(
        prog=COMMAND,
        usage=f"{COMMAND} --model=MODEL [FLAG ...] [-- FLAG-OF-VLLM-SERVE ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for flag in FLAGS:
        parser.add_argument(*flag.names, **settings_of(flag))
    return parser


def settings_of(flag: Flag) -> dict[str, Any]:
    """How argparse is told about a flag."""
    match flag.status:
        case "refused":
            return {"action": Refuse, "flag": flag, "nargs": "*", "help": argparse.SUPPRESS}
        case "needless":
            value = {"nargs": 0} if flag.kind == "switch" else {"type": TYPES[flag.kind]}
            return {"action": Pass, "help": argparse.SUPPRESS, **value}
    if flag.kind == "switch":
        return {"action": "store_true", "help": flag.says}
    several = "+" if flag.kind == "texts" else None
    return {"type": TYPES[flag.kind], "help": flag.says, "nargs": several, "metavar": METAVARS[flag.kind]}
