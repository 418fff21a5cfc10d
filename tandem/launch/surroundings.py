"""What the environment says to a start command: where the rank tables are, and what only the scheduler reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tandem.errors import UsageError
from tandem.launch.options import Options

GLOBAL_TABLE = "GLOBAL_RANK_TABLE_FILE_PATH"
LOCAL_TABLE = "RANK_TABLE_FILE_PATH"
NODE_PORTS = "NODE_PORTS"
USE_OPENAI = "USE_OPENAI"

APIS: Mapping[str, Literal["openai", "vllm"]] = {"1": "openai", "0": "vllm"}


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """The four variables; a flag goes before its variable, and an empty one counts as not set."""

    global_table: Path
    local_table: Path
    node_ports: str
    use_openai: str

    @classmethod
    def of(cls, environment: Mapping[str, str], options: Options) -> Surroundings:
        """Read them.

        Raises:
            UsageError: A table is not named.
        """
        return cls(
            global_table=_table(options.global_rank_table, "--global-rank-table", environment, GLOBAL_TABLE),
            local_table=_table(options.rank_table, "--rank-table", environment, LOCAL_TABLE),
            node_ports=environment.get(NODE_PORTS, ""),
            use_openai=environment.get(USE_OPENAI, "") or "1",
        )

    @property
    def api(self) -> Literal["openai", "vllm"]:
        """The API that the scheduler speaks.

        Raises:
            UsageError: The variable is neither 0 nor 1.
        """
        if self.use_openai not in APIS:
            raise UsageError(
                f"{USE_OPENAI}={self.use_openai}: must be 1 for OpenAI's API or 0 for vLLM's own; export one of them"
            )
        return APIS[self.use_openai]


def _table(given: str | None, option: str, environment: Mapping[str, str], variable: str) -> Path:
    if not (path := given or environment.get(variable)):
        raise UsageError(f"{variable}: is not set; export it with the path of the rank table, or give {option}")
    return Path(path)
