"""Which files a path means, in which order, and how each is read.

A file is known by its suffix. A folder stands for all data files in it and below it, sorted by path; files of two
formats are refused, because one of them is likely not meant. Three layouts are known beside that:

- a data set saved by Hugging Face `datasets` (`state.json` names its `.arrow` files in order);
- several of them (`dataset_dict.json`): the split `train` is taken;
- the hub's `train-*`, `test-*`, `validation-*` in one folder: the files of `train` are taken, so that nothing to be
  tested on is trained on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tandem.errors import DataError
from tandem.files import read_json_object

FORMATS = {
    ".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv",
    ".txt": "txt",
}  # fmt: skip
"""Suffix to format; `json` holds an array or an object with one, or is JSON Lines by another name."""

DESCRIPTIONS = re.compile(r"(readme|license|notice|dataset_infos?|state|dataset_dict)\.\w+", re.IGNORECASE)
"""Files that tell about the data and hold none."""
SPLIT = re.compile(r"(train|test|validation|valid|val|dev)(?=[-_.])", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One file to read rows from."""

    path: Path
    name: str
    """Below the input, for messages and for the side file."""
    format: str
    """A value of `FORMATS`."""


@dataclass(frozen=True, kw_only=True)
class DataFiles:
    """All files of an input."""

    files: tuple[DataFile, ...]
    left_out: tuple[str, ...]
    """Names of files of other splits than `train`."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.path.stat().st_size for file in self.files)


def find_files(path: Path) -> DataFiles:
    """The data files that a file's or folder's name stands for.

    Raises:
        DataError: There is none, a file's format is not known, or a folder mixes formats.
    """
    if path.is_dir():
        return _in_folder(path)
    if not path.exists():
        raise DataError(f"{path}: is not there; check the name of the data")
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path}: has no known suffix; data is {', '.join(FORMATS)}; unpack or rename the file")
    if not path.is_file():
        raise DataError(f"{path}: is a pipe or a device, and data is read more than once; write it into a file")
    return DataFiles(files=(_file(path, path.parent),), left_out=())


def _in_folder(folder: Path) -> DataFiles:
    if (folder / "dataset_dict.json").exists():
        if not (folder / "train").is_dir():
            raise DataError(f"{folder}: is a data set without the split `train`; give the folder of one split")
        return _in_folder(folder / "train")
    if (folder / "state.json").exists():
        return DataFiles(files=tuple(_saved_files(folder)), left_out=())
    found = [_file(path, folder) for path in sorted(folder.rglob("*")) if _is_data(path.relative_to(folder), path)]
    chosen = _train_only(found)
    formats = {file.format.removesuffix("l") for file in chosen}  # .json and .jsonl are read alike
    if not chosen:
        raise DataError(f"{folder}: holds no data file ({', '.join(FORMATS)}); check the name of the folder")
    if len(formats) > 1:
        examples = ", ".join(next(f.name for f in chosen if f.format.startswith(kind)) for kind in sorted(formats))
        raise DataError(f"{folder}: mixes formats ({examples}); give one file, or a folder with files of one format")
    return DataFiles(files=tuple(chosen), left_out=tuple(file.name for file in found if file not in chosen))


def _saved_files(folder: Path) -> Iterator[DataFile]:
    """The files of a data set that Hugging Face `datasets` saved, in its order, without its caches."""
    listed = read_json_object(folder / "state.json", DataError).get("_data_files")
    try:
        names = [str(entry["filename"]) for entry in listed or ()]
    except (TypeError, KeyError):
        names = []
    if not names:
        raise DataError(f"{folder}/state.json: names no _data_files; save the data set again")
    for name in names:
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: is missing, and state.json names it; copy the data set again")
        yield DataFile(path=folder / name, name=name, format="arrow")


def _is_data(name: Path, path: Path) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    if hidden or name.suffix.lower() not in FORMATS or DESCRIPTIONS.fullmatch(name.name):
        return False
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path}: is a link to nowhere; copy what it names, or remove it")
    return path.is_file()


def _train_only(files: list[DataFile]) -> list[DataFile]:
    splits = [match[0].lower() if (match := SPLIT.match(file.path.name)) else "" for file in files]
    if "train" not in splits or len(set(splits)) == 1:
        return files
    return [file for file, split in zip(files, splits, strict=True) if split in ("train", "")]


def _file(path: Path, root: Path) -> DataFile:
    return DataFile(path=path, name=path.relative_to(root).as_posix(), format=FORMATS[path.suffix.lower()])
