"""The verdict on a model folder for people, in lines as `catalogue/drawing.py` draws them."""

from __future__ import annotations

from collections.abc import Iterator

from tandem.catalogue.drawing import Line, size_text
from tandem.model.examination import Examination

MOST_SHOWN = 20
"""Faults that are shown to people; a folder without its first file has thousands."""


def verdict_lines(found: Examination) -> Iterator[Line]:
    """What the files hold, and what is wrong with them."""
    if found.tokenizer is not None:
        chat = "a chat format" if found.tokenizer.chat else "no chat format"
        yield "tokenizer", f"{found.tokenizer.file} of {found.tokenizer.ids} ids, {chat}"
    held = f"{found.tensors} tensors of {size_text(found.stored_bytes)}"
    held += f" in {', '.join(found.dtypes)}" if found.dtypes else ""
    yield "files hold", held if found.faults else f"{held}, every one that is needed"
    for fault in found.faults[:MOST_SHOWN]:
        yield "fault", fault
    if len(found.faults) > MOST_SHOWN:
        yield "", f"and {len(found.faults) - MOST_SHOWN} more; --json lists all"
