"""Folders that a run writes to: whether it can, and whether there is room for what it will write there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from tandem.catalogue.drawing import size_text
from tandem.files import there
from tandem.training.preflight.finding import Remark, good, problem


def look_at_folders(wanted: Mapping[Path, int]) -> Iterator[Remark]:
    """Of each whether it can be written, and of each file system whether it has the room; leaves nothing behind.

    Args:
        wanted: Folder, there or not yet -> bytes that will come into it beside what it holds.
    """
    standing = {folder: nearest(folder) for folder in wanted}
    on: dict[int, list[Path]] = defaultdict(list)
    for place in dict.fromkeys(standing.values()):
        folders = [folder for folder in wanted if standing[folder] == place]
        try:
            with tempfile.TemporaryFile(dir=place):
                on[place.stat().st_dev] += folders
        except OSError as error:
            yield problem(
                f"{_names(folders)}: {place} cannot be written to ({error.strerror}); let this user write there, or "
                "choose another place"
            )
    for folders in on.values():
        yield _room(folders, sum(wanted[folder] for folder in folders))


def _room(folders: list[Path], needed: int) -> Remark:
    free = shutil.disk_usage(nearest(folders[0])).free
    says = f"{_names(folders)}: {size_text(needed)} will be written, {size_text(free)} are free"
    return good(says) if needed <= free else problem(f"{says}; make room there, or choose another disk")


def _names(folders: list[Path]) -> str:
    return ", ".join(map(str, folders))


def nearest(path: Path) -> Path:
    """The path itself, or the nearest above it that is there; a link to nowhere is there, and stands in the way."""
    return next(one for one in (path, *path.absolute().parents) if there(one))


def held(folder: Path, pattern: str) -> int:
    """Bytes of all files below the entries of a folder that match."""
    files = (Path(root, name) for entry in folder.glob(pattern) for root, _, names in os.walk(entry) for name in names)
    return sum(file.stat().st_size for file in files)
