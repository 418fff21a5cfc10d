"""Signals that ask for an end, and those that a process was told to ignore."""

from __future__ import annotations

import signal

import pytest

from tandem.training.interruption import between_steps


def test_what_is_ignored_stays_ignored() -> None:
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
