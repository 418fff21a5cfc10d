"""A router's command line, from a template that any router can be put into."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

TANDEM = f"{shlex.quote(sys.executable)} -m tandem gateway --prefill {{prefill}} --decode {{decode}} --port {{port}}"


def command(template: str, prefill: Sequence[str], decode: Sequence[str], port: int, spare: int) -> list[str]:
    """Fill a template.

    `{prefill}` and `{decode}` stand for the URLs: after an option, the option is repeated for each. `{prefill_urls}`,
    `{prefill_hosts}` and `{prefill_ports}` (and the same of decode) become one argument for each instance.
    `{port}` is where the router is to listen, `{spare_port}` another free one.

    Raises:
        ValueError: It does not say where the instances or the port go.
    """
    if not all(f"{{{name}" in template for name in ("prefill", "decode", "port}")):
        raise ValueError("the router's command needs {prefill}, {decode} and {port}")
    filled: list[str] = []
    for word in shlex.split(template):
        before = filled[-1] if filled else ""
        urls = {"{prefill}": prefill, "{decode}": decode}.get(word)
        if urls is None:
            filled += _words(word, prefill, decode, port, spare)
        elif before.startswith("-"):
            filled[-1:] = [part for url in urls for part in (before, url)]
        else:
            filled += urls
    return filled


def _words(word: str, prefill: Sequence[str], decode: Sequence[str], port: int, spare: int) -> Iterator[str]:
    for role, urls in (("prefill", prefill), ("decode", decode)):
        lists = {
            f"{{{role}_urls}}": list(urls),
            f"{{{role}_hosts}}": [str(urlsplit(url).hostname) for url in urls],
            f"{{{role}_ports}}": [str(urlsplit(url).port) for url in urls],
        }
        if word in lists:
            yield from lists[word]
            return
    yield word.replace("{port}", str(port)).replace("{spare_port}", str(spare))
