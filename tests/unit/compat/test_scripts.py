from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tandem
from tandem.cli import run
from tandem.topology.visible_devices import VARIABLES

TOOLS = "llm_tools/PD_separate/pd_ranktable_tools.py"
SERVERS = "llm_tools/PD_separate/start_servers.sh"
SOURCE = str(Path(tandem.__file__).parents[1])


def script(folder: Path, name: str, *words: str, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    """One of the scripts, run as the documents run it."""
    shell = sys.executable if name.endswith(".py") else "sh"
    counted = dict.fromkeys(VARIABLES.values(), "0")  # the tables' devices need not be here
    environment = {**os.environ, **counted, "PYTHONPATH": SOURCE, "PATH": path}
    return subprocess.run(
        [shell, folder / name, *words], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )


@pytest.fixture
def tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert run(["compat", "scripts", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split()[:2] == [str(tmp_path / TOOLS), str(tmp_path / SERVERS)]
    return tmp_path


def test_the_tree_is_executable_and_written_again(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert all(os.access(tree / name, os.X_OK) for name in (TOOLS, SERVERS))
    assert run(["compat", "scripts", str(tree)]) == 0


def test_files_that_differ_are_kept_without_force(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / SERVERS).write_text("mine")
    (tree / TOOLS).unlink()
    assert run(["compat", "scripts", str(tree)]) == 2
    assert capsys.readouterr().err == (
        f"tandem: {tree / SERVERS}: is there with other contents; move it away, or overwrite it with --force\n"
    )
    assert not (tree / TOOLS).exists()
    assert run(["compat", "scripts", str(tree), "--force"]) == 0
    assert (tree / SERVERS).read_text() != "mine"


def test_what_is_no_file_is_not_overwritten(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / TOOLS).unlink()
    for make in (Path.mkdir, os.mkfifo):
        (tree / SERVERS).rmdir() if (tree / SERVERS).is_dir() else (tree / SERVERS).unlink()
        make(tree / SERVERS)
        for force in ([], ["--force"]):
            assert run(["compat", "scripts", str(tree), *force]) == 2
            assert capsys.readouterr().err == f"tandem: {tree / SERVERS}: is not a regular file; move it away\n"
            assert not (tree / TOOLS).exists()


def test_a_bad_place_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "ring").symlink_to("ring")
    for place, reason in (("file", "written (Not a directory)"), ("ring", "read (Too many levels of symbolic links)")):
        for force in ([], ["--force"]):
            assert run(["compat", "scripts", str(tmp_path / place), *force]) == 2
            assert capsys.readouterr().err == (
                f"tandem: {tmp_path / place / TOOLS}: cannot be {reason}; choose a folder you may write to\n"
            )


def test_the_documents_commands_make_and_merge_tables(tree: Path) -> None:
    instances = ["--prefill-server-list", "4,5", "--decode-server-list", "6,7", "--api-server"]
    command = [TOOLS, "--mode", "gen", *instances, "--save-dir", "./save_dir", "--local-ip", "10.0.0.18"]
    done = script(tree, *command)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [
        "save_dir/global_ranktable_10.0.0.18.json", "save_dir/local_ranktable_10.0.0.18_45.json",
        "save_dir/local_ranktable_10.0.0.18_67.json", "save_dir/local_ranktable_10.0.0.18_host.json",
    ]  # fmt: skip
    twice = ["--prefill-server-list", "0,1", "--prefill-server-list", "2,3", "--local-ip", "10.0.0.19"]
    done = script(tree, TOOLS, "--mode", "gen", *twice)
    assert done.stdout.split() == [
        "global_ranktable_10.0.0.19.json", "local_ranktable_10.0.0.19_01.json", "local_ranktable_10.0.0.19_23.json",
    ]  # fmt: skip  # here, without --save-dir
    files = ["./save_dir/global_ranktable_10.0.0.18.json", "./global_ranktable_10.0.0.19.json"]
    done = script(tree, TOOLS, "--mode", "merge", "--global-ranktable-list", *files, "--save-dir", "./all")
    assert (done.returncode, done.stdout) == (0, "all/global_ranktable_merge.json\n")


def test_a_python_without_tandem_is_told_of(tree: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-I", tree / TOOLS, "--mode", "gen"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (
        1, f"pd_ranktable_tools.py: {sys.executable} lacks tandem; use the Python that has tandem\n",
    )  # fmt: skip


def test_servers_are_started_by_tandem_serve(tree: Path) -> None:
    (tree / "tandem").write_text('#!/bin/sh\nfor word; do echo "<$word>"; done\necho "$RANK_TABLE_FILE_PATH"\nexit 5\n')
    (tree / "tandem").chmod(0o755)
    done = script(
        tree, SERVERS, "--model=a b", "--port=9000", "--served-model-name", "$x", path=f"{tree}:/usr/bin:/bin"
    )
    words = ["<serve>", "<--from-rank-table>", "<--model=a b>", "<--port=9000>", "<--served-model-name>", "<$x>"]
    assert done.stdout.splitlines()[:-1] == words
    assert done.returncode == 5
    done = script(tree, SERVERS)
    assert (done.returncode, done.stderr.count("\n")) == (127, 1)
    assert "tandem is not on the PATH; activate the environment it is installed in" in done.stderr
