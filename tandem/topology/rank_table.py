"""Global and local rank tables: the JSON files that tell Ascend services which instance uses which devices.

    global table                                 local table, one for each instance
    server_group_list[0]  group 0: scheduler     group_id "0", server_list[0] = the same entry
                     [1]  group 1: prefill           that the instance has in the global table
                     [2]  group 2: decode

An entry of `server_list` is one instance, so a host may stand in it several times. All numbers are strings; a table
with plain integers is read too. Keys that are not known here are kept when a table is written back. Only the shape is
checked here; the rules that need the whole table are in rank_table_rules.py.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, StringConstraints

from tandem.topology.plain_data import json_object
from tandem.topology.record import Fault, Record, ShapeError, misfit
from tandem.topology.text_file import read_text, write_text
from tandem.topology.topology import Role

VERSION = "1.0"
STATUS = "completed"

WRITERS = 16
"""Files that are written at a time."""

GROUP_IDS = {Role.GATEWAY: "0", Role.PREFILL: "1", Role.DECODE: "2"}
"""Role -> its group in a global table, in the order of the table."""

ROLES = {group_id: role for role, group_id in GROUP_IDS.items()}

NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


def whole_number(value: object) -> str:
    """A number of a table as its text; a table may have a plain integer."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and NUMBER.fullmatch(text):
        return text
    raise misfit("write a whole number, of nine digits at most")


Number = Annotated[str, BeforeValidator(whole_number)]
"""A whole number written as a string."""

Text = Annotated[str, StringConstraints(min_length=1)]


class Entry(Record):
    """Base of the tables' structures: integers become strings, unknown keys are kept."""

    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=True)


class TableDevice(Entry):
    """One device of an instance."""

    device_id: Number
    """Physical number on its host."""
    device_ip: Text
    rank_id: Number
    """Logical number within its instance, from 0."""


class Server(Entry):
    """One instance; the scheduler's has no `device` key."""

    server_id: Text
    server_ip: Text
    device: tuple[TableDevice, ...] | None = None

    @property
    def device_ids(self) -> tuple[int, ...]:
        """Physical numbers in order of the table; empty for the scheduler."""
        return tuple(int(device.device_id) for device in self.device or ())


class ServerGroup(Entry):
    """All instances of one role."""

    group_id: Number
    server_count: Number
    server_list: tuple[Server, ...]


class GlobalTable(Entry):
    """All instances of a service, or of one host before merging."""

    version: Text
    status: Text
    server_group_list: tuple[ServerGroup, ...]

    def servers(self, role: Role) -> tuple[Server, ...]:
        """The instances of one role, in order; empty where the table has no such group."""
        return tuple(server for _, found, server in self.entries() if found is role)

    def entries(self) -> Iterator[tuple[str, Role, Server]]:
        """Every instance in a group of known id: its JSON path, its role and itself."""
        for i, group in enumerate(self.server_group_list):
            if role := ROLES.get(group.group_id):
                for j, server in enumerate(group.server_list):
                    yield f"$.server_group_list[{i}].server_list[{j}]", role, server


class LocalTable(Entry):
    """What one instance is told about itself."""

    version: Text
    status: Text
    group_id: Number
    server_count: Number
    server_list: tuple[Server, ...]


KEYS = {GlobalTable: "server_group_list", LocalTable: "group_id"}
"""Kind of table -> the key at its top that the other has not."""

AnyTable = TypeVar("AnyTable", bound=Entry)


def new_global_table(servers: Mapping[Role, Sequence[Server]]) -> GlobalTable:
    """A global table of the three groups, a role without servers as an empty group."""
    groups = tuple(
        ServerGroup(group_id=group_id, server_count=str(len(members)), server_list=members)
        for group_id, members in ((group_id, tuple(servers.get(role, ()))) for role, group_id in GROUP_IDS.items())
    )
    return GlobalTable(version=VERSION, status=STATUS, server_group_list=groups)


def new_local_table(server: Server) -> LocalTable:
    """The local table of one instance; its group is always 0, whatever the role."""
    return LocalTable(version=VERSION, status=STATUS, group_id="0", server_count="1", server_list=(server,))


def read_global_table(path: Path) -> GlobalTable:
    """Read a global table.

    Raises:
        TopologyError: Naming the file and the line or field at fault.
    """
    return parse_table(GlobalTable, read_text(path), str(path))


def read_local_table(path: Path) -> LocalTable:
    """Read a local table.

    Raises:
        TopologyError: Naming the file and the line or field at fault.
    """
    return parse_table(LocalTable, read_text(path), str(path))


def read_table(path: Path) -> GlobalTable | LocalTable:
    """Read a table of either kind; one with a `group_id` at its top is local.

    Raises:
        TopologyError: Naming the file and the line or field at fault.
    """
    text = read_text(path)
    if "group_id" in json_object(text, str(path)):
        return parse_table(LocalTable, text, str(path))
    return parse_table(GlobalTable, text, str(path))


def parse_table(kind: type[AnyTable], text: str, source: str) -> AnyTable:
    """A table from JSON text; `source` names it in error messages."""
    return parse_object(kind, json_object(text, source), source)


def parse_object(kind: type[AnyTable], fields: Mapping[str, Any], source: str) -> AnyTable:
    """A table from JSON data; `source` names it in error messages.

    Raises:
        ShapeError: Naming the source, and the first field at fault.
    """
    if fault := other_kind(kind, fields):
        raise ShapeError((fault,), source)
    try:
        return kind(**fields)
    except ShapeError as error:
        raise ShapeError(error.faults, source) from error


def other_kind(kind: type[Entry], fields: Mapping[str, Any]) -> Fault | None:
    """What to say of a local table that is read as a global one, and the other way round."""
    found = {one for one, key in KEYS.items() if key in fields}
    if kind is GlobalTable and found == {LocalTable}:
        fix = "name a global table here; a local one goes to --local of check, --rank-table of serve, or --from local"
        return Fault((), "is a local table, of one instance, and no global one", fix)
    if kind is LocalTable and found == {GlobalTable}:
        fix = (
            "name a local table here; a global one goes to --global of check, --global-rank-table of serve, or "
            "--from global"
        )
        return Fault((), "is a global table, of all instances, and no local one", fix)
    return None


def render(table: Entry) -> str:
    """The table's JSON text, keys in the documented order, with exactly the keys the table was given."""
    return json.dumps(table.model_dump(mode="json", exclude_unset=True), indent=2, ensure_ascii=False) + "\n"


def write_table(table: GlobalTable | LocalTable, path: Path) -> None:
    """Write a table, whole or not at all.

    Raises:
        TopologyError: When the file cannot be written.
    """
    write_text(path, render(table))


def write_tables(tables: Mapping[Path, GlobalTable | LocalTable]) -> None:
    """Write many tables, each whole or not at all.

    Several at a time: each waits for the disk, and a disk takes many that wait at once.

    Raises:
        TopologyError: When a file cannot be written.
    """
    with ThreadPoolExecutor(WRITERS) as threads:
        deque(threads.map(write_table, tables.values(), tables), maxlen=0)
