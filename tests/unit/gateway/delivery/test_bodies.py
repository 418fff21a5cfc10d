"""What workers are asked for one answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tandem.gateway.delivery.bodies import Bodies
from tandem.gateway.request.body import ClientBody


def sent(bodies: Bodies, *, native: bool) -> dict[str, Any]:
    return dict(json.loads(bodies.first(native=native).decode_leg(None, None)))


def bodies(choice: int = 0, **fields: Any) -> Bodies:
    return Bodies(ClientBody.decode(json.dumps({"prompt": "x", **fields}).encode()), choice, reasons=False)


@pytest.mark.parametrize("native", [True, False])
def test_all_tries_ask_for_the_same_random_numbers(native: bool) -> None:
    one = bodies(stream=True, temperature=1, stop=["y"])
    first, second = (sent(one, native=native) for _ in range(2))
    assert first == second
    assert (type(first["seed"]), first["return_token_ids"]) == (int, True)
    assert sent(bodies(stream=True, temperature=1, stop=["y"]), native=native)["seed"] != first["seed"]


def test_a_seed_of_the_clients_is_left_alone_and_no_whole_answer_of_another_engine_needs_one() -> None:
    assert sent(bodies(seed=7), native=True)["seed"] == sent(bodies(seed=7), native=False)["seed"] == 7
    assert sent(bodies(temperature=1), native=False) == {"prompt": "x", "temperature": 1}


def test_each_choice_has_random_numbers_of_its_own() -> None:
    assert sent(bodies(2, seed=7), native=True) == {
        "prompt": "x",
        "seed": 7,
        "resume": {"output_token_ids": [], "sent": 0, "choice": 2},
    }
    assert sent(bodies(2, seed=7), native=False) == {"prompt": "x", "seed": 9}


def test_an_echoed_prompt_is_not_left_out_for_its_ids() -> None:
    assert "return_token_ids" not in sent(bodies(stream=True, echo=True), native=False)
