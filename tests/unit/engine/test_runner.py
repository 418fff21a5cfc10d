"""The runner alone: what it draws does not depend on how many draws it makes together."""

from __future__ import annotations

import pytest
from reference.ledger import LedgerModel

from tandem.engine import runner
from tandem.engine.plan import Plan, Work
from tandem.engine.request import Request
from tandem.engine.runner import Runner
from tandem.engine.sampling import SamplingParams
from tandem.engine.sequence import Sequence
from tandem.kv.prefix import BlockKeys


class Letters:
    """A tokenizer of one letter per token."""

    drops_first_space = False

    def bytes_of(self, token: int) -> bytes:
        return bytes([97 + token])


def plan() -> Plan:
    """Three prompts, of one, five and two choices, and one that is not finished in this step."""
    made = Plan()
    for place, (choices, left) in enumerate([(1, 0), (5, 0), (3, 1), (2, 0)]):
        request = Request(
            id=f"{place}",
            prompt=[place, 2, 3],
            sampling=SamplingParams(max_tokens=4, temperature=1.0, seed=place),
            choices=tuple(range(choices)),
        )
        sequence = Sequence(request, Letters(), BlockKeys(b"", 4), arrival=place, choice=0)
        made.add(Work(sequence, [place], 0, 3 - left))
    return made


@pytest.mark.parametrize("at_once", [1, 2, 3, 8])
def test_many_choices_are_drawn_a_few_rows_at_a_time(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, sample = [], runner.sample

    def counted(logits, draws):
        rows.append(len(logits))
        return sample(logits, draws)

    expected = Runner(LedgerModel(4)).run(plan())
    monkeypatch.setattr(runner, "sample", counted)
    assert Runner(LedgerModel(4), at_once).run(plan()) == expected
    assert [len(drawn) for drawn in expected] == [1, 5, 2]
    assert sum(rows) == 8
    assert max(rows) == at_once
