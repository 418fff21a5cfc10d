"""Signals that ask for an end, and those that a process was told to ignore."""

from __future__ import annotations

import signal

import pytest

from tandem.training import interruption
from tandem.training.interruption import between_steps


def test_what_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "TOGETHER_S", 0.0)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with between_steps() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert not asked()
            signal.raise_signal(signal.SIGTERM)
            assert asked()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_that_come_together_are_one_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [10.0]
    monkeypatch.setattr(interruption.time, "monotonic", lambda: clock[0])
    with between_steps() as asked:
        for clock[0] in (10.0, 10.2, 10.9):  # from a service manager, and from the launcher that heard it, too
            signal.raise_signal(signal.SIGTERM)
        assert asked()
        clock[0] = 11.1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
