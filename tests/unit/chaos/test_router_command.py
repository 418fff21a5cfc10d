"""A router's command from a template."""

from __future__ import annotations

import pytest
from chaos.router.command import command
from chaos.router.rows import ROWS, named

P, D = ["http://h:1", "http://h:2"], ["http://h:3", "http://i:4"]


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        (
            "r --prefill {prefill} --decode {decode} --port {port}",
            "r --prefill http://h:1 --prefill http://h:2 --decode http://h:3 --decode http://i:4 --port 8",
        ),
        (
            "r --ph {prefill_hosts} --pp {prefill_ports} --dp {decode_ports} --port={port} --m {spare_port}",
            "r --ph h h --pp 1 2 --dp 3 4 --port=8 --m 9",
        ),
        (
            "'a b' -p {port} serve {prefill} -- {decode_urls}",
            "a b|-p|8|serve|http://h:1|http://h:2|--|http://h:3|http://i:4",
        ),
    ],
)
def test_a_template_is_filled(template: str, filled: str) -> None:
    assert command(template, P, D, 8, 9) == filled.split("|" if "|" in filled else " ")


@pytest.mark.parametrize("template", ["r --decode {decode} --port {port}", "r --prefill {prefill} --decode {decode}"])
def test_a_template_that_lacks_something_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="needs"):
        command(template, P, D, 8, 9)


def test_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert named(["decode-dead", "undisturbed"])[0].title == "one decode dead"
    with pytest.raises(ValueError, match="no row is named prefill-drunk"):
        named(["prefill-drunk"])
