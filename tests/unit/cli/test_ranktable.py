from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tandem.cli import run
from tandem.compat.pd_ranktable_tools import main
from tandem.topology import rank_table_set, visible_devices

GEN = ["ranktable", "gen", "--prefill-server-list", "4,5", "--decode-server-list", "6,7", "--api-server"]


@pytest.fixture
def saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert (
        run([*GEN, "--save-dir", str(tmp_path), "--local-ip", "10.0.0.18", "--device-ip", "4=1.1.1.4", "5=1.1.1.5"])
        == 0
    )
    printed = capsys.readouterr().out.split()
    assert printed == [str(tmp_path / name) for name in (
        "global_ranktable_10.0.0.18.json", "local_ranktable_10.0.0.18_45.json",
        "local_ranktable_10.0.0.18_67.json", "local_ranktable_10.0.0.18_host.json",
    )]  # fmt: skip
    return tmp_path


def test_several_instances_after_one_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ranktable", "gen", "--prefill-server-list", "0,1", "8,15", "--save-dir", str(tmp_path)]
    assert run([*command, "--local-ip", "10.0.0.2"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "global_ranktable_10.0.0.2.json", "local_ranktable_10.0.0.2_01.json", "local_ranktable_10.0.0.2_8_15.json",
    ]  # fmt: skip


@pytest.mark.parametrize("front", ["tandem", "pd_ranktable_tools.py"])
def test_gen_compares_with_the_devices_that_are_here_and_warns(
    front: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia4").touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(visible_devices, "DEV", tmp_path)
    monkeypatch.setattr(rank_table_set, "local_address", lambda: "127.0.0.1")

    def gen(devices: str) -> int:
        words = ["--prefill-server-list", devices, "--save-dir", str(tmp_path / "out")]
        return run(["ranktable", "gen", *words]) if front == "tandem" else main(["--mode", "gen", *words])

    assert gen("4,5") == 2
    assert capsys.readouterr().err == (
        f"{front}: device 5 is not here: {tmp_path} has nvidia4; give it to the container, or give the instance other "
        "devices\n"
    )
    assert not (tmp_path / "out").exists()
    assert gen("4") == 0
    assert capsys.readouterr().err.startswith(f"{front}: warning: this host has no route to others, so its address")


def test_instances_whose_files_would_have_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gen = ["ranktable", "gen", "--prefill-server-list", "1,5", "--decode-server-list", "15", "--api-server"]
    assert run([*gen, "--save-dir", str(tmp_path), "--local-ip", "10.0.0.1"]) == 0
    names = [f"local_ranktable_10.0.0.1_{end}.json" for end in ("15", "1_5", "host")]
    assert sorted(path.name for path in tmp_path.glob("local_*")) == names
    table, local = tmp_path / "global_ranktable_10.0.0.1.json", [str(tmp_path / name) for name in names]
    assert run(["ranktable", "check", "--global", str(table), "--local", *local]) == 0
    again = tmp_path / "again"
    convert = ["ranktable", "convert", str(table), str(tmp_path / "g.json"), "--to", "global"]
    assert run([*convert, "--local-tables", str(again)]) == 0
    assert {path.name: path.read_text() for path in again.iterdir()} == {
        name: (tmp_path / name).read_text() for name in names
    }


def test_show_draws_no_escapes_of_a_file(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = saved / "global_ranktable_10.0.0.18.json"
    table.write_text(table.read_text().replace("10.0.0.18", "10\\u001b[31m\\n"))
    assert run(["ranktable", "show", str(table)]) == 0
    drawn = capsys.readouterr().out
    assert "10\\x1b[31m\\n" in drawn
    assert "\x1b" not in drawn


def test_merge_and_check(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = ["ranktable", "gen", "--decode-server-list", "0,1", "--save-dir", str(saved), "--local-ip", "10.0.0.2"]
    assert run(other) == 0
    files = [str(saved / f"global_ranktable_10.0.0.{n}.json") for n in (18, 2)]
    assert run(["ranktable", "merge", "--global-ranktable-list", *files, "--save-dir", str(saved / "m")]) == 0
    merged = saved / "m" / "global_ranktable_merge.json"
    assert merged.is_file()
    local = sorted(str(path) for path in saved.glob("local_*"))
    assert run(["ranktable", "check", "--global", str(merged), "--local", *local]) == 0
    capsys.readouterr()
    assert run(["ranktable", "check", "--global", str(merged), "--local", *local[:-1], "--json"]) == 3
    (finding,) = json.loads(capsys.readouterr().out)
    assert set(finding) == {"source", "path", "rule", "problem", "fix"}
    assert run(["ranktable", "check", "--global", files[1]]) == 3
    assert "no scheduler" in capsys.readouterr().out
    assert run(["ranktable", "check", "--global", files[1], "--partial"]) == 0


def test_show_draws_without_colour(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run(["ranktable", "show", str(saved / "global_ranktable_10.0.0.18.json")]) == 0
    drawn = capsys.readouterr().out
    assert "\x1b[3" not in drawn
    assert "prefill-0" in drawn
    assert "4 (1.1.1.4), 5 (1.1.1.5)" in drawn
    assert run(["ranktable", "show", str(saved / "local_ranktable_10.0.0.18_45.json"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["host"], row["role"], row["devices"]) == ("10.0.0.18", None, {"4": "1.1.1.4", "5": "1.1.1.5"})


def test_errors_are_one_line(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ranktable", "show", str(saved / "local_rank_table_10.0.0.18_45.json")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "did you mean" in error
    table = str(saved / "global_ranktable_10.0.0.18.json")
    assert run(["ranktable", "merge", "--global-ranktable-list", table, table]) == 2
    assert "2 schedulers" in capsys.readouterr().err


def test_convert_there_and_back(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, topology = str(saved / "global_ranktable_10.0.0.18.json"), str(saved / "topology.yaml")
    command = ["ranktable", "convert", table, topology, "--to", "topology", "--model", "m", "--ports", "8088,8089"]
    assert run([*command, "--scheduler-port", "9000"]) == 0
    back, local = saved / "back" / "global.json", saved / "back" / "local"
    command = ["ranktable", "convert", topology, str(back), "--to", "global", "--local-tables", str(local)]
    assert run(command) == 2
    assert "--leave-out port model" in capsys.readouterr().err
    assert not back.parent.exists()
    assert run([*command, "--leave-out", "port", "model"]) == 0
    assert capsys.readouterr().out.split() == [str(back), *(str(local / name) for name in (
        "local_ranktable_10.0.0.18_host.json", "local_ranktable_10.0.0.18_45.json", "local_ranktable_10.0.0.18_67.json",
    ))]  # fmt: skip
    assert back.read_text() == Path(table).read_text()
    for path in local.iterdir():
        assert path.read_text() == (saved / path.name).read_text()


def test_convert_names_what_it_does_not_take(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out = str(saved / "local_ranktable_10.0.0.18_45.json"), str(saved / "out")
    assert run(["ranktable", "convert", table, out, "--to", "json"]) == 2
    assert "there is no format json; choose from topology, global" in capsys.readouterr().err
    assert run(["ranktable", "convert", table, out, "--to", "hccl", "--from", "global"]) == 2
    assert "$: is a local table, of one instance, and no global one" in capsys.readouterr().err
    assert run(["ranktable", "convert", table, out, "--to", "hccl", "--local-tables", out]) == 2
    assert "--local-tables belong to a global table, not to an HCCL table; use --to global" in capsys.readouterr().err
    assert not Path(out).exists()
    assert run(["ranktable", "convert", table, out, "--to", "global", "--role", "decode"]) == 0
    assert run(["ranktable", "show", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2])[0]["role"] == "decode"


def test_local_tables_stay_in_their_folder(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (saved / "folder" / "local_ranktable_..").mkdir(parents=True)  # what makes a way out of the name
    table, folder = saved / "global_ranktable_10.0.0.18.json", saved / "folder"
    wrong, before = saved / "wrong.json", sorted(saved.iterdir())
    for host in ("../../out", "../out", ".."):
        wrong.write_text(table.read_text().replace('"server_ip": "10.0.0.18"', f'"server_ip": "{host}"'))
        command = ["ranktable", "convert", str(wrong), str(folder / "out.json"), "--to", "global"]
        assert run([*command, "--local-tables", str(folder)]) == 2
        assert f"server_ip: '{host}' is no address or name of a host; write it like" in capsys.readouterr().err
    wrong.unlink()
    assert sorted(saved.iterdir()) == before


def test_outputs_replace_nothing_but_files(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, link, pipe = str(saved / "global_ranktable_10.0.0.18.json"), saved / "link", saved / "pipe"
    command = ["ranktable", "convert", table]
    link.symlink_to("other")
    assert run([*command, str(link), "--to", "global"]) == 0
    assert link.is_symlink()
    assert (saved / "other").read_text() == Path(table).read_text()
    os.mkfifo(pipe)
    link.unlink()
    link.symlink_to("pipe")
    merged = saved / "global_ranktable_merge.json"
    merged.symlink_to("pipe")
    capsys.readouterr()
    for words, out in (
        ([*command, str(pipe), "--to", "global"], pipe),
        ([*command, str(link), "--to", "global"], link),
        (["ranktable", "merge", "--global-ranktable-list", table, "--save-dir", str(saved)], merged),
    ):
        assert run(words) == 2
        assert capsys.readouterr().err == f"tandem: {out}: cannot be written (is not a regular file); name a file\n"
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_gen_prints_json_instead_of_writing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*GEN, "--local-ip", "10.0.0.18", "--json"]) == 0
    assert next(iter(json.loads(capsys.readouterr().out))) == "global_ranktable_10.0.0.18.json"
    assert not list(tmp_path.iterdir())
