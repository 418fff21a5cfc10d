from __future__ import annotations

import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.errors import TopologyError
from tandem.topology import device_address, rank_table_set
from tandem.topology.rank_table import (
    GlobalTable,
    LocalTable,
    parse_table,
    read_global_table,
    read_local_table,
    render,
    write_table,
)
from tandem.topology.rank_table_check import check, check_files
from tandem.topology.rank_table_codec import to_topology
from tandem.topology.rank_table_match import locate
from tandem.topology.rank_table_merge import merge
from tandem.topology.rank_table_set import (
    RankTableSet,
    device_suffix,
    generate,
    parse_device_addresses,
    parse_device_list,
    save,
)
from tandem.topology.topology import Role
from tandem.topology.visible_devices import VARIABLES

DOCUMENT_GLOBAL = """
{ "version": "1.0", "status": "completed", "server_group_list": [
  { "group_id": "0", "server_count": "1", "server_list": [ { "server_id": "localhost", "server_ip": "localhost" } ] },
  { "group_id": "1", "server_count": "1", "server_list": [ { "server_id": "localhost", "server_ip": "localhost",
    "device": [ { "device_id": "4", "device_ip": "10.**.**.22", "rank_id": "0" },
                { "device_id": "5", "device_ip": "10.**.**.23", "rank_id": "1" } ] } ] },
  { "group_id": "2", "server_count": "1", "server_list": [ { "server_id": "localhost", "server_ip": "localhost",
    "device": [ { "device_id": "6", "device_ip": "29.**.**.56", "rank_id": "0" },
                { "device_id": "7", "device_ip": "29.**.**.72", "rank_id": "1" } ] } ] } ]}
"""
DOCUMENT_LOCAL = """
{ "version": "1.0", "status": "completed", "group_id": "0", "server_count": "1",
  "server_list": [ { "server_id": "localhost", "server_ip": "localhost",
    "device": [ { "device_id": "6", "device_ip": "29.**.**.56", "rank_id": "0" },
                { "device_id": "7", "device_ip": "29.**.**.72", "rank_id": "1" } ] } ]}
"""


def document_set(ip: str = "10.0.0.18") -> RankTableSet:
    addresses = {4: "10.0.0.22", 5: "10.0.0.23", 6: "29.0.0.56", 7: "29.0.0.72"}
    return generate(prefill=[[4, 5]], decode=[[6, 7]], api_server=True, local_ip=ip, device_addresses=addresses)


def test_document_tables_keep_all_rules_and_bytes() -> None:
    table = parse_table(GlobalTable, DOCUMENT_GLOBAL, "g")
    local = parse_table(LocalTable, DOCUMENT_LOCAL, "l")
    assert check(table) == []
    assert check(table, {"l": local}, complete=False) == []
    assert json.loads(render(table)) == json.loads(DOCUMENT_GLOBAL)
    assert json.loads(render(local)) == json.loads(DOCUMENT_LOCAL)
    assert locate(table, local).role is Role.DECODE


def test_generates_the_document_example_verbatim(tmp_path: Path) -> None:
    tables = document_set("localhost")
    names = [path.name for path in tables.save(tmp_path / "save_dir")]
    assert names == [
        "global_ranktable_localhost.json",
        "local_ranktable_localhost_45.json",
        "local_ranktable_localhost_67.json",
        "local_ranktable_localhost_host.json",
    ]
    masked = DOCUMENT_GLOBAL.replace("10.**.**.", "10.0.0.").replace("29.**.**.", "29.0.0.")
    written = (tmp_path / "save_dir" / names[0]).read_text()
    assert written == json.dumps(json.loads(masked), indent=2) + "\n"  # the order of the keys too
    local = json.loads((tmp_path / "save_dir" / names[2]).read_text())
    assert local == json.loads(DOCUMENT_LOCAL.replace("29.**.**.", "29.0.0."))
    host = json.loads((tmp_path / "save_dir" / names[3]).read_text())
    assert host["server_list"] == [{"server_id": "localhost", "server_ip": "localhost"}]
    assert host["group_id"] == "0"


