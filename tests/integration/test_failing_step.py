"""An instance whose model fails: every request is answered, the process ends and says why."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

FAILING = """
import sys
from pathlib import Path
from tandem.engine.runner import Runner
def fail(self, plan):
    raise MemoryError("no memory left")
Runner.run = fail
from tandem.cli import run
sys.exit(run(["instance", sys.argv[1], "--port", "0"]))
"""


def test_it_ends_with_one_line_and_answers_first(tiny_model: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FAILING, str(tiny_model)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = ""
    while not line.endswith("is ready\n"):
        line = process.stdout.readline()
        assert line, "it ended before it was ready"
    url = line.split()[-3]
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps({"prompt": [5]}).encode())
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    with caught.value:
        assert "the instance failed: no memory left" in json.load(caught.value)["error"]["message"]
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("tandem: both instance at http://127.0.0.1:")
    assert errors.splitlines()[-1].endswith("a step failed: no memory left; its log has the traceback")
