"""What is wrong with rank tables and with the commands over them, and what is said of it: the documents' rules by row.

Two hosts: 10.0.0.1 with the service entry, a prefill instance on 4,5 and a decode instance on 6,7; 10.0.0.2 with a
prefill instance on 0,1. `a.json`, `b.json` and `merged.json` are the global tables; `p.json`, `d.json`, `q.json` and
`host.json` the local ones of the two prefill instances, the decode instance and the service entry.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tandem.cli import run
from tandem.compat.pd_ranktable_tools import main
from tandem.topology.rank_table import render
from tandem.topology.rank_table_merge import merge
from tandem.topology.rank_table_set import generate

FIRST = generate(prefill=[[4, 5]], decode=[[6, 7]], api_server=True, local_ip="10.0.0.1")
SECOND = generate(prefill=[[0, 1]], local_ip="10.0.0.2")
FILES = {
    "a.json": FIRST.global_table,
    "b.json": SECOND.global_table,
    "merged.json": merge([("a", FIRST.global_table), ("b", SECOND.global_table)]),
    **dict(zip(("p.json", "d.json", "host.json"), FIRST.local_tables.values(), strict=True)),
    **dict(zip(("q.json",), SECOND.local_tables.values(), strict=True)),
}
G = "$.server_group_list"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables, in the folder where the commands run."""
    monkeypatch.chdir(tmp_path)
    for name, table in FILES.items():
        (tmp_path / name).write_text(render(table))


def change(name: str, statement: str) -> None:
    """Run a statement on a table's file: `t` the table, `g` its groups, `s` its servers, `d` its first devices."""
    table: dict[str, Any] = json.loads(Path(name).read_text())
    groups, servers = table.get("server_group_list"), table.get("server_list")
    devices = servers[0].get("device") if servers else None
    exec(statement, {"t": table, "g": groups, "s": servers, "d": devices})
    Path(name).write_text(json.dumps(table))


GEN = "--mode gen --local-ip 10.0.0.1 "
MERGE = "--mode merge --global-ranktable-list "
USAGE = [
    # row, flags of pd_ranktable_tools.py, what it says last
    ("R44", "--save-dir x", "the following arguments are required: --mode"),
    ("R44", "--mode make", "argument --mode: invalid choice: 'make' (choose from 'gen', 'merge')"),
    ("R44", "--mo gen", "the following arguments are required: --mode"),
    ("R46", MERGE + "a.json --api-server", "--api-server belongs to --mode gen; leave it out with --mode merge"),
    ("R48", MERGE + "a.json --prefill-server-list 4",
     "--prefill-server-list belongs to --mode gen; leave it out with --mode merge"),
    ("R49", MERGE + "a.json --decode-server-list",
     "--decode-server-list belongs to --mode gen; leave it out with --mode merge"),
    ("R50", "--mode merge", "--mode merge needs --global-ranktable-list; name the global tables of all hosts after it"),
    ("R50", GEN + "--global-ranktable-list a.json",
     "--global-ranktable-list belongs to --mode merge; leave it out with --mode gen"),
    ("R50", "--mode merge --global-ranktable-list", "argument --global-ranktable-list: expected at least one argument"),
    ("R46", GEN, "no instance to write; give --prefill-server-list, --decode-server-list or --api-server"),
    ("R48", GEN + "--prefill-server-list --decode-server-list",
     "no instance to write; give --prefill-server-list, --decode-server-list or --api-server"),
    ("R48", GEN + "--prefill-server-list 4,5 --decode-server-list 5,6",
     "device 5 is in prefill instance 0 and in decode instance 0; give each device to one instance, once"),
    ("R48", GEN + "--prefill-server-list 4,5 6,4",
     "device 4 is in prefill instance 0 and in prefill instance 1; give each device to one instance, once"),
    ("R48", GEN + "--prefill-server-list 4;5",
     "device list '4;5' is not device numbers between commas; write it like 4,5"),
    ("R49", GEN + "--decode-server-list 6,",
     "device list '6,' is not device numbers between commas; write it like 4,5"),
    ("R38", "--mode gen --local-ip 10.0.0 --api-server",
     "local ip '10.0.0' is no address or name of a host; give it as --local-ip 10.0.0.18"),
    ("R38", "--mode gen --local-ip= --api-server",
     "local ip '' is no address or name of a host; give it as --local-ip 10.0.0.18"),
    ("R57", GEN + "--prefill-server-list 4 --device-ip 4=10.0.0.1 4=10.0.0.2",
     "--device-ip 4=... is given twice; keep one of the two"),
    ("R57", GEN + "--prefill-server-list 4 --device-ip 4=10.0.0.1 --device-ip 04=10.0.0.2",
     "--device-ip 4=... is given twice; keep one of the two"),
    ("R57", GEN + "--prefill-server-list 4 --device-ip 4=0.0.0.0",
     "device address '4=0.0.0.0' is not NUMBER=ADDRESS; write it like 4=10.0.0.22"),
    ("R48", GEN + "--prefill-server-list 4 --prefill-server-list 5 4",
     "device 4 is in prefill instance 0 and in prefill instance 2; give each device to one instance, once"),
    ("R57", GEN + "--prefill-server-list 4 --device-ip 4:10.0.0.1",
     "device address '4:10.0.0.1' is not NUMBER=ADDRESS; write it like 4=10.0.0.22"),
    ("R57", GEN + "--prefill-server-list 4 --device-ip 5=10.0.0.1",
     "--device-ip 5=...: no instance uses device 5; leave it out"),
    ("R45", GEN + "--prefill-server-list 4 --save-dir a.json",
     "a.json/global_ranktable_10.0.0.1.json: cannot be written (File exists); choose a folder you may write to"),
    ("R63", MERGE + "x.json", "x.json: no such file; check the path"),
    ("R47", MERGE + "b.json", "no scheduler in b.json; generate the table of one host with --api-server"),
    ("R47", MERGE + "a.json a.json",
     f"2 schedulers: a.json {G}[0].server_list[0], a.json {G}[0].server_list[0]; generate only one host's table with "
     "--api-server"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "flags", "message"), USAGE)
