"""Questions and answers from docstrings: what a public module, class or function says about itself."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TypedDict

SHORTEST, LONGEST = 16, 240
"""Characters an answer may have; a longer first paragraph is no short answer and would be learnt cut off."""

Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Turn(TypedDict):
    """One message in OpenAI's form."""

    role: str
    content: str


class Conversation(TypedDict):
    """One row to train on."""

    messages: list[Turn]


def questions_and_answers(path: str, text: str) -> Iterator[Conversation]:
    """One question with its answer for each documented public name of a Python file.

    Args:
        path: Below the source's root, such as `json/decoder.py`; gives the module's name.
        text: The file. One that does not parse gives nothing: templates for other Pythons are no loss.
    """
    module = module_name(path)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # all said of texts that only look like Python
        return
    if any(part.startswith("_") for part in module.split(".")):
        return
    for name, node in _documented(module, tree):
        answer = first_paragraph(ast.get_docstring(node, clean=False) or "")
        if SHORTEST <= len(answer) <= LONGEST and answer[0].isalpha():
            question = f"What is {name}?" if isinstance(node, ast.ClassDef) else f"What does {name} do?"
            yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def module_name(path: str) -> str:
    """`json/decoder.py` -> `json.decoder`; `json/__init__.py` -> `json`."""
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def first_paragraph(docstring: str) -> str:
    """The first paragraph on one line, ending in a full stop."""
    paragraph = re.split(r"\n\s*\n", inspect.cleandoc(docstring), maxsplit=1)[0]
    line = " ".join(paragraph.split())
    return line if not line or line[-1] in ".!?" else line.rstrip(":;,") + "."


def _documented(name: str, node: ast.Module | Documented) -> Iterator[tuple[str, ast.Module | Documented]]:
    """The node and the public definitions directly in modules and classes below it; not those inside functions."""
    yield name, node
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, Documented) and not child.name.startswith("_"):
                yield from _documented(f"{name}.{child.name}", child)