@pytest.mark.parametrize(
    ("ids", "suffix"), [([4, 5], "45"), ([8, 15], "8_15"), ([10, 11], "10_11"), ([12], "12"), ([0], "0")]
)
def test_device_suffix(ids: list[int], suffix: str) -> None:
    assert device_suffix(ids) == suffix


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({}, ("no instance", "--api-server")),
        ({"prefill": [[4]], "decode": [[5, 4]]}, ("device 4", "prefill instance 0", "decode instance 0", "once")),
        ({"prefill": [[4, 4]]}, ("device 4", "once")),
        ({"prefill": [[]]}, ("prefill instance 0", "at least one")),
        ({"api_server": True, "local_ip": "../x"}, ("'../x'", "--local-ip")),
    ],
)
def test_generate_refuses(fields: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(TopologyError) as raised:
        generate(**{"local_ip": "10.0.0.1", **fields})
    assert all(part in str(raised.value) for part in parts)


@pytest.mark.parametrize(
    ("instances", "suffixes"),
    [
        ([[1, 5], [15]], ["1_5", "15"]),
        ([[15], [1, 5], [2, 3]], ["15", "1_5", "23"]),
        ([[1, 2, 3], [12, 4], [123]], ["1_2_3", "12_4", "123"]),
        ([[1], [5], [15]], ["1", "5", "15"]),
    ],
)
def test_devices_of_names_that_would_be_the_same_stand_apart(instances: list[list[int]], suffixes: list[str]) -> None:
    tables = generate(prefill=instances[:1], decode=instances[1:], api_server=True, local_ip="10.0.0.1").local_tables
    assert list(tables) == [f"local_ranktable_10.0.0.1_{suffix}.json" for suffix in (*suffixes, "host")]
    for table, devices in zip(tables.values(), [*instances, []], strict=True):
        assert list(table.server_list[0].device_ids) == devices


@given(ids=st.permutations(range(24)), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_no_two_instances_have_one_name(ids: list[int], sizes: list[int]) -> None:
    instances = [[ids.pop() for _ in range(size)] for size in sizes]
    assert len(generate(prefill=instances, local_ip="10.0.0.1").local_tables) == len(instances)


@pytest.mark.parametrize("text", ["", "4,", ",4", "a", "4 5", "-1", "4;5"])
def test_device_list_refuses(text: str) -> None:
    with pytest.raises(TopologyError, match="write it like 4,5"):
        parse_device_list(text)


def fake_hccn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    tool = tmp_path / "hccn_tool"
    tool.write_text(f"#!/bin/sh\n{body}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("HCCN_TOOL_PATH", raising=False)


def test_hccn_tool_is_looked_for_where_the_variable_says_on_the_path_and_at_its_usual_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, usual = (tmp_path / name for name in ("named", "usual"))
    for number, path in enumerate((named, usual), start=1):
        path.write_text(f"#!/bin/sh\necho ipaddr:29.0.{number}.1\n")
        path.chmod(0o755)
    monkeypatch.setattr(device_address, "USUAL_TOOL", str(usual))
    fake_hccn(tmp_path, monkeypatch, "echo ipaddr:29.0.0.1")
    monkeypatch.setenv("HCCN_TOOL_PATH", str(named))
    assert device_address.addresses_of([4], "10.0.0.1") == {4: "29.0.1.1"}
    monkeypatch.delenv("HCCN_TOOL_PATH")
    assert device_address.addresses_of([4], "10.0.0.1") == {4: "29.0.0.1"}
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert device_address.addresses_of([4], "10.0.0.1") == {4: "29.0.2.1"}
    usual.unlink()
    assert device_address.addresses_of([4], "10.0.0.1") == {4: "10.0.0.1"}


def test_a_variable_that_names_no_tool_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hccn(tmp_path, monkeypatch, "echo ipaddr:29.0.0.1")
    monkeypatch.setenv("HCCN_TOOL_PATH", "/no/tool")
    with pytest.raises(TopologyError, match=r"^HCCN_TOOL_PATH=/no/tool is no program; set it to the path of hccn_tool"):
        device_address.addresses_of([4, 5], "10.0.0.1", {4: "1.2.3.4"})
    assert device_address.addresses_of([4], "10.0.0.1", {4: "1.2.3.4"}) == {4: "1.2.3.4"}  # nothing to ask


@pytest.mark.parametrize(
    ("files", "given", "warned"),
    [
        (["davinci4", "davinci5"], {}, True),
        (["davinci4", "davinci5"], {4: "1.2.3.4"}, True),
        (["davinci4", "davinci5"], {4: "1.2.3.4", 5: "1.2.3.5"}, False),
        (["davinci_manager"], {}, False),
        (["nvidia4", "nvidia5"], {}, False),
    ],
)
def test_npus_without_hccn_tool_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], given: dict[int, str], warned: bool
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for variable in ("HCCN_TOOL_PATH", *VARIABLES.values()):
        monkeypatch.delenv(variable, raising=False)
    for module in (device_address, rank_table_set):
        monkeypatch.setattr(module, "USUAL_TOOL", "/no/hccn_tool")
    for name in files:
        (tmp_path / name).touch()
    fields: dict[str, Any] = {"prefill": [[4, 5]], "local_ip": "10.0.0.1", "device_addresses": given}
    warning = (
        "hccn_tool is neither on the PATH nor /no/hccn_tool, so each device_ip is the host's address, 10.0.0.1; say "
        "where it is with HCCN_TOOL_PATH, or give the addresses with --device-ip"
    )
    assert generate(**fields, device_files=tmp_path).warnings == [warning] * warned
    assert generate(**fields).warnings == []


@pytest.mark.parametrize(("found", "warned"), [("127.0.0.1", True), ("::1", True), ("10.0.0.1", False)])
def test_a_loopback_address_that_was_found_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, found: str, warned: bool
) -> None:
    monkeypatch.setattr(rank_table_set, "local_address", lambda: found)
    warning = (
        f"this host has no route to others, so its address in the tables is {found}, which means another host "
        "wherever it is read; give the one that others reach with --local-ip"
    )
    assert generate(api_server=True).warnings == [warning] * warned
    assert generate(api_server=True, local_ip=found).warnings == []  # as was asked for


def test_asks_hccn_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hccn(
        tmp_path, monkeypatch, '[ "$1 $3 $4" = "-i -ip -g" ] && echo "ipaddr:29.0.0.$2"; echo "netmask:255.0.0.0"'
    )
    assert device_address.addresses_of([4, 5], "10.0.0.1", {5: "1.2.3.4"}) == {4: "29.0.0.4", 5: "1.2.3.4"}


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("echo no such device >&2; exit 3", "exit code 3: no such device"),
        ("echo ipaddr:29.0.0.4; exit 3", "named no address (exit code 3: ipaddr:29.0.0.4)"),
        ("sleep 9", "no answer"),
    ],
)
def test_hccn_tool_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, part: str) -> None:
    fake_hccn(tmp_path, monkeypatch, f"exec {body}" if body.startswith("sleep") else body)
    monkeypatch.setattr(device_address, "HCCN_TIMEOUT", 0.3)
    with pytest.raises(TopologyError) as raised:
        device_address.addresses_of([4], "10.0.0.1")
    assert part in str(raised.value)
    assert "--device-ip 4=ADDRESS" in str(raised.value)


