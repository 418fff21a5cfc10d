"""Where a model folder's chat template runs: it reaches nothing but what it is given, and it ends.

Jinja's own sandbox keeps a template from Python's insides and `range` from more than 100,000 numbers. Here its time is
limited too: at each turn of a loop, each call, each operator and each piece of text. So is the length of whatever an
operator, a filter, a call, a block or the whole template makes. What filters, methods and formats make of a few
characters is told before they do (`text/growth.py`).

What does not hold: any other filter or method runs to its end, and what it makes is measured afterwards.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from jinja2 import Template, TemplateRuntimeError, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from tandem.text.growth import GROWING, grown

SECONDS = 10.0
"""A template needs milliseconds; a busy machine may give it little of each second."""
SECONDS_ALONE = 0.5
"""After these it pauses at every step: threads that never rest slow down the others of the process a hundredfold."""
PAUSE = 0.001
MOST_CHARACTERS = 16 << 20
"""Of one text, and items of one list; more than any model reads."""
MOST_BITS = 1 << 16
"""Of one number."""

# No template can name these filters: a name in a template has no blank.
_COUNTED, _SIZED = "counted loop", "sized value"
_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles templates and runs them; several threads may do so at once."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self.filters |= {_COUNTED: _counted, _SIZED: _sized}
        self.filters |= {name: _foreseen(name, self.filters[name]) for name in GROWING if name in self.filters}
        del self.globals["lipsum"]  # makes as many words as it is asked for

    def compiled(self, source: str) -> Template:
        """A template whose loops, filters and joined texts are limited; raises whatever is wrong with it."""
        template = self.from_string(_Limits().visit(self.parse(source)))
        template.globals = dict(template.globals)  # of two dicts in one view, copying is half the time of a short text
        return template

    def run(self, template: Template, names: dict[str, Any]) -> str:
        """The text a template makes of `names`; raises whatever goes wrong in it.

        Raises:
            TemplateRuntimeError: It runs longer than `SECONDS` or makes more than `MOST_CHARACTERS`.
        """
        before = _deadline.set(time.monotonic() + SECONDS)
        try:
            return self.concat(template.generate(names))
        finally:
            _deadline.reset(before)

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function, method or macro; called by templates."""
        _require_time()
        name, receiver = getattr(called, "__name__", ""), getattr(called, "__self__", None)
        if isinstance(receiver, str | bytes):
            _require_length(grown(name, receiver, (*args, *kwargs.values())))
        return _sized(super().call(context, called, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The `format` method that a template gets for a text's own."""
        wrapped = super().wrap_str_format(value)
        return None if wrapped is None else functools.partial(_formatted, value.__self__, wrapped)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator; called by templates."""
        _require_time()
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            _require_bits(left.bit_length() * right)
        if operator == "%" and isinstance(left, str):
            _require_length(grown(operator, left, (right,)))
        if operator == "*":
            _require_length(_length(left) * right if isinstance(right, int) else 0)
            _require_length(_length(right) * left if isinstance(left, int) else 0)
        return _sized(super().call_binop(context, operator, left, right))

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Join the pieces of a block, a macro or the whole text; called by templates too."""
        return "".join(_limited(pieces))


class _Limits(NodeTransformer):
    """Puts a filter around whatever a template loops over, and around what its filters and joins make."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja's name
        self.generic_visit(node)
        node.iter = _filter(node.iter, _COUNTED)
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802 - jinja's name
        self.generic_visit(node)
        return _filter(node, _SIZED)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - jinja's name
        self.generic_visit(node)
        return _filter(node, _SIZED)


def _foreseen(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, refused where it would make too much. What jinja passes some filters first stays where it is."""
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def foreseen(*args: Any, **kwargs: Any) -> Any:
        receiver, *arguments = args[skipped:]
        _require_length(grown(name, receiver, (*arguments, *kwargs.values())))
        return function(*args, **kwargs)

    return foreseen


def _formatted(pattern: str, function: Callable[..., str], *args: Any, **kwargs: Any) -> str:
    _require_length(grown("format", pattern, (*args, *kwargs.values())))
    return function(*args, **kwargs)


def _filter(node: nodes.Node, name: str) -> nodes.Filter:
    assert isinstance(node, nodes.Expr)
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _require_time()
        yield item


def _limited(pieces: Iterable[str]) -> Iterator[str]:
    length = 0
    for piece in pieces:
        _require_time()
        length += len(piece)
        _require_length(length)
        yield piece


def _sized(value: Any) -> Any:
    _require_length(_length(value))
    if isinstance(value, int):
        _require_bits(value.bit_length())
    return value


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | dict) else 0


def _require_time() -> None:
    left = _deadline.get() - time.monotonic()
    if left < 0:
        raise TemplateRuntimeError(f"it runs longer than {SECONDS:g} s")
    if left < SECONDS - SECONDS_ALONE:
        time.sleep(PAUSE)


def _require_length(length: int) -> None:
    if length > MOST_CHARACTERS:
        raise TemplateRuntimeError(f"it makes more than {MOST_CHARACTERS} characters")


def _require_bits(bits: int) -> None:
    if bits > MOST_BITS:
        raise TemplateRuntimeError(f"it makes a number of more than {MOST_BITS} bits")
