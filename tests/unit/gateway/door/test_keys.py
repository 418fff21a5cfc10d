"""API keys: who is let in, how often, and what a key file may hold."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tandem.cli import run
from tandem.errors import RequestError, UsageError
from tandem.gateway.door.keys import Key, Keys, digest_of, new_key
from tandem.gateway.processes.board import Board, shared_memory


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def keys_of(clock: Clock, **limits: float) -> tuple[str, Keys]:
    key = new_key()
    return key, Keys((Key(name="a", sha256=digest_of(key), **limits),), clock)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": ""}, bearer(""), bearer("tdm-x"), {"Authorization": "Basic tdm-x"}, bearer("\udcff\u2028")],
)
def test_without_a_known_key_nobody_is_let_in(headers: dict[str, str]) -> None:
    _, keys = keys_of(Clock())
    with pytest.raises(RequestError) as refusal, keys.admitted(headers):
        pass
    assert (refusal.value.status, refusal.value.code) == (401, "invalid_api_key")


def test_the_scheme_is_part_of_it() -> None:
    key, keys = keys_of(Clock())
    for words in (f"Bearer {key}", f"bearer {key}", f"BEARER  {key} "):
        with keys.admitted({"Authorization": words}) as name:
            assert name == "a"
    with pytest.raises(RequestError), keys.admitted({"Authorization": f"Basic {key}"}):
        pass


def test_so_many_at_a_time() -> None:
    key, keys = keys_of(Clock(), in_flight=2)
    with keys.admitted(bearer(key)):
        with keys.admitted(bearer(key)):
            with pytest.raises(RequestError, match="2 requests of this key are being served") as refusal:
                keys.admitted(bearer(key)).__enter__()
            assert (refusal.value.status, refusal.value.retry_after) == (429, 1)
        with pytest.raises(ZeroDivisionError), keys.admitted(bearer(key)):
            raise ZeroDivisionError
        with keys.admitted(bearer(key)):
            pass


def test_so_many_a_minute() -> None:
    clock = Clock()
    key, keys = keys_of(clock, requests_per_minute=3)

    def ask() -> None:
        with keys.admitted(bearer(key)):
            pass

    for _ in range(3):
        ask()
    with pytest.raises(RequestError, match="may ask 3 times a minute, and has; try again in 20 s") as refusal:
        ask()
    assert refusal.value.retry_after == pytest.approx(20)
    clock.now += 19
    with pytest.raises(RequestError):
        ask()
    clock.now += 1.01
    ask()
    clock.now += 3600
    for _ in range(3):
        ask()
    with pytest.raises(RequestError):
        ask()


def test_less_than_one_a_minute_is_one_now_and_then() -> None:
    clock = Clock()
    key, keys = keys_of(clock, requests_per_minute=0.5)
    for _ in range(2):
        with keys.admitted(bearer(key)):
            pass
        with pytest.raises(RequestError, match=r"may ask 0.5 times a minute, and has; try again in 120 s"):
            keys.admitted(bearer(key)).__enter__()
        clock.now += 119.7
        with pytest.raises(RequestError, match="try again in 1 s"):
            keys.admitted(bearer(key)).__enter__()
        clock.now += 0.4


@pytest.mark.parametrize("rate", ["nan", "inf", "-inf", "0", "5e-324", "1e+300"])
def test_a_rate_that_cannot_be_is_refused_by_name(
    rate: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    assert run(["gateway-key", "a", "--file", str(file), f"--requests-per-minute={rate}"]) == 2
    assert f"--requests-per-minute {float(rate):g}: must be a number of 1e-06..1e+09" in capsys.readouterr().err
    line = {"name": "a", "sha256": "0" * 64, "requests_per_minute": "RATE"}
    file.write_text(json.dumps(line).replace('"RATE"', rate))
    with pytest.raises(UsageError, match="line 1: "):
        Keys.from_file(file)


def test_a_key_is_made_and_kept_as_a_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    for words in (["a"], ["b", "--requests-per-minute", "60", "--in-flight", "8"]):
        assert run(["gateway-key", *words, "--file", str(file)]) == 0
    first, second = capsys.readouterr().out.split()
    assert first not in file.read_text()
    assert [json.loads(line)["name"] for line in file.read_text().splitlines()] == ["a", "b"]
    keys = Keys.from_file(file)
    for key, name in ((first, "a"), (second, "b")):
        with keys.admitted(bearer(key)) as found:
            assert found == name
    assert run(["gateway-key", "a", "--file", str(file)]) == 2
    assert "has a key of the name a; choose another, or take its line out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no key, so nobody could ask"),
        ("{", "line 1: Input data was truncated"),
        ('{"name": "a"}', "line 1: Object missing required field `sha256`"),
        ('{"name": "a", "sha256": "x"}', "line 1: Expected `str` matching regex"),
        ('{"name": "a b", "sha256": "%s"}' % ("0" * 64), "line 1: Expected `str` matching regex"),
        ('{"name": "a", "sha256": "%s", "limit": 1}' % ("0" * 64), "line 1: Object contains unknown field `limit`"),
        ('{"name": "a", "sha256": "%s", "in_flight": 0}' % ("0" * 64), "line 1: Expected `int` >= 1"),
        ('\n{"name": "a", "sha256": "%s"}\n' % ("0" * 64) * 2, "name a stands there twice; keep one"),
    ],
)
def test_a_wrong_key_file_is_refused_by_line(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(UsageError) as refusal:
        Keys.from_file(file)
    assert str(refusal.value).startswith(f"{file}: {said}")
    with pytest.raises(UsageError, match="cannot be read"):
        Keys.from_file(tmp_path)
    with pytest.raises(UsageError, match=r"none: cannot be read \(No such file or directory\); check its name$"):
        Keys.from_file(tmp_path / "none")


@pytest.mark.parametrize("words", [["a b"], ["a", "--in-flight", "0"], ["a", "--requests-per-minute", "-1"]])
def test_a_key_that_cannot_be_is_not_written(words: list[str], tmp_path: Path) -> None:
    assert run(["gateway-key", *words, "--file", str(tmp_path / "keys")]) == 2
    assert not (tmp_path / "keys").exists()


def test_limits_are_those_of_all_processes_together() -> None:
    clock, memory = Clock(), shared_memory(2)
    key, keys = keys_of(clock, in_flight=2, requests_per_minute=4)
    boards = [Board(2, row, memory) for row in range(2)]
    here, there = (keys.on(board) for board in boards)
    with there.admitted(bearer(key)):
        with here.admitted(bearer(key)):
            for full in (here, there):
                with pytest.raises(RequestError, match="2 requests of this key"):
                    full.admitted(bearer(key)).__enter__()
        boards[1].clear(1)  # it was killed, and its request with it
        with here.admitted(bearer(key)), here.admitted(bearer(key)):
            pass
    for none_left in (here, keys.on(boards[1])):
        with pytest.raises(RequestError, match="4 times a minute, and has; try again in 15 s"):
            none_left.admitted(bearer(key)).__enter__()
    clock.now += 15
    with here.admitted(bearer(key)):
        pass
    os.close(memory)