def test_local_address_is_an_address() -> None:
    assert device_address.local_address().count(".") == 3 or ":" in device_address.local_address()


def edit(change: str, text: str | None = None) -> dict[str, Any]:
    """The document's global table with one statement run on it, `t` the table and `g` its groups."""
    table: dict[str, Any] = json.loads(text or DOCUMENT_GLOBAL)
    exec(change, {"t": table, "g": table.get("server_group_list"), "s": table.get("server_list")})
    return table


GLOBAL_RULES = [
    ("t['version'] = '1.2'", "version", "$.version", '"1.0"'),
    ("t['status'] = 'initializing'", "status", "$.status", "completed"),
    ("g.pop()", "groups", "$.server_group_list", "exactly three groups"),
    ("g.reverse()", "groups", "$.server_group_list", "in this order"),
    ("g[1]['server_count'] = '2'", "server-count", "$.server_group_list[1].server_count", 'write "1"'),
    ("g[0]['server_list'] = []; g[0]['server_count'] = '0'", "one-scheduler", "$.server_group_list[0]", "--api-server"),
    ("g[0]['server_list'] *= 2; g[0]['server_count'] = '2'", "one-scheduler", "server_list[1]", "keep one"),
    ("g[0]['server_list'][0]['device'] = []", "scheduler-devices", "server_list[0].device", "remove"),
    ("g[1]['server_list'] = []; g[1]['server_count'] = '0'", "prefill", "$.server_group_list[1]", "--prefill"),
    ("g[2]['server_list'] = []; g[2]['server_count'] = '0'", "decode", "$.server_group_list[2]", "--decode"),
    ("del g[1]['server_list'][0]['device']", "devices", "$.server_group_list[1].server_list[0].device", "list"),
    ("g[2]['server_list'][0]['device'][0]['rank_id'] = '1'", "rank-ids", "device[0].rank_id", 'write "0"'),
    ("g[2]['server_list'][0]['device'][1]['rank_id'] = '7'", "rank-ids", "[2].server_list[0].device[1]", 'write "1"'),
    ("g[2]['server_list'][0]['device'][0]['device_id'] = '5'", "device-once", "[2].server_list[0].device[0]", "one"),
    ("g[1]['server_list'][0]['server_ip'] = '10.0.0.9'", "localhost", "[0].server_list[0].server_ip", "--local-ip"),
]


