"""The C library's heap, which on a CPU holds all tensors but the largest."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def trim_heap() -> None:
    """Give pages that nothing lies in back to the system; without glibc, do nothing.

    Tensors that are freed between tensors that stay leave holes, and glibc (seen with 2.36) seldom fills them
    with the next layer's, though these are of the same sizes: it asks for more room than it needs to align them.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
