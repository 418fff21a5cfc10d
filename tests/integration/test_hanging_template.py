"""Chat templates that go on for ever: other requests are answered meanwhile, and the instance ends when it is told."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

CODE = """
import sys
from tandem.text import sandbox
sandbox.SECONDS = 5.0
from tandem.cli import run
sys.exit(run(["instance", sys.argv[1], "--port", "0"]))
"""
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def post(url: str, body: dict[str, Any]) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (OSError, HTTPException):
        return 0


@pytest.mark.full
def test_completions_and_the_end_do_not_wait(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "m")
    (folder / "chat_template.jinja").write_text(ENDLESS)
    process = subprocess.Popen([sys.executable, "-c", CODE, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = ""
    while not line.endswith("is ready\n"):
        line = process.stdout.readline()
        assert line, "it ended before it was ready"
    url = line.split()[-3]
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    with ThreadPoolExecutor(12) as clients:
        chats = [clients.submit(post, f"{url}/v1/chat/completions", chat) for _ in range(12)]
        time.sleep(1)
        began = time.monotonic()
        assert post(f"{url}/v1/completions", {"prompt": [5], "max_tokens": 4}) == 200
        assert time.monotonic() - began < 3  # 0.02 s on an idle machine
        assert not any(one.done() for one in chats)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert {one.result() for one in chats} <= {0, 400}
    process.stdout.close()