@pytest.mark.parametrize(("change", "rule", "path", "fix"), GLOBAL_RULES)
def test_global_rule(change: str, rule: str, path: str, fix: str) -> None:
    findings = check(GlobalTable(**edit(change)), source="g.json")
    found = [finding for finding in findings if finding.rule == rule]
    assert found, findings
    assert path in found[0].path
    assert fix in found[0].fix
    assert str(found[0]).startswith("g.json: $.")


def test_partial_table_may_lack_roles() -> None:
    partial = GlobalTable(**edit("g[0].update(server_list=[], server_count='0'); g.pop()"))
    assert check(partial, complete=False) == []
    assert {finding.rule for finding in check(partial)} == {"groups", "one-scheduler", "decode"}


LOCAL_RULES = [
    ("t['version'] = '1.2'", "version", "$.version", '"1.0"'),
    ("t['group_id'] = '2'", "local-format", "$.group_id", 'write "0"'),
    ("t['server_count'] = '2'", "local-format", "$.server_count", 'write "1"'),
    ("s.append(s[0])", "local-format", "$.server_list", "keep the one"),
    ("s.clear()", "local-format", "$.server_list", "generate"),
    ("s[0]['device'].pop()", "local-match", "$.server_list[0]", "one run"),
    ("s[0]['server_ip'] = 'other'", "local-match", "$.server_list[0]", "one run"),
    ("s[0]['device'][1]['device_ip'] = '1.1.1.1'", "local-match", "$.server_list[0].device[1].device_ip", "the same"),
    ("s[0]['device'][1]['rank_id'] = '0'", "rank-ids", "$.server_list[0].device[1].rank_id", 'write "1"'),
]


