from __future__ import annotations

from pathlib import Path

from tandem.training.preflight.space import held, look_at_folders, nearest


def test_folders_of_one_file_system_need_their_sum(tmp_path: Path) -> None:
    (remark,) = look_at_folders({tmp_path / "a" / "b": 3 << 20, tmp_path / "c": 2 << 20})
    assert remark.verdict == "good"
    assert remark.text.startswith(f"{tmp_path}/a/b, {tmp_path}/c: 5.00 MiB will be written, ")
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_a_problem(tmp_path: Path) -> None:
    (remark,) = look_at_folders({tmp_path: 1 << 60})
    assert remark.verdict == "problem"
    assert "1,073,741,824.00 GiB will be written" in remark.text
    assert remark.text.endswith("make room there, or choose another disk")


def test_what_cannot_be_written_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    places = {Path("/proc/x/y"): 1, Path("/proc/z"): 1, tmp_path / "file" / "x": 0, tmp_path / "link" / "x": 0}
    inside, there, link = look_at_folders(places)
    assert (inside.verdict, there.verdict, link.verdict) == ("problem", "problem", "problem")
    assert inside.text.startswith("/proc/x/y, /proc/z: /proc cannot be written to (")
    assert there.text.startswith(f"{tmp_path}/file/x: {tmp_path}/file cannot be written to (Not a directory)")
    assert link.text.startswith(f"{tmp_path}/link/x: {tmp_path}/link cannot be written to (")


def test_what_is_there_already_is_counted(tmp_path: Path) -> None:
    for step in (1, 2):
        (tmp_path / f"iter_{step:07d}").mkdir()
        (tmp_path / f"iter_{step:07d}" / "part").write_bytes(bytes(100))
    assert held(tmp_path, "iter_*") == 200
    assert held(tmp_path / "none", "*") == 0
    assert nearest(tmp_path / "a" / "b") == tmp_path
    assert list(look_at_folders({})) == []
