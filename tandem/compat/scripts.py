"""Writes the documents' tree of tools out of the package.

Files below llm_tools/ lie in this package as they are written; a script that is added there is written too. Training
scripts are filled in for every named model (`training_scripts.py`).
"""

from __future__ import annotations

from pathlib import Path

from tandem.compat.training_scripts import training_scripts
from tandem.errors import UsageError
from tandem.files import NotRegularError, require_regular, write_whole

SOURCE = Path(__file__).parent
TREES = ("llm_tools",)
SUFFIXES = (".py", ".sh")
EXECUTABLE = 0o755


def write_scripts(out: Path, *, force: bool = False) -> list[Path]:
    """Write every script, executable; returns their paths.

    Args:
        out: Folder that gets the tree.
        force: Whether files with other contents may be overwritten.

    Raises:
        UsageError: When a file there has other contents, or something else has its name, and nothing is written then;
            or when one cannot be read or written.
    """
    scripts = {
        out / path.relative_to(SOURCE): path.read_bytes()
        for tree in TREES
        for path in sorted((SOURCE / tree).rglob("*"))
        if path.suffix in SUFFIXES
    } | {out / path: text.encode() for path, text in training_scripts().items()}
    for path, content in scripts.items():
        require_free(path, content, force=force)
    for path, content in scripts.items():
        write(path, content)
    return list(scripts)


def require_free(path: Path, content: bytes, *, force: bool) -> None:
    """Refuse what may not be overwritten."""
    try:
        require_regular(path)
        if not force and path.read_bytes() != content:
            raise UsageError(f"{path}: is there with other contents; move it away, or overwrite it with --force")
    except (FileNotFoundError, NotADirectoryError):
        return
    except NotRegularError as error:
        raise UsageError(f"{path}: {error.strerror}; move it away") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); choose a folder you may write to") from None


def write(path: Path, content: bytes) -> None:
    """Write one script, executable."""
    try:
        write_whole(path, content)
        path.chmod(EXECUTABLE)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}); choose a folder you may write to") from None
