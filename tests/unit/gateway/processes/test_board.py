"""Numbers that several processes see: sums are right, nobody reads half a number, and the dead leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tandem.errors import ProcessError
from tandem.gateway.processes import board as module
from tandem.gateway.processes.board import Board, Common, Counter, digest_of, shared_memory

ROWS = 3
NAMES = st.sampled_from(["a", "b", "c", "d"])
ROW = st.integers(0, ROWS - 1)


class Processes(RuleBasedStateMachine):
    """Boards of several processes over one memory, beside what should be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = shared_memory(ROWS)
        self.boards = [Board(ROWS, row, self.memory) for row in range(ROWS)]
        self.counters: list[dict[str, Counter]] = [{} for _ in range(ROWS)]
        self.commons: list[dict[str, Common]] = [{} for _ in range(ROWS)]
        self.counted: list[dict[str, int]] = [{} for _ in range(ROWS)]
        self.written: dict[str, int] = {}

    @rule(row=ROW, name=NAMES, by=st.integers(-5, 5))
    def count(self, row: int, name: str, by: int) -> None:
        self.counters[row].setdefault(name, self.boards[row].counter(name)).add(by)
        self.counted[row][name] = self.counted[row].get(name, 0) + by

    @rule(row=ROW, name=NAMES, value=st.integers(-5, 5))
    def write(self, row: int, name: str, value: int) -> None:
        with self.boards[row].changing():
            self.commons[row].setdefault(name, self.boards[row].common(name)).value = value
        self.written[name] = value

    @rule(row=ROW, name=NAMES)
    def forget(self, row: int, name: str) -> None:
        self.counters[row].pop(name, None)
        self.counted[row].pop(name, None)

    @rule(row=ROW)
    def die(self, row: int) -> None:
        """Its objects are left as they are: the end of a process frees nothing by itself."""
        self.boards[row].clear(row)
        self.boards[row] = Board(ROWS, row, self.memory)
        self.counters[row], self.counted[row] = {}, {}
        self.commons[row] = {}

    @invariant()
    def all_see_the_same(self) -> None:
        for row, counters in enumerate(self.counters):
            for name, counter in counters.items():
                assert counter.own == self.counted[row][name]
                assert counter.total == sum(counted.get(name, 0) for counted in self.counted)
        for commons in self.commons:
            assert all(common.value == self.written[name] for name, common in commons.items())

    def teardown(self) -> None:
        os.close(self.memory)


Processes.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
test_processes = Processes.TestCase


def test_a_board_of_one_needs_no_shared_memory() -> None:
    board = Board()
    counter, number = board.counter("a"), board.common("a")
    counter.add(2)
    board.counter("a").add()
    with board.changing():
        number.value = 7.5
    assert (counter.total, counter.own, board.common("a").value) == (3, 3, 7.5)
    del counter
    assert board.counter("a").total == 0


def test_names_whose_digests_meet_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLOTS", 8)
    monkeypatch.setattr(module, "REACH", 8)
    memory = shared_memory(2)
    first, second = Board(2, 0, memory), Board(2, 1, memory)
    mine = [first.counter(str(number)) for number in range(8)]
    for number, counter in enumerate(mine):
        counter.add(number)
    assert [second.counter(str(number)).total for number in range(8)] == list(range(8))
    with pytest.raises(ProcessError, match="more than 8 names"):
        second.counter("another")
    kept = second.counter("3")
    mine[3] = mine[5] = first.counter("0")
    another = second.counter("another")  # in the place of 5, which nobody uses
    assert (another.total, kept.total) == (0, 0)
    with pytest.raises(ProcessError):
        second.counter("one more")
    os.close(memory)


def test_a_digest_is_never_that_of_a_free_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    class Zero:
        def digest(self) -> bytes:
            return bytes(8)

    monkeypatch.setattr(module, "blake2b", lambda *_, **__: Zero())
    assert digest_of("a") == 1


@contextmanager
def another_process(memory: int, what: str) -> Iterator[subprocess.Popen[bytes]]:
    """Row 1, from the moment on when it says so until the block's end."""
    code = f"import sys\nfrom tandem.gateway.processes.board import Board\nboard = Board(2, 1, {memory})\n{what}"
    process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[memory], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"go\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_nobody_reads_half_a_number() -> None:
    memory = shared_memory(2)
    counter = Board(2, 0, memory).counter("a")
    ends = 1.0, -1.2345678901234567e300
    writing = f"c = board.counter('a')\nprint('go', flush=True)\nwhile True:\n for e in {ends}: c._cells[1] = e"
    seen: set[float] = set()
    with another_process(memory, writing):
        # A busy machine may leave the writer asleep at one end for all the looks of one round.
        while not seen >= set(ends):
            seen |= {counter.total for _ in range(200_000)}
    assert seen - {0.0} == set(ends)
    os.close(memory)


CHANGING = """
number = board.common("a")
print("go", flush=True)
for _ in range(3000):
    with board.changing():
        before = number.value
        for _ in range(100): pass
        number.value = before + 1
"""


def test_what_is_changed_in_turn_is_not_lost() -> None:
    memory = shared_memory(2)
    board = Board(2, 0, memory)
    number = board.common("a")
    with another_process(memory, CHANGING) as other:
        for _ in range(3000):
            with board.changing():
                number.value += 1
        assert other.wait(20) == 0
    assert number.value == 6000
    os.close(memory)


def test_who_dies_or_stops_while_changing_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = shared_memory(2)
    board = Board(2, 0, memory)
    holding = "import time\nwith board.changing():\n print('go', flush=True)\n time.sleep(60)"
    with another_process(memory, holding) as other:
        other.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with board.changing():
            assert module.PATIENCE_S <= time.monotonic() - began < 30
        other.kill()
        other.wait()
        monkeypatch.setattr(module, "PATIENCE_S", 60.0)
        began = time.monotonic()
        with board.changing():
            assert time.monotonic() - began < 30
    os.close(memory)
