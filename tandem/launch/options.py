"""The start command's flags as values, parsed by the table of all flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

from tandem.errors import UsageError
from tandem.launch.flag import Flag
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

BLOCK_SIZE = 16
"""vLLM 0.5.0's."""

TYPES = {"text": str, "whole": int, "number": float, "texts": str}
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
    quantization: str = "none"
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
    vllm_flags: Sequence[str] = ()
    """What follows `--`: flags for `vllm serve`, handed on as they are."""

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError("--model: is missing; give the model folder")
        require_one_of("--uvicorn-log-level", self.uvicorn_log_level, LEVELS)
        require_one_of("--device", self.device, ("auto", "cpu", "cuda", "npu"))
        require_one_of("--engine", self.engine, get_args(Engine))
        if self.vllm_flags and self.engine != "vllm":
            raise UsageError("--: what follows is for vllm serve; give --engine vllm, or leave it out")
        object.__setattr__(self, "dtype", DTYPES.get(self.dtype, self.dtype))

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
        if not values or not set(values) <= set(self._flag.accepted):
            raise UsageError(self._flag.refusal())


class Pass(argparse.Action):
    """Takes note of nothing."""

    def __call__(self, parser: argparse.ArgumentParser, given: argparse.Namespace, values: Any, _: Any = None) -> None:
        """Leave everything as it is."""


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
            return {"action": Pass, "nargs": "*", "help": argparse.SUPPRESS}
    if flag.kind == "switch":
        return {"action": "store_true", "help": flag.says}
    several = "+" if flag.kind == "texts" else None
    return {"type": TYPES[flag.kind], "help": flag.says, "nargs": several, "metavar": METAVARS[flag.kind]}