def test_wrong_flags(row: str, flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(flags.split())
    except SystemExit as left:
        code = int(left.code or 0)
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert said.err.splitlines()[-1].removeprefix("pd_ranktable_tools.py: ").removeprefix("error: ") == message


MERGES = [
    # row, table, statement on it, what merging a.json and b.json says
    ("R47", "b.json", "g[0] = dict(g[0], server_count='1', server_list=[dict(server_id='h', server_ip='h')])",
     f"2 schedulers: a.json {G}[0].server_list[0], b.json {G}[0].server_list[0]; generate only one host's table with "
     "--api-server"),
    ("R42", "b.json", "g[1]['server_list'][0].update(server_ip='10.0.0.1', device=[dict(device_id='6', device_ip='x', "
     "rank_id='0')])",
     f"device 6 of 10.0.0.1 is at a.json {G}[2].server_list[0].device[0] and at b.json "
     f"{G}[1].server_list[0].device[0]; give each device to one instance, and each file once"),
    ("R58", "b.json", "t['version'] = '1.2'",
     'a.json and b.json: $.version is "1.0" and "1.2"; generate all tables with the same tool'),
    ("R58", "a.json", "t['status'] = 'initializing'",
     'a.json: $.status: status is "initializing"; wait for the table to be "completed", or write that'),
    ("R59", "b.json", "g[1]['server_list'][0].update(server_ip='localhost')",
     f"b.json: {G}[1].server_list[0].server_ip is localhost in a table of several hosts; generate it again with "
     "--local-ip and an address the others can reach"),
    ("R51", "b.json", "g.append(dict(g[0], group_id='3'))",
     f"b.json: {G}: holds the groups 0, 1, 2, 3; write exactly three groups with ids 0, 1, 2, in this order, an "
     "unused one empty"),
    ("R54", "a.json", "g[2] = dict(g[2], server_count='0', server_list=[])",
     "no decode instance in a.json, b.json; generate one with --decode-server-list, and merge its table too"),
    ("R54", "a.json", "g.pop()",
     "no decode instance in a.json, b.json; generate one with --decode-server-list, and merge its table too"),
    ("R59", "b.json", "g[1]['server_list'][0].update(server_ip='../x')",
     f"b.json: {G}[1].server_list[0].server_ip: '../x' is no address or name of a host; write it like 10.0.0.18, "
     "2001:db8::7 or node-1"),
    ("R58", "b.json", "t.pop('status')", "b.json: $.status: is missing; add it"),
    ("R58", "b.json", "g[1]['server_list'][0]['device'][1]['device_id'] = 'one'",
     f"b.json: {G}[1].server_list[0].device[1].device_id: is 'one'; write a whole number, of nine digits at most"),
    ("R57", "b.json", "g[1]['server_list'][0]['device'][1].pop('device_ip')",
     f"b.json: {G}[1].server_list[0].device[1].device_ip: is missing; add it"),
    ("R58", "b.json", "t.pop('server_group_list'); t['group_id'] = '0'",
     "b.json: $: is a local table, of one instance, and no global one; name a global table here; a local one goes to "
     "--local of check, --rank-table of serve, or --from local"),
    ("R58", "b.json", "t['version'] = '1.0\\n\\x1b[31m'",
     'a.json and b.json: $.version is "1.0" and "1.0\\n\\x1b[31m"; generate all tables with the same tool'),
]  # fmt: skip


@pytest.mark.parametrize(("row", "table", "statement", "message"), MERGES)
def test_wrong_merges(row: str, table: str, statement: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    change(table, statement)
    assert run(["ranktable", "merge", "--global-ranktable-list", "a.json", "b.json"]) == 2
    assert capsys.readouterr().err == f"tandem: {message}\n"
    assert main([*MERGE.split(), "a.json", "b.json"]) == 2
    assert capsys.readouterr().err == f"pd_ranktable_tools.py: {message}\n"
    assert not os.path.lexists("global_ranktable_merge.json")


CHECKS = [
    # row, table, statement on it, what checking merged.json with all local tables says
    ("R51", "merged.json", "g[1], g[2] = g[2], g[1]",
     f"merged.json: {G}: holds the groups 0, 2, 1; write exactly three groups with ids 0, 1, 2, in this order, an "
     "unused one empty"),
    ("R52", "merged.json", "g[0]['server_list'][0]['device'] = []",
     f"merged.json: {G}[0].server_list[0].device: the scheduler has devices; remove the device key"),
    ("R52", "merged.json", "g[0] = dict(g[0], server_count='2', server_list=g[0]['server_list'] * 2)",
     f"merged.json: {G}[0].server_list[1]: 10.0.0.1 is one scheduler too many; keep one entry in group 0: only one "
     "host has the service entry"),
    ("R52", "merged.json", "g[0] = dict(g[0], server_count='0', server_list=[])",
     f"merged.json: {G}[0].server_list: no scheduler; generate one host's table with --api-server, then merge"),
    ("R53", "merged.json", "g[1]['server_count'] = '3'",
     f'merged.json: {G}[1].server_count: server_count is "3" but server_list holds 2; write "2", or mend server_list'),
    ("R53", "merged.json", "g[1]['server_list'][0].pop('device')",
     f"merged.json: {G}[1].server_list[0].device: the instance has no devices; list device_id, device_ip and rank_id"),
    ("R55", "merged.json", "g[2]['server_list'][0]['device'][1]['rank_id'] = '5'",
     f'merged.json: {G}[2].server_list[0].device[1].rank_id: rank_id is "5"; write "1": ranks count from 0 within an '
     "instance"),
    ("R56", "merged.json", "g[2]['server_list'][0]['device'][1]['device_id'] = '4'",
     f"merged.json: {G}[2].server_list[0].device[1].device_id: device 4 of 10.0.0.1 is also at "
     f"{G}[1].server_list[0].device[0].device_id; give each device to one instance"),
    ("R59", "merged.json", "g[1]['server_list'][1]['server_ip'] = '../../x'",
     f"merged.json: {G}[1].server_list[1].server_ip: '../../x' is no address or name of a host; write it like "
     "10.0.0.18, 2001:db8::7 or node-1"),
    ("R59", "merged.json", "g[0]['server_list'][0]['server_ip'] = '0.0.0.0'",
     f"merged.json: {G}[0].server_list[0].server_ip: '0.0.0.0' is no address or name of a host; write it like "
     "10.0.0.18, 2001:db8::7 or node-1"),
    ("R59", "merged.json", "g[2]['server_list'][0]['device'][1]['device_ip'] = '10.0.0.999'",
     f"merged.json: {G}[2].server_list[0].device[1].device_ip: '10.0.0.999' is no address or name of a host; write it "
     "like 10.0.0.18, 2001:db8::7 or node-1"),
    ("R59", "d.json", "s[0]['server_ip'] = 'a/b'",
     "d.json: $.server_list[0].server_ip: 'a/b' is no address or name of a host; write it like 10.0.0.18, "
     "2001:db8::7 or node-1"),
    ("R59", "merged.json", "g[1]['server_list'][1]['server_ip'] = '::FFFF:127.0.0.1'",
     f"merged.json: {G}[1].server_list[1].server_ip: ::FFFF:127.0.0.1 stands in a table of several hosts; generate "
     "that host's table again with --local-ip and an address the others can reach"),
    ("R54", "merged.json", "g.pop(0)", f"merged.json: {G}: no scheduler; generate one host's table with --api-server, "
     "then merge"),
    ("R54", "merged.json", "g.pop(0); g[0].update(server_count='0', server_list=[])",
     f"merged.json: {G}[0].server_list: no prefill instance; generate one with --prefill-server-list, then merge"),
    ("R54", "merged.json", "g.pop()", f"merged.json: {G}: no decode instance; generate one with --decode-server-list, "
     "then merge"),
    ("R56", "d.json", "d[1]['device_id'] = '6'",
     "d.json: $.server_list[0].device[1].device_id: device 6 of 10.0.0.1 is also at "
     "$.server_list[0].device[0].device_id; give each device to one instance"),
    ("R57", "merged.json", "g[1]['server_list'][0]['device'][0].pop('device_ip')",
     f"merged.json: {G}[1].server_list[0].device[0].device_ip: is missing; add it"),
    ("R57", "d.json", "d[1].pop('device_ip')", "d.json: $.server_list[0].device[1].device_ip: is missing; add it"),
    ("R57", "d.json", "d[1]['device_ip'] = ''",
     "d.json: $.server_list[0].device[1].device_ip: is ''; write at least one character"),
    ("R58", "merged.json", "t.pop('server_group_list'); t['group_id'] = '0'",
     "merged.json: $: is a local table, of one instance, and no global one; name a global table here; a local one goes "
     "to --local of check, --rank-table of serve, or --from local"),
    ("R58", "d.json", "t.pop('group_id'); t['server_group_list'] = []",
     "d.json: $: is a global table, of all instances, and no local one; name a local table here; a global one goes to "
     "--global of check, --global-rank-table of serve, or --from global"),
    ("R58", "merged.json", "t['status'] = 'done\\n\\x1b[31m\\x9b\\u202e'",
     'merged.json: $.status: status is "done\\n\\x1b[31m\\x9b\\u202e"; wait for the table to be '
     '"completed", or write that'),
    ("R58", "merged.json", "t['version'] = 2", 'merged.json: $.version: version is "2"; write "1.0"'),
    ("R59", "merged.json", "g[1]['server_list'][1]['server_ip'] = 'localhost'",
     f"merged.json: {G}[1].server_list[1].server_ip: localhost stands in a table of several hosts; generate that "
     "host's table again with --local-ip and an address the others can reach"),
    ("R61", "d.json", "t['group_id'] = '2'", 'd.json: $.group_id: group_id is "2"; write "0"'),
    ("R61", "d.json", "t['server_count'] = '2'", 'd.json: $.server_count: server_count is "2"; write "1"'),
    ("R61", "d.json", "s.append(s[0])",
     "d.json: $.server_list: server_list holds 2 entries; keep the one entry of this instance"),
    ("R61", "d.json", "s.clear()", "d.json: $.server_list: is empty; generate the table again"),
    ("R61", "d.json", "d[0]['device_ip'] = '9.9.9.9'",
     "d.json: $.server_list[0].device[0].device_ip: is '9.9.9.9' here but '10.0.0.1' in the global table's entry "
     f"{G}[2].server_list[0]; make both the same, or generate both tables in one run"),
    ("R61", "d.json", "d[1]['device_id'] = '9'",
     "d.json: $.server_list[0]: 10.0.0.1 with devices 6, 9 is not in the global table; generate both tables in one "
     "run, then merge again"),
    ("R61", "host.json", "s[0]['server_ip'] = '10.0.0.7'",
     "host.json: $.server_list[0]: 10.0.0.7 with the service entry is not in the global table; generate both tables in "
     "one run, then merge again"),
    ("R62", "d.json", "s[0]['device'] = [dict(one, device_id=n) for one, n in zip(d, '45')]",
     "d.json: $.server_list[0]: the global table's entry "
     f"{G}[1].server_list[0] already has the local table p.json; keep one of the two"),
    ("R62", "merged.json", "g[2].update(server_count='2'); g[2]['server_list'].append("
     "dict(server_id='x', server_ip='x', device=[dict(device_id='0', device_ip='x', rank_id='0')]))",
     f"merged.json: {G}[2].server_list[1]: decode instance on devices 0 of x has no local table; give its table with "
     "--local, or generate it on that host"),
    ("R58", "q.json", "t.pop('server_list')", "q.json: $.server_list: is missing; add it"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "table", "statement", "message"), CHECKS)
def test_wrong_tables(row: str, table: str, statement: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ranktable", "check", "--global", "merged.json", "--local", "p.json", "d.json", "q.json", "host.json"]
    assert run(command) == 0
    assert capsys.readouterr().out == "merged.json: keeps all rules\n"
    change(table, statement)
    assert run(command) == 3
    assert message in capsys.readouterr().out.splitlines()


def test_all_faults_of_a_shape_are_told_each_with_its_json_path(capsys: pytest.CaptureFixture[str]) -> None:
    change(
        "merged.json", "g[1]['server_list'][0]['device'][1].pop('rank_id'); g[2]['server_count'] = 1.5; t.pop('status')"
    )
    change("d.json", "d[0].update(device_id='six', device_ip=6.5); s[0].update(server_id=[])")
    assert run(["ranktable", "check", "--global", "merged.json", "--local", "d.json", "--json"]) == 3
    findings = json.loads(capsys.readouterr().out)
    assert [(one["source"], one["path"], one["problem"], one["fix"]) for one in findings] == [
        ("merged.json", "$.status", "is missing", "add it"),
        ("merged.json", f"{G}[1].server_list[0].device[1].rank_id", "is missing", "add it"),
        ("merged.json", f"{G}[2].server_count", "is 1.5", "write a whole number, of nine digits at most"),
        ("d.json", "$.server_list[0].server_id", "is []", "write text between quotes"),
        ("d.json", "$.server_list[0].device[0].device_id", "is 'six'", "write a whole number, of nine digits at most"),
    ]
    assert {one["rule"] for one in findings} == {"format"}


SPELLINGS = [
    ("local_rank_table_10.0.0.1_45.json", "local_ranktable_10.0.0.1_45.json"),
    ("local_ranktable_10.0.0.1_host.json", "local_rank_table_10.0.0.1_host.json"),
    ("global_rank_table.json", "global_ranktable.json"),
    ("global_ranktable_10.0.0.1.json", "global_rank_table_10.0.0.1.json"),
]


@pytest.mark.parametrize(("asked", "there"), SPELLINGS)
@pytest.mark.parametrize(
    "command", ["show", "check --global", "check --global a.json --local", "merge --global-ranktable-list"]
)
def test_the_other_spelling_of_a_missing_file_is_suggested(
    asked: str, there: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(there).write_text("{}")
    assert run(["ranktable", *command.split(), asked]) == 2
    assert capsys.readouterr().err == f"tandem: {asked}: no such file; did you mean {there}, which exists?\n"


def test_a_service_on_localhost_is_merged_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    gen = ["ranktable", "gen", "--local-ip", "localhost", "--prefill-server-list", "4,5"]
    assert run([*gen, "--decode-server-list", "6,7", "--api-server"]) == 0
    capsys.readouterr()
    warning = (
        "warning: global_ranktable_merge.json: every instance is on localhost, so the table holds on one host only; "
        "for several hosts, generate it again with --local-ip and an address the others can reach\n"
    )
    assert run(["ranktable", "merge", "--global-ranktable-list", "global_ranktable_localhost.json"]) == 0
    assert capsys.readouterr().err == f"tandem: {warning}"
    assert main([*MERGE.split(), "global_ranktable_localhost.json"]) == 0
    assert capsys.readouterr().err == f"pd_ranktable_tools.py: {warning}"