@pytest.mark.parametrize(("change", "rule", "path", "fix"), LOCAL_RULES)
def test_local_rule(change: str, rule: str, path: str, fix: str) -> None:
    table = GlobalTable(**json.loads(DOCUMENT_GLOBAL))
    findings = check(table, {"l.json": LocalTable(**edit(change, DOCUMENT_LOCAL))}, complete=False)
    found = [finding for finding in findings if finding.rule == rule]
    assert found, findings
    assert path in found[0].path
    assert fix in found[0].fix
    assert found[0].source == "l.json"


def test_tables_are_one_to_one() -> None:
    tables = document_set()
    assert check(tables.global_table, tables.local_tables) == []
    decode = tables.local_tables["local_ranktable_10.0.0.18_67.json"]
    (missing,) = check(tables.global_table, {"a": decode})
    assert (missing.rule, missing.path) == ("one-to-one", "$.server_group_list[1].server_list[0]")
    assert "devices 4,5 of 10.0.0.18" in missing.problem
    (twice,) = check(tables.global_table, {"a": decode, "b": decode}, complete=False)
    assert (twice.rule, twice.source) == ("one-to-one", "b")
    assert "local table a" in twice.problem


def test_locate_infers_the_role() -> None:
    tables = document_set()
    places = [locate(tables.global_table, table) for table in tables.local_tables.values()]
    assert [(place.role, place.position) for place in places] == [
        (Role.PREFILL, 0), (Role.DECODE, 0), (Role.GATEWAY, 0),
    ]  # fmt: skip
    with pytest.raises(TopologyError, match=r"mine: \$\.server_list\[0\]: 10.0.0.18 with devices 4, 5 is not in"):
        locate(document_set("10.0.0.9").global_table, tables.local_tables["local_ranktable_10.0.0.18_45.json"], "mine")


def test_integers_are_read_and_unknown_keys_kept(tmp_path: Path) -> None:
    loose = edit(
        "g[1]['server_list'][0]['device'][0].update(device_id=4, x=[1]); t['y'] = None; g[0]['server_count']=1"
    )
    path = tmp_path / "g.json"
    path.write_text(json.dumps(loose))
    write_table(read_global_table(path), path)
    strict = edit("g[1]['server_list'][0]['device'][0].update(x=[1]); t['y'] = None")
    assert json.loads(path.read_text()) == strict


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{", ("line 1, column 2", "JSON syntax")),
        ("[]", ("not a JSON object",)),
        ("[" * 100000, ("nested too deeply",)),
        (json.dumps(edit("del g[1]['server_list'][0]['device'][1]['device_ip']")),
         ("$.server_group_list[1].server_list[0].device[1].device_ip: is missing; add it",)),
        (json.dumps(edit("g[1]['server_list'][0]['device'][1]['rank_id'] = 'x'")),
         ("$.server_group_list[1].server_list[0].device[1].rank_id: is 'x'; write a whole number",)),
        (json.dumps(edit("g[1]['server_list'][0]['device'][1]['device_id'] = -1")),
         ("device_id: is -1; write a whole number",)),
    ],
)  # fmt: skip
def test_what_is_not_a_table_is_an_error_and_a_finding(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    path = tmp_path / "g.json"
    path.write_text(text)
    with pytest.raises(TopologyError) as raised:
        read_global_table(path)
    assert all(part in str(raised.value) for part in (str(path), *parts))
    (finding,) = check_files(path)
    assert finding.rule == "format"
    assert str(finding).count(str(path)) == 1


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ("local_rank_table_10.0.0.18_45.json", "local_ranktable_10.0.0.18_45.json"),
        ("global_ranktable.json", "global_rank_table.json"),
    ],
)
def test_missing_file_suggests_the_other_spelling(tmp_path: Path, asked: str, there: str) -> None:
    with pytest.raises(TopologyError, match="check the path"):
        read_local_table(tmp_path / asked)
    (tmp_path / there).write_text("{}")
    with pytest.raises(TopologyError, match=f"did you mean .*{there}"):
        read_local_table(tmp_path / asked)


def host(ip: str, **fields: Any) -> tuple[str, GlobalTable]:
    fields.setdefault("prefill", [[0]])
    return f"{ip}.json", generate(local_ip=ip, **fields).global_table


