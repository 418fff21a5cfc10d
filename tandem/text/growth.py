"""How long what a filter, a method or a format makes comes out, told before it is made.

Only those that make much of little are looked at; of the others the sandbox measures what they made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

UNSIZED = 100_000
"""Items of what does not say how many it has; the sandbox lets no `range` be longer."""
INDENTED = 1024
"""Lines of JSON that are taken to be indented."""
WIDTH = re.compile(r"[%:][^%:{}a-zA-Z]*")
"""Where a format says how wide a value becomes."""


def grown(name: str, receiver: Any, arguments: Sequence[Any]) -> int:
    """Characters or items, at most, that a filter or method of this name makes; 0 for those not known to grow.

    Args:
        name: Of the filter or method, or `%`.
        receiver: What it is applied to.
        arguments: The others, named ones too.
    """
    estimate = GROWING.get(name)
    return 0 if estimate is None else estimate(receiver, arguments)


def _width(_: Any, arguments: Sequence[Any]) -> int:
    return max((value for value in arguments if isinstance(value, int)), default=0)


def _indented(receiver: Any, arguments: Sequence[Any]) -> int:
    width = max(_width(receiver, arguments), *(_length(value) for value in arguments if isinstance(value, str)), 0)
    return (receiver.count("\n") + 1 if isinstance(receiver, str) else INDENTED) * width


def _tabs(receiver: Any, arguments: Sequence[Any]) -> int:
    return receiver.count("\t") * _width(receiver, arguments) if isinstance(receiver, str) else 0


def _joined(receiver: Any, arguments: Sequence[Any]) -> int:
    return _length(receiver) * max((_length(value) for value in arguments), default=0)


def _replaced(receiver: Any, arguments: Sequence[Any]) -> int:
    old, new, *_ = (*map(str, arguments[:2]), "", "")
    return str(receiver).count(old) * len(new)


def _translated(receiver: Any, arguments: Sequence[Any]) -> int:
    tables = (value for value in arguments if isinstance(value, dict))
    return _length(receiver) * max((_length(text) for table in tables for text in table.values()), default=0)


def _formatted(receiver: Any, arguments: Sequence[Any]) -> int:
    pattern = receiver if isinstance(receiver, str) else ""
    # Nine digits are more than may be made; Python reads no number of thousands of them.
    widths = sum(int(digits) for part in WIDTH.findall(pattern) for digits in re.findall(r"[0-9]{1,9}", part))
    told = "*" in pattern or re.search(r":[^}]*{", pattern) is not None
    return widths + (_width(receiver, _flat(arguments)) if told else 0)


def _flat(arguments: Sequence[Any]) -> list[Any]:
    return [one for value in arguments for one in (value if isinstance(value, tuple) else (value,))]


def _length(value: Any) -> int:
    if isinstance(value, str | bytes | list | tuple | dict):
        return len(value)
    return 1 if value is None or isinstance(value, int | float) else UNSIZED


GROWING: dict[str, Callable[[Any, Sequence[Any]], int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "batch", "slice"), _width),
    **dict.fromkeys(("indent", "tojson"), _indented),
    **dict.fromkeys(("format", "format_map", "%"), _formatted),
    "expandtabs": _tabs,
    "join": _joined,
    "replace": _replaced,
    "translate": _translated,
}
