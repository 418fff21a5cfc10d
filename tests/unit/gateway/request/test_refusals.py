"""Bodies that would take memory or time apart from their prompt, and salts that are none."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from tandem.errors import RequestError
from tandem.gateway.request.body import ClientBody
from tandem.gateway.request.refusals import MOST_BESIDES

MANY = 4 * 2**20


def refusal(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as error:
        ClientBody.decode(body).prompts  # noqa: B018 - it may be refused when it is asked for
    return error.value


@pytest.mark.parametrize("long", ["prompt", "messages", "tools", "documents", "prompt_embeds"])
def test_what_may_be_long_may(long: str) -> None:
    body = b'{"%s": "%s", "n": 1}' % (long.encode(), b"x" * MANY)
    assert ClientBody.decode(body).count == 1


@pytest.mark.parametrize(
    "body",
    [
        b"{" + b",".join(b'"%x":0' % number for number in range(MANY // 10)) + b"}",
        b'{"prompt": "x", "n": [' + b"0," * MANY + b"0]}",
        b"{" + b'"prompt":0,' * (MANY // 10) + b'"n":1}',
    ],
    ids=["many fields", "many values", "one field many times"],
)
def test_what_may_not_be_long_is_refused_before_it_is_taken_apart(body: bytes) -> None:
    error = refusal(body)
    assert (error.status, error.code) == (413, "body_too_large")
    assert f"more than {MOST_BESIDES} are not taken" in str(error)


def test_a_long_body_that_is_no_object_is_refused_as_a_short_one() -> None:
    assert "must be a JSON object" in str(refusal(b'["' + b"x" * MANY + b'"]'))
    assert "not valid JSON" in str(refusal(b'{"prompt": "' + b"x" * MANY))


def test_millions_of_prompts_are_not_read_to_their_end() -> None:
    body = b'{"prompt": [' + b'"",' * MANY + b'""]}'
    tracemalloc.start()
    try:
        error = refusal(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(body)  # read to the end, they would take 25 times their bytes
    assert str(error) == "prompt: there are more than 2048 prompts; send fewer at a time"


def test_prompts_with_many_commas_are_told_apart() -> None:
    texts = [b'"' + b"a," * 3000 + b'"'] * 5
    body = b'{"prompt": [' + b", ".join(texts) + b"]}"
    assert [bytes(one) for one in ClientBody.decode(body).prompts] == texts
    assert "not valid JSON" in str(refusal(body[:-3] + b"x]}"))


@pytest.mark.parametrize("salt", ["null", '"a"', '"tenant-1_x.Y/z+="', '"%s"' % ("x" * 256), r'"\u0061"'])
def test_a_salt_passes(salt: str) -> None:
    assert bytes(ClientBody.decode(b'{"cache_salt": %s}' % salt.encode()).fields["cache_salt"]) == salt.encode()


@pytest.mark.parametrize("salt", ['""', "1", "[]", '"a b"', r'"a\n"', '"ä"', '"%s"' % ("x" * 257), '"a:b"'])
def test_what_is_no_salt_is_refused(salt: str) -> None:
    error = refusal(b'{"cache_salt": %s}' % salt.encode())
    assert (error.status, error.param) == (400, "cache_salt")


LONG = "1" + "0" * 400


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "priority", "deadline_seconds"])
@pytest.mark.parametrize("number", [LONG, f"-{LONG}", "-1e300", "1e308", str(-(2**31) - 1), "1e400"])
def test_numbers_that_nobody_can_reckon_with_are_refused_by_name(name: str, number: str) -> None:
    error = refusal(b'{"prompt": "x", "%s": %s}' % (name.encode(), number.encode()))
    assert (error.status, error.param) == (400, name)
    assert str(error).startswith(f"{name}: ")


@pytest.mark.parametrize("value", ["0", "1", "2147483647", "1.5", "null", "true", '"8"', "[-1]"])
def test_other_values_are_the_instances_to_refuse(value: str) -> None:
    raw = b'{"max_tokens": %s, "priority": -7, "deadline_seconds": 0.1}' % value.encode()
    assert ClientBody.decode(raw).decode_leg(None, None) == raw.replace(b" ", b"")


def test_deep_nests_are_refused() -> None:
    wrong: Any = refusal(b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    assert (wrong.status, wrong.code) == (400, "invalid_json")
    assert "nested too deep" in str(wrong)