def changed(entry: tuple[str, GlobalTable], change: str) -> tuple[str, GlobalTable]:
    return entry[0], GlobalTable(**edit(change, render(entry[1])))


A = host("10.0.0.1", decode=[[1]], api_server=True)
MERGES = [
    ([], ("no rank table", "--global-ranktable-list")),
    ([host("10.0.0.1"), host("10.0.0.2")], ("no scheduler", "10.0.0.1.json", "10.0.0.2.json", "--api-server")),
    ([A, host("10.0.0.2", api_server=True)], ("2 schedulers", "10.0.0.1.json $", "10.0.0.2.json $.server")),
    ([A, ("b.json", host("10.0.0.1")[1])], ("device 0 of 10.0.0.1", "10.0.0.1.json $.server", "b.json $")),
    ([A, changed(host("10.0.0.2"), "t['version'] = '1.2'")], ("version", '"1.0" and "1.2"', "10.0.0.2.json")),
    ([A, host("localhost")], ("localhost.json", "$.server_group_list[1].server_list[0].server_ip", "--local-ip")),
    ([A, changed(host("10.0.0.2"), "g[1]['server_count'] = '5'")], ("10.0.0.2.json", "server_count", 'write "1"')),
    ([host("10.0.0.1", prefill=(), decode=[[1]], api_server=True)],
     ("no prefill instance in 10.0.0.1.json", "--prefill-server-list")),
    ([host("10.0.0.1", api_server=True), host("10.0.0.2")],
     ("no decode instance in 10.0.0.1.json, 10.0.0.2.json; generate one with --decode-server-list",)),
    ([changed(A, "t['x'] = 1"), changed(host("10.0.0.2"), "t['x'] = 2")], ("$.x is 1 and 2", "make both the same")),
]  # fmt: skip


@pytest.mark.parametrize(("tables", "parts"), MERGES)
def test_merge_refuses(tables: list[tuple[str, GlobalTable]], parts: tuple[str, ...]) -> None:
    with pytest.raises(TopologyError) as raised:
        merge(tables)
    assert all(part in str(raised.value) for part in parts), raised.value


def test_merge_joins_in_order_and_keeps_unknown_keys() -> None:
    merged = merge([changed(A, "t['x'] = 1"), changed(host("10.0.0.2"), "g[1]['y'] = 2")])
    data = json.loads(render(merged))
    assert data["x"] == 1
    assert data["server_group_list"][1]["y"] == 2
    assert [s.server_ip for s in merged.servers(Role.PREFILL)] == ["10.0.0.1", "10.0.0.2"]
    assert check(merged) == []


def service(hosts: int) -> list[RankTableSet]:
    """The tables of hosts with 16 devices each."""
    return [
        generate(
            prefill=[[0, 1, 2, 3], [4, 5, 6, 7]],
            decode=[list(range(8, 16))],
            api_server=i == 0,
            local_ip=f"10.0.{i // 64}.{i % 64 + 1}",
        )
        for i in range(hosts)
    ]


def test_128_hosts_of_16_devices(tmp_path: Path) -> None:
    paths = save(service(128), tmp_path)
    local_paths = [path for path in paths if path.name.startswith("local_")]
    global_paths = [path for path in paths if path.name.startswith("global_")]
    write_table(merge([(str(path), read_global_table(path)) for path in global_paths]), tmp_path / "merged.json")
    assert len(local_paths) == 128 * 3 + 1
    assert check_files(tmp_path / "merged.json", local_paths) == []
    assert len(check_files(tmp_path / "merged.json", local_paths[1:])) == 1
    table = read_global_table(tmp_path / "merged.json")
    assert sum(len(s.device_ids) for role in (Role.PREFILL, Role.DECODE) for s in table.servers(role)) == 128 * 16


