"""Text files that are read with helpful errors and written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from tandem.errors import TopologyError
from tandem.files import NotRegularError, require_regular, write_whole

LARGEST = 1 << 26
"""Bytes. The table of 128 hosts with 16 devices each has half a megabyte."""


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        TopologyError: When it is missing (naming the other spelling of a rank table's name where that file exists),
            is no regular file, may not be read, is not text or has more than LARGEST bytes.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise TopologyError(f"{path}: has more than {LARGEST} bytes, which no such file has; check the path")
        return content.decode()
    except FileNotFoundError:
        raise TopologyError(f"{path}: no such file; {suggestion(path)}") from None
    except UnicodeDecodeError as error:
        raise TopologyError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    except NotRegularError as error:
        raise TopologyError(f"{path}: cannot be read ({error.strerror}); name a file") from None
    except OSError as error:
        raise TopologyError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None


def suggestion(path: Path) -> str:
    """What to try instead of a missing file: `ranktable` and `rank_table` are both in use for the same files."""
    swaps = (("rank_table", "ranktable"), ("ranktable", "rank_table"))
    for old, new in swaps:
        other = path.with_name(path.name.replace(old, new))
        if other != path and other.exists():
            return f"did you mean {other}, which exists?"
    return "check the path"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; creates the folder where missing, and follows a link.

    Raises:
        TopologyError: When the folder or the file cannot be written, or something else than a file has its name.
    """
    try:
        write_whole(path, text.encode())
    except NotRegularError as error:
        raise TopologyError(f"{path}: cannot be written ({error.strerror}); name a file") from None
    except OSError as error:
        raise TopologyError(f"{path}: cannot be written ({error.strerror}); choose a folder you may write to") from None
