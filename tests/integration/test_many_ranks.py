"""What is trained does not depend on how many ranks train it, nor on how a batch is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import rank_suite
import torch
from torch import Tensor

from tandem.parallel.world import World

FAMILIES = ["llama3.2-1b", "yi-6b", "qwen-7b", "qwen2-0.5b", "qwen2.5-7b", "glm3-6b", "glm4-9b", "baichuan2-13b",
            "mistral-7b", "mixtral-8x7b", "deepseek-v3"]  # fmt: skip

MIXTURES = ["mixtral-8x7b", "deepseek-v3"]
QUICK = "qwen2.5-7b"


@pytest.fixture(scope="module")
def alone() -> Callable[[str], dict[str, Tensor]]:
    torch.set_num_threads(1)
    return cache(lambda family: rank_suite.run([family], World()))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Tensor]]:
    """What so many ranks find, for all families at once."""
    return cache(lambda ranks, *families: rank_suite.run_on(ranks, families, tmp_path_factory.mktemp("ranks")))


def gradients(found: dict[str, Tensor], family: str, case: str) -> Tensor:
    prefix = f"{family}/{case}/"
    return torch.cat([found[name].flatten() for name in sorted(found) if name.startswith(prefix)])


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def check(alone: dict[str, Tensor], together: dict[str, Tensor], family: str, taken: Sequence[rank_suite.Case]) -> None:
    """Gradients of all cases, all courses of one rank, and those that several have taken."""
    expected = gradients(alone, family, rank_suite.CASES[0].name)
    for case in rank_suite.CASES:
        assert distance(gradients(alone, family, case.name), expected) < 1e-5, case
        assert distance(gradients(together, family, case.name), expected) < 1e-5, case
    rounded = gradients(alone, family, rank_suite.ROUNDED.name)
    assert distance(rounded, expected) > 1e-4, "nothing was computed in bfloat16"
    assert distance(gradients(together, family, rank_suite.ROUNDED.name), rounded) < distance(rounded, expected)
    check_courses(alone, alone, family, rank_suite.COURSES)
    check_courses(together, alone, family, taken)


def check_courses(
    found: dict[str, Tensor], alone: dict[str, Tensor], family: str, courses: Sequence[rank_suite.Case]
) -> None:
    for case in courses:
        check_course(found, alone, family, case.name, rank_suite.COURSES[0].name)


def check_course(found: dict[str, Tensor], alone: dict[str, Tensor], family: str, case: str, expected: str) -> None:
    losses, norms, balances = (found[f"{family}/{what}/{case}"] for what in ("losses", "norms", "balances"))
    assert losses.unique().numel() == rank_suite.STEPS, "every step has its own samples"
    assert norms.min() > rank_suite.CLIP, "every step's gradient is clipped"
    assert bool((balances > 0).all()) == (family in MIXTURES)
    torch.testing.assert_close(losses, alone[f"{family}/losses/{expected}"], rtol=1e-5, atol=0)
    torch.testing.assert_close(balances, alone[f"{family}/balances/{expected}"], rtol=1e-5, atol=0)
    same = [f"{family}/loads/{expected}", *(name for name in alone if name.startswith(f"{family}/biases/{expected}/"))]
    for name in same:
        assert torch.equal(found[name.replace(expected, case)], alone[name]), name
    torch.testing.assert_close(norms, alone[f"{family}/norms/{expected}"], rtol=1e-4, atol=0)


def test_ranks_and_cuts_compute_the_same(alone: Any, tmp_path: Path) -> None:
    """Of the courses, ranks take the one that is most unlike what it is compared with."""
    taken = rank_suite.COURSES[-1:]
    check(alone(QUICK), rank_suite.run_on(3, [QUICK], tmp_path, taken), QUICK, taken)


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_and_cuts_compute_the_same_for_every_family(alone: Any, together: Any, family: str, ranks: int) -> None:
    check(alone(family), together(ranks, *FAMILIES), family, rank_suite.COURSES)


@pytest.mark.full
def test_twenty_steps_are_the_same_for_every_cut(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    alone = rank_suite.run([QUICK], World(), rank_suite.CASES)
    for ranks in (2, 3):
        (tmp_path / str(ranks)).mkdir()
        together = rank_suite.run_on(ranks, [QUICK], tmp_path / str(ranks), rank_suite.CASES)
        for found in (alone, together):
            check_courses(found, alone, QUICK, rank_suite.CASES)
