"""Limits: each is an option, each is refused by name, at the start and for a request."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from tandem.cli import run
from tandem.errors import RequestError, UsageError
from tandem.gateway.request.limits import Limits


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
def test_what_is_not_over_0_is_refused_by_its_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    option = f"--{name.replace('_', '-')}"
    wrong: dict[str, Any] = {name: 0}
    with pytest.raises(UsageError, match=f"^{option} 0: must be a number over 0$"):
        Limits(**wrong)
    assert run(["gateway", "--decode", "http://127.0.0.1:1", option, "-1"]) == 2
    assert f"{option} -1" in capsys.readouterr().err


def test_there_is_a_most_of_prompts() -> None:
    assert Limits(max_prompts=2048).max_prompts == 2048
    with pytest.raises(UsageError, match=r"^--max-prompts 2049: must be at most 2048$"):
        Limits(max_prompts=2049)


@pytest.mark.parametrize(
    ("n", "prompts", "param"),
    [
        (1, 1, None),
        (3, 1, None),
        (4, 1, "n"),
        (0, 1, "n"),
        (-1, 2, "n"),
        (10**400, 1, "n"),
        (-(10**400), 2, "n"),
        (1, 5, None),
        (1, 6, "prompt"),
        (2, 2, None),
        (2, 3, "n"),
    ],
)
def test_answers_are_counted(n: int, prompts: int, param: str | None) -> None:
    limits = Limits(max_n=3, max_prompts=5)
    if param is None:
        limits.check_answers(n, prompts)
        return
    with pytest.raises(RequestError, match=f"^{param}: ") as refusal:
        limits.check_answers(n, prompts)
    assert (refusal.value.status, refusal.value.param) == (400, param)
