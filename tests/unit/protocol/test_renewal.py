"""Files are read again when they change, and not else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tandem.errors import UsageError
from tandem.protocol.renewal import Renewal


def test_what_changes_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("a")
    other.write_text("a")
    read: list[str] = []

    def reads() -> None:
        read.append(one.read_text())
        if read[-1] == "bad":
            raise UsageError("one: is bad")

    renewal = Renewal()
    renewal.watch((one,), reads)
    renewal.watch((other,), lambda: read.append("other"))
    renewal.look()
    assert read == []
    one.write_text("bad")
    for _ in range(2):
        renewal.look()
    assert read == ["bad"]
    assert "one: is bad; what was read before stays in use" in caplog.text
    later = tmp_path / "later"  # as certificates are renewed in Kubernetes: another file gets the name
    later.write_text("b")
    later.rename(one)
    renewal.look()
    assert read == ["bad", "b"]
    other.unlink()
    renewal.look()
    assert read == ["bad", "b", "other"]
