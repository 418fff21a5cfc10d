"""Output that nobody reads, that has no room, or that is closed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

MAIN = "import os, tandem.cli; tandem.cli.run = lambda _: print('x') or {code}; tandem.cli.main()"
LOOK = "any(os.fstat(number).st_rdev != os.stat('/dev/null').st_rdev for number in {numbers})"


@pytest.mark.parametrize(
    ("redirection", "then", "code", "said"),
    [
        ("", "0", 1, ""),
        (">/dev/full", "0", 1, "tandem: stdout: No space left on device; free, repair or change what it names"),
        (">&-", LOOK.format(numbers=[1]), 0, ""),
        ("<&- >&- 2>&-", LOOK.format(numbers=[0, 1, 2]), 0, ""),
    ],
)
def test_what_cannot_be_written_is_no_traceback(redirection: str, then: str, code: int, said: str) -> None:
    read, pipe_without_reader = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, MAIN.format(code=then)],
            stdout=pipe_without_reader, stderr=subprocess.PIPE, text=True, check=False,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        )  # fmt: skip
    finally:
        os.close(pipe_without_reader)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert bool(done.stderr) == bool(said)
