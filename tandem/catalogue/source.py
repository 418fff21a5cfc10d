"""Which folder a model's name means on this machine; nothing is downloaded here.

A folder is itself. The name of a catalogue entry, or `organisation/model`, is a snapshot in the Hugging Face cache.

Source: the cache layout of huggingface_hub: `models--ORG--NAME/refs/REVISION` holds a commit, `snapshots/COMMIT` the
files.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tandem.catalogue.models import MODELS
from tandem.errors import ModelFolderError

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ADDRESS = re.compile(r"[a-z0-9]+://")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Source:
    """A model on the hub."""

    repository: str
    revision: str = "main"
    """Branch, tag or commit."""

    @classmethod
    def of(cls, text: str, revision: str | None = None) -> Source | None:
        """What a catalogue name or `organisation/model` means, at the catalogue's revision; None for anything else."""
        if named := MODELS.get(text.lower()):
            return cls(named.repository, revision or named.revision or "main")
        pinned = next((model.revision for model in MODELS.values() if model.repository == text), None)
        return cls(text, revision or pinned or "main") if REPOSITORY.fullmatch(text) else None

    @property
    def cache(self) -> Path:
        """Where the cache keeps it."""
        return hub_cache() / f"models--{self.repository.replace('/', '--')}"

    def snapshot(self) -> Path | None:
        """The cached folder, if there is one."""
        reference = self.cache / "refs" / self.revision
        commit = self.revision
        if not COMMIT.fullmatch(commit):
            commit = reference.read_text().strip() if reference.is_file() else ""
        folder = self.cache / "snapshots" / commit
        return folder if COMMIT.fullmatch(commit) and folder.is_dir() else None


def hub_cache() -> Path:
    """Folder of the Hugging Face cache, as its environment variables say."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache)
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def model_folder(text: str | Path) -> Path:
    """The folder that `text` means: one with a `config.json`; whoever loads it looks closer.

    Raises:
        ModelFolderError: There is none; the message says how to get it.
    """
    if ADDRESS.match(str(text)):
        raise ModelFolderError(
            f"{text}: is an address, and a model is read from a folder; from an object store bring it with "
            f"`tandem data sync {text} FOLDER`, from the hub with `tandem model fetch ORGANISATION/MODEL`"
        )
    folder = Path(text)
    if not folder.is_dir():
        folder = _snapshot(str(text))
    if not (folder / "config.json").is_file():
        raise ModelFolderError(f"{folder}: has no config.json; give a folder in Hugging Face format")
    return folder


def served_name(text: str | Path) -> str:
    """What clients call a model that was given as `text`: a folder's own name, or the text itself."""
    folder = Path(text)
    return folder.resolve().name if folder.is_dir() else str(text)


def _snapshot(text: str) -> Path:
    source = Source.of(text)
    if source is None:
        raise ModelFolderError(f"{text}: no such folder; give the folder of a model, with its config.json")
    if (snapshot := source.snapshot()) is None:
        raise ModelFolderError(
            f"{text}: no such folder, and {source.repository} at {source.revision} is not in {hub_cache()}; "
            f"get it with `tandem model fetch {text}`"
        )
    return snapshot
