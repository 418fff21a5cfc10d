"""Writes the documents' tree of tools out of the package.

The files lie in this package as they are written, llm_tools/ and all below it; a script that is added there is written
too.
"""

from __future__ import annotations

from pathlib import Path

from tandem.errors import UsageError
from tandem.files import write_whole

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
        UsageError: When a file there has other contents; nothing is written then.
    """
    scripts = {
        out / path.relative_to(SOURCE): path.read_bytes()
        for tree in TREES
        for path in sorted((SOURCE / tree).rglob("*"))
        if path.suffix in SUFFIXES
    }
    for path, content in scripts.items():
        if not force and path.exists() and not (path.is_file() and path.read_bytes() == content):
            raise UsageError(f"{path}: is there with other contents; move it away, or overwrite it with --force")
    for path, content in scripts.items():
        write_whole(path, content)
        path.chmod(EXECUTABLE)
    return list(scripts)
