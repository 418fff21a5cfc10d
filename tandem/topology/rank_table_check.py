"""Checks rank tables against every rule at once, from memory or from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tandem.errors import TopologyError
from tandem.topology.finding import Finding
from tandem.topology.local_table_rules import check_local_tables
from tandem.topology.rank_table import AnyTable, GlobalTable, LocalTable, parse_table
from tandem.topology.rank_table_rules import check_global_table
from tandem.topology.record import ShapeError
from tandem.topology.text_file import read_text


def check(
    global_table: GlobalTable,
    local_tables: Mapping[str, LocalTable] | None = None,
    *,
    complete: bool = True,
    source: str = "global table",
) -> list[Finding]:
    """Every broken rule of a global table and the local tables that belong to it.

    Args:
        global_table: The global table.
        local_tables: How findings name each local table -> the table; None checks the global table alone.
        complete: Whether the tables describe a whole service, so that no role and no local table may be missing.
        source: How findings name the global table.
    """
    findings = check_global_table(global_table, complete=complete, source=source)
    if local_tables is not None:
        findings += check_local_tables(global_table, local_tables, complete=complete, global_source=source)
    return findings


def check_files(global_path: Path, local_paths: Sequence[Path] = (), *, complete: bool = True) -> list[Finding]:
    """As `check`, from files; a file that is not a rank table is a finding too.

    Raises:
        TopologyError: When a file is missing, may not be read, or is given twice.
    """
    if len(set(local_paths)) < len(local_paths):
        twice = next(path for path in sorted(local_paths) if local_paths.count(path) > 1)
        raise TopologyError(f"{twice} is given twice as a local table; name each file once")
    findings: list[Finding] = []
    global_table = parsed(GlobalTable, global_path, findings)
    tables = {str(path): parsed(LocalTable, path, findings) for path in local_paths}
    if global_table is None or None in tables.values():
        return findings
    local_tables = {name: table for name, table in tables.items() if table is not None}
    return check(global_table, local_tables or None, complete=complete, source=str(global_path))


def parsed(kind: type[AnyTable], path: Path, findings: list[Finding]) -> AnyTable | None:
    """The table of a file; None after adding what makes its text none."""
    text = read_text(path)
    try:
        return parse_table(kind, text, str(path))
    except ShapeError as error:
        findings += [Finding(str(path), one.path, "format", one.problem, one.fix) for one in error.faults]
    except TopologyError as error:
        problem, _, fix = str(error).removeprefix(f"{path}: ").rpartition("; ")
        place, _, trouble = problem.partition(": ") if problem.startswith("$") else ("$", "", problem)
        findings.append(Finding(str(path), place, "format", trouble, fix))
    return None
