"""Files and folders that are whole or not there, even when the writer is killed."""

from __future__ import annotations

import os
import platform
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest
from recording import Recording

from tandem.errors import CheckpointError
from tandem.files import NotRegularError, json_bytes, read_json_object, there, whole_folder, write_whole
from tandem.training.alone import alone_at, at_work


@contextmanager
def no_room() -> Iterator[None]:
    """No file may have a byte more, as on a full disk; the one that pytest may be writing its own lines to neither."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


def test_what_has_no_room_is_named_and_keeps_nobody_from_being_alone(tmp_path: Path) -> None:
    with no_room():
        with pytest.raises(OSError, match=f"File too large: '{tmp_path}/file'"):
            write_whole(tmp_path / "file", b"one")
        with pytest.raises(OSError, match=f"File too large: '{tmp_path}/a'"), whole_folder(tmp_path / "a") as part:
            (part / "file").write_bytes(b"one")  # the system does not say which
        place = tmp_path / "run"
        with alone_at(place, Recording(), work="trains", wait=False):
            assert at_work(place) == "another process (unknown)"


def test_written_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name, target in (("link", "elsewhere/file"), ("far", "link"), ("dangling", "new/folder/file")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "elsewhere" / "file").write_bytes(b"old")
    for name, end in (("link", "elsewhere/file"), ("far", "elsewhere/file"), ("dangling", "new/folder/file")):
        write_whole(tmp_path / name, name.encode())
        assert (tmp_path / name).is_symlink()
        assert not (tmp_path / end).is_symlink()
        assert (tmp_path / end).read_bytes() == name.encode()
    assert not list(tmp_path.rglob("*.part"))


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one, chdir(path.parent):  # the length of its name is limited
        one.bind(path.name)


IRREGULAR: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "socket": make_socket,
    "device": make_device,
}


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("kind", IRREGULAR)
def test_what_is_no_file_is_not_replaced(kind: str, link: bool, tmp_path: Path) -> None:
    path = there = tmp_path / kind
    IRREGULAR[kind](there)
    before = there.stat()
    if link:
        path = tmp_path / "link"
        path.symlink_to(kind)
    with pytest.raises(NotRegularError, match="is not a regular file") as raised:
        write_whole(path, b"new")
    assert raised.value.filename == str(path)
    assert (there.lstat().st_mode, there.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert path.is_symlink() == link
    assert len(list(tmp_path.iterdir())) == 1 + link


def test_what_an_open_pipe_is_called_is_not_replaced() -> None:
    reading, writing = os.pipe()
    with pytest.raises(NotRegularError, match="is not a regular file"):
        write_whole(Path(f"/proc/self/fd/{writing}"), b"new")
    os.close(reading)
    os.close(writing)


def test_a_ring_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        write_whole(tmp_path / "a", b"new")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_folder(tmp_path / "f") as part:
            (part / "a").write_text("a")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "f") as part:
        (part / "deep").mkdir()
        (part / "deep" / "a").write_text("a")
    assert (tmp_path / "f" / "deep" / "a").read_text() == "a"


KILLED = """
import os, signal, sys
from pathlib import Path
from tandem.files import whole_folder, write_whole
base = Path(sys.argv[1])
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
Path.rename = Path.replace = die
if sys.argv[2] == "folder":
    with whole_folder(base / "f") as part:
        (part / "a").write_text("half")
else:
    write_whole(base / "file", b"new")
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_before_the_last_step_leaves_the_old_state(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), kind], check=False)
    assert killed.returncode == -9
    assert (tmp_path / "file").read_bytes() == b"old"
    assert not (tmp_path / "f").exists()
    assert len(list(tmp_path.glob(".*.part"))) == 1
    write_whole(tmp_path / "file", b"newer")
    with whole_folder(tmp_path / "f") as part:
        (part / "a").write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "f"}, "what was left is removed"


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / f".f.{platform.node()}.{os.getppid()}.part"
    elsewhere = tmp_path / ".f.another-host.1.part"
    for part in (theirs, elsewhere):
        part.mkdir()
    with whole_folder(tmp_path / "f"):
        pass
    assert theirs.exists()
    assert elsewhere.exists()


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "nowhere")
    assert there(link)
    assert not there(tmp_path / "nowhere")
    for path in (pipe, Path("/dev/zero"), link):
        with pytest.raises(CheckpointError, match=str(path)):
            read_json_object(path, CheckpointError)


def test_a_json_file_of_absurd_size_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=r"x.json: has more than"):
        read_json_object(tmp_path / "x.json", CheckpointError)


def test_json_objects_round_trip_and_fail_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(json_bytes({"ä": [1]}))
    assert read_json_object(path, CheckpointError) == {"ä": [1]}
    for content in ("{", "[]", "\0"):
        path.write_text(content)
        with pytest.raises(CheckpointError, match=str(path)):
            read_json_object(path, CheckpointError)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json_object(path, CheckpointError)