def calls_for(hosts: int) -> int:
    """Calls of Python functions that making, merging and checking the tables of some hosts takes."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        sets = service(hosts)
        merged = merge([(one.global_name, one.global_table) for one in sets])
        local_tables = {name: table for one in sets for name, table in one.local_tables.items()}
        findings = check(merged, local_tables)
    finally:
        sys.setprofile(before)
    assert findings == []
    return calls


def test_the_work_grows_with_the_hosts_and_not_with_their_square() -> None:
    assert calls_for(128) < 2.1 * calls_for(64)


def test_to_topology_takes_ports_in_table_order() -> None:
    topology = to_topology(document_set().global_table, [8088, 8089], "m", gateway_port=9000)
    assert [(i.name, i.port, [d.id for d in i.devices]) for i in topology.instances] == [
        ("gateway", 9000, []), ("prefill-0", 8088, [4, 5]), ("decode-0", 8089, [6, 7]),
    ]  # fmt: skip
    assert topology.instances[1].devices[1].address == "10.0.0.23"


@pytest.mark.parametrize(
    ("ports", "part"),
    [([8088], "1 ports for 1 prefill and 1 decode"), ([8088, 8088], "port 8088 is used by prefill and by decode")],
)
def test_to_topology_refuses_ports(ports: list[int], part: str) -> None:
    with pytest.raises(TopologyError, match=part):
        to_topology(document_set().global_table, ports, "m")


def test_to_topology_refuses_a_broken_table() -> None:
    with pytest.raises(TopologyError, match="server_count"):
        to_topology(GlobalTable(**edit("g[1]['server_count'] = '2'")), [1, 2], "m")


@st.composite
def hosts(draw: st.DrawFn) -> list[tuple[str, GlobalTable]]:
    tables = []
    for i in range(draw(st.integers(1, 4))):
        ids = draw(st.permutations(range(16)))
        size = draw(st.sampled_from([1, 2, 4]))
        groups = [list(ids[k : k + size]) for k in range(0, 8, size)]
        cut = draw(st.integers(1, len(groups) - 1))
        addresses = {number: f"29.{i}.0.{number}" for group in groups for number in group}
        table = generate(
            prefill=groups[:cut], decode=groups[cut:], api_server=i == 0, local_ip=f"10.0.0.{i + 1}",
            device_addresses=addresses,
        ).global_table  # fmt: skip
        tables.append((str(i), table))
    return tables


def generated(sample: list[tuple[str, GlobalTable]]) -> tuple[GlobalTable, list[int]]:
    table = merge(sample)
    count = len(table.servers(Role.PREFILL)) + len(table.servers(Role.DECODE))
    return table, list(range(8000, 8000 + count))


@given(sample=hosts())
@settings(max_examples=40, deadline=None)
def test_merged_tables_are_read_as_they_are_written(sample: list[tuple[str, GlobalTable]]) -> None:
    table, ports = generated(sample)
    topology = to_topology(table, ports, "m", gateway_port=9000)
    assert [one.port for one in topology.instances] == [9000, *ports]
    assert parse_table(GlobalTable, render(table), "t") == table


@pytest.mark.parametrize("host", ["300.1.1.1", "1.2.3", "fe80::zz", "a b", "", "a..b", "0.0.0.0", "::"])
def test_a_local_ip_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(TopologyError, match="is no address or name of a host"):
        generate(prefill=[[1]], local_ip=host)


def test_an_address_has_one_spelling() -> None:
    assert parse_device_addresses(["4=FD00::0:2", "5=10.0.0.22", "6=Node-1"]) == {
        4: "fd00::2", 5: "10.0.0.22", 6: "Node-1",
    }  # fmt: skip
    assert generate(api_server=True, local_ip="FD00::0:2").global_name == "global_ranktable_fd00::2.json"


def test_an_address_for_a_device_of_no_instance_is_refused() -> None:
    with pytest.raises(TopologyError, match=r"--device-ip 4=.*no instance uses device 4"):
        generate(prefill=[[1]], local_ip="10.0.0.1", device_addresses={4: "10.0.0.22"})
