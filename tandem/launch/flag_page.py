"""`docs/vllm-flags.md`: what becomes of every flag, written from the table that the command reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tandem.launch.flag import Flag, Section
from tandem.launch.flags import FLAGS
from tandem.launch.options import COMMAND

SECTIONS: dict[Section, str] = {
    "engine": "Engine",
    "async engine": "Asynchronous engine",
    "OpenAI server": "OpenAI server",
    "tandem": "tandem's own",
}

HEAD = f"""\
# Flags of vLLM 0.5.0

`{COMMAND}` takes the flags of vLLM 0.5.0 ([start-from-rank-tables.md](start-from-rank-tables.md)). An
**implemented** flag does what it says. A **needless** one is accepted, because what it asks for holds without it. A
**refused** one ends the start with a message that says what to do instead; the values in brackets are accepted, they
ask for what is so anyway. The scheduler reads `--model`, `--max-model-len`, `--served-model-name`, `--host`, `--port`,
`--uvicorn-log-level` and `--ready-timeout`, and ignores the other implemented ones.

This page is generated: `python scripts/flag_page.py` writes it.
"""


def page(flags: Sequence[Flag] = FLAGS) -> str:
    """The whole page."""
    return HEAD + "".join(line + "\n" for section in SECTIONS for line in rows(section, flags))


def rows(section: Section, flags: Sequence[Flag]) -> Iterator[str]:
    """The heading and the table of one section."""
    yield from ("", f"## {SECTIONS[section]}", "", "| flag | | |", "|---|---|---|")
    for flag in flags:
        if flag.section == section:
            names = ", ".join(f"`{name}`" for name in flag.names)
            accepted = f" ({', '.join(f'`{value}`' for value in flag.accepted)})" if flag.accepted else ""
            yield f"| {names} | {flag.status}{accepted} | {flag.says} |"
