"""Files that a parser chokes on, or that would choke whoever writes them again: every command says so in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tandem.cli import run
from tandem.compat.pd_ranktable_tools import main
from tandem.errors import TopologyError
from tandem.topology.file import parse_topology
from tandem.topology.rank_table import render
from tandem.topology.rank_table_set import generate
from tandem.topology.text_file import LARGEST

TABLE = render(generate(prefill=[[4]], decode=[[6]], api_server=True, local_ip="10.0.0.1").global_table)
G = "$.server_group_list"


def with_key(value: str) -> str:
    """The table with an unknown key in JSON text."""
    return TABLE.replace('"status"', f'"x": {value}, "status"', 1)


def in_group(fields: str) -> str:
    """The table with a group before its first."""
    return TABLE.replace('"server_group_list": [', f'"server_group_list": [{{{fields}}},', 1)


JSON = {
    "5000 digits": (with_key("9" * 5000), "$.x: is no finite number, or too large"),
    "599 digits": (with_key("9" * 599), "$.x: is too large a number"),
    "5000 digits in a number": (
        TABLE.replace('"device_id": "4"', f'"device_id": {"9" * 5000}'),
        f"{G}[1].server_list[0].device[0].device_id: is no finite number",
    ),
    "300 levels": (with_key("[" * 300 + "]" * 300), "...: is nested deeper than 100 levels; check the file"),
    "100000 levels": (with_key("[" * 100000), "is nested too deeply to be a rank table; check the file"),
    "half a pair": (with_key('"\\ud800"'), "$.x: is no Unicode text"),
    "half a pair in a key": (with_key('[{"\\udc00": 1}]'), "$.x[0]: has the key '\\udc00', which is no Unicode text"),
    "NaN": (with_key("NaN"), "$.x: is no finite number"),
    "1e999": (with_key("1e999"), "$.x: is no finite number"),
    "a key twice": (
        TABLE.replace('"server_count"', '"server_list": [], "server_count"', 1),
        f"{G}[0]: key 'server_list' stands twice; keep one of the two",
    ),
    "a strange key twice": (with_key('{"a\\nb": {"c": 1, "c": 2}}'), "$.x['a\\nb']: key 'c' stands twice"),
    "a number as list": (
        in_group('"group_id": "1", "server_count": "1", "server_list": 5'),
        "$.server_group_list[0].server_list: is 5; write a list between [ and ]",
    ),
    "a number as group": (TABLE.replace('"server_group_list": [', '"server_group_list": [5,'), "server_group_list[0]"),
    "a truth as server": (
        in_group('"group_id": "1", "server_count": "1", "server_list": [true]'),
        "$.server_group_list[0].server_list[0]: is True; write keys and values between { and }",
    ),
}
COMMANDS = [
    "check --global t.json",
    "check --global good.json --local t.json",
    "show t.json",
    "merge --global-ranktable-list t.json",
    "convert t.json out.json --to global",
    "convert t.json out.json --to mindie --controller h --leave-out role",
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.json").write_text(TABLE)


@pytest.mark.parametrize(("text", "message"), JSON.values(), ids=list(JSON))
def test_bad_json_is_one_line_from_every_command(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.json").write_text(text)
    for command in COMMANDS:
        code = run(["ranktable", *command.split()])
        said = capsys.readouterr()
        lines = (said.out + said.err).splitlines()
        assert (code, len(lines)) == (3 if "check" in command else 2, 1), command
        assert "--local" in command or message in lines[0], command
        assert "t.json: " in lines[0]
        assert len(lines[0]) < 300
    assert main(["--mode", "merge", "--global-ranktable-list", "t.json"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out.json").exists()


def test_what_is_only_unusual_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    unusual = {"a": [1.5, -(10**400), None, True], "ä\n": "😀", "deep": json.loads("[" * 90 + "]" * 90)}
    Path("t.json").write_text(with_key(json.dumps(unusual)))
    assert run(["ranktable", "merge", "--global-ranktable-list", "t.json"]) == 0
    assert json.loads(Path("global_ranktable_merge.json").read_text())["x"] == unusual


SERVICE = "model: m\ninstances:\n- {name: p, role: both, host: h, arguments: {a: %s}}\n"
A = "$.instances[0].arguments.a: "
YAML = {
    "2001-99-99": "line 3, column 49: the value is no timestamp; mend the YAML there",
    "!!int x": "line 3, column 49: the value is no int",
    "!!int ''": "line 3, column 49: the value is no int",
    "!!float x": "line 3, column 49: the value is no float",
    "!!bool x": "line 3, column 49: the value is no bool",
    "!!timestamp x": "line 3, column 49: the value is no timestamp",
    "9" * 5000: "line 3, column 49: the value is no int",
    "0x" + "f" * 5000: A + "is too large a number",
    "[" * 5000: "is nested too deeply to be a topology; check the file",
    "[" * 200 + "]" * 200: "...: is nested deeper than 100 levels",
    "2001-01-01": A + "is a date; write text between quotes",
    ".nan": A + "is no finite number",
    '"\\ud800"': A + "is no Unicode text",
    "{~: 1}": A + "has the key None",
    "{2: 1}": A + "has the key 2",
    "!!set {b}": A + "is a set",
    "&a [*a]": "$.instances[0].arguments.a: is [[[",
    "1, a: 2": "line 3, column 52: key 'a' stands twice; mend the YAML there",
    "1}, host: h, x: {": "line 3, column 53: key 'host' stands twice",
}


@pytest.mark.parametrize(("value", "message"), YAML.items(), ids=[value[:20] for value in YAML])
def test_bad_yaml_is_one_line(value: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.yaml").write_text(SERVICE % value)
    for command in ("show t.yaml", "convert t.yaml out.json --to global"):
        assert run(["ranktable", *command.split()]) == 2
        said = capsys.readouterr().err
        assert said.startswith("tandem: t.yaml: ")
        assert message in said
        assert said.count("\n") == 1


@pytest.mark.parametrize("text", ["server_list: &a [*a]", "server_group_list: &a [*a]", "server_list: [2001-01-01]"])
def test_a_rank_table_in_yaml_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.yaml").write_text(text)
    assert run(["ranktable", "show", "t.yaml"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_aliases_are_no_repetition_and_cost_no_time() -> None:
    text = "model: m\ninstances:\n- &a {name: p, role: both, host: h}\n- {<<: *a, name: q}\n"
    assert [one.name for one in parse_topology(text, "t").instances] == ["p", "q"]
    lists = (f"a{i + 1}: &a{i + 1} [{','.join([f'*a{i}'] * 9)}]\n" for i in range(40))
    with pytest.raises(TopologyError, match=r"\$\.a0: is not a known field"):
        parse_topology(f"{text}a0: &a0 [x]\n{''.join(lists)}", "t")


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_file_is_not_waited_for(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe")
    Path("t.json").symlink_to("pipe")
    assert run(["ranktable", *command.split()]) == 2
    assert capsys.readouterr().err == "tandem: t.json: cannot be read (is not a regular file); name a file\n"


def test_a_file_without_end_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with Path("t.json").open("wb") as file:
        file.truncate(1 << 40)
    assert run(["ranktable", "show", "t.json"]) == 2
    assert capsys.readouterr().err == (
        f"tandem: t.json: has more than {LARGEST} bytes, which no such file has; check the path\n"
    )
