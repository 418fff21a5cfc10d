"""No field that a family reads could be dropped unnoticed: changing it is refused by name, or moves the logits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from parity.cases import CASES, LLAMA
from parity.mutations import BASES, CHANGED, LEAST, REFUSED, Base, fields_read, rows

from tandem.model.families import FAMILIES

UNFITTING = re.compile(r"weights do not fit config\.json: .*(has shape|is missing|is not part of)")


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name + " (saved)" * base.saved)
def test_every_field_matters(base: Base, tmp_path: Path) -> None:
    found = list(rows(base, tmp_path / "model"))
    read = {name for row in found for name in row.field.split(".")}
    for row in found:
        own = row.field.rpartition(".")[2]
        if row.movement == REFUSED:
            named = re.search(rf"\b{base.refused_by.get(own, own)}\b", row.message)
            assert UNFITTING.search(row.message) or named, row
            assert "\n" not in row.message
        elif row.inert:
            assert row.movement == 0, row
        else:
            assert row.movement >= LEAST, row
    assert set(base.inert) | set(base.refused_by) <= read


def test_every_family_is_here() -> None:
    assert {base.case.fields["model_type"] for base in BASES} == {family.model_type for family in FAMILIES.values()}


def test_every_value_is_used() -> None:
    """A field in the table that no family reads any more would only look tested."""
    read = {name.rpartition(".")[2] for case in CASES for name in fields_read(case.fields)}
    assert set(CHANGED) <= read


def test_what_a_family_asks_for_is_noted() -> None:
    scaled = LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}}
    asked = fields_read(json.loads(json.dumps(scaled)))
    assert {"vocab_size", "mlp_bias", "rope_scaling.factor", "rope_parameters"} <= set(asked)
