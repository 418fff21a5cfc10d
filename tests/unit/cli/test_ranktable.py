from __future__ import annotations

import json
from pathlib import Path

import pytest

from tandem.cli import run

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
