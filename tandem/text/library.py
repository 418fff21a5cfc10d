"""Calls into the libraries that tokenise: whatever they raise becomes one error of ours.

Those written in Rust panic, which Python sees as a `BaseException`; bytes that are no text raise `UnicodeError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tandem.errors import RequestError, TandemError

LONGEST_REASON = 200
"""Characters of what a library says."""


@contextmanager
def mapped(error: Callable[[str], TandemError]) -> Iterator[None]:
    """Raise `error(reason)` for whatever goes wrong in the block; errors of ours stay as they are."""
    try:
        yield
    except (TandemError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as reason:  # noqa: BLE001 - a panic is no Exception
        raise error(said(reason)) from None


def refused(reason: str) -> RequestError:
    """The error for a text that a library cannot encode."""
    return RequestError(f"the model's tokenizer cannot encode this text ({reason}); shorten or change it")


def said(error: BaseException) -> str:
    """What a library says went wrong, in one line, not too long."""
    line = " ".join(str(error).split()) or type(error).__name__
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line[:LONGEST_REASON])
