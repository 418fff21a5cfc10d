"""Fetching from a hub: a loopback server that answers as the hub does, and the real client."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tandem.catalogue.download import wanted
from tandem.catalogue.source import Source, hub_cache, model_folder
from tandem.errors import ModelFolderError

COMMIT = "4b556ad4d70c38924cb8c120adbf21a0012de6ce"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00001.safetensors": b"weights",
    "model.safetensors.index.json": b"{}",
    "pytorch_model.bin": b"the same weights again",
    "pytorch_model.bin.index.json": b"{}",
    "modeling_evil.py": b"raise SystemExit",
    "tokenizer.model": b"pieces",
    "original/consolidated.00.pth": b"the same weights a third time",
    "README.md": b"about",
}


def hash_of(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """The answers of the hub that a snapshot needs."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        files = [{"type": "file", "path": f, "size": len(c), "oid": hash_of(c)} for f, c in FILES.items()]
        name = self.path.split("?")[0].rpartition("/")[2]
        if self.path.startswith("/api/models/org/name/tree/"):
            self.answer(json.dumps(files).encode())
        elif self.path.startswith("/api/models/org/name/"):
            siblings = [{"rfilename": file} for file in FILES]
            self.answer(json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode())
        elif "/resolve/" in self.path and name in FILES:
            self.answer(FILES[name])
        else:
            self.send_error(404)

    def answer(self, content: bytes) -> None:
        self.send_response(200)
        headers = {"Content-Length": len(content), "X-Repo-Commit": COMMIT, "Content-Type": "application/json"}
        for header, value in {**headers, "ETag": f'"{hash_of(content)}"'}.items():
            self.send_header(header, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(text: str, endpoint: str, home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "PATH": "/usr/bin"}
    command = [sys.executable, "-m", "tandem", "model", "fetch", text, *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_fetches_one_form_of_the_weights_and_no_code(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ModelFolderError, match="tandem model fetch org/name"):
        model_folder("org/name")
    done = fetch("org/name", hub, tmp_path)
    assert done.returncode == 0, done.stderr
    folder = model_folder("org/name")
    assert str(folder) in done.stdout
    texts = {"config.json", "model.safetensors.index.json", "tokenizer.model"}
    assert {path.name for path in folder.iterdir()} == texts | {"model-00001-of-00001.safetensors"}
    assert (folder / "config.json").read_bytes() == FILES["config.json"]


def test_fetches_into_a_folder(hub: str, tmp_path: Path) -> None:
    done = fetch("org/name", hub, tmp_path / "home", "--to", str(tmp_path / "model"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "tokenizer.model").read_bytes() == b"pieces"


def test_an_unknown_repository_is_one_line(hub: str, tmp_path: Path) -> None:
    done = fetch("org/other", hub, tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "org/other at main cannot be fetched" in done.stderr


def test_no_hub_is_one_line(tmp_path: Path) -> None:
    done = fetch("llama2-7b", "http://127.0.0.1:9", tmp_path)
    assert done.returncode == 1
    assert "meta-llama/Llama-2-7b-chat-hf at main cannot be fetched" in done.stderr.splitlines()[-1]


def test_bins_are_taken_where_there_is_nothing_else() -> None:
    files = [file for file in FILES if "safetensors" not in file]
    expected = ["config.json", "pytorch_model.bin", "pytorch_model.bin.index.json", "tokenizer.model"]
    assert wanted(files) == expected


def test_names_pin_their_revision() -> None:
    assert Source.of("glm4-9b") == Source("THUDM/glm-4-9b-chat", COMMIT)
    assert Source.of("glm4-9b", "main") == Source("THUDM/glm-4-9b-chat", "main")
    assert Source.of("THUDM/glm-4-9b-chat") == Source("THUDM/glm-4-9b-chat", COMMIT)
    assert Source.of("THUDM/glm-4-9b-chat", "main") == Source("THUDM/glm-4-9b-chat", "main")
    assert Source.of("some/where") == Source("some/where", "main")
    assert Source.of("./a/b/c") is None


def test_a_folder_is_itself_and_snapshots_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "config.json").touch()
    assert model_folder(tmp_path) == tmp_path
    snapshot = hub_cache() / "models--THUDM--glm-4-9b-chat" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    with pytest.raises(ModelFolderError, match=r"has no config.json"):
        model_folder("glm4-9b")
    with pytest.raises(
        ModelFolderError, match=r"^s3://b/m: is an address, .* an object store .* `tandem data sync s3://b/m FOLDER`"
    ):
        model_folder("s3://b/m")
    with pytest.raises(ModelFolderError, match=r"from the hub with `tandem model fetch ORGANISATION/MODEL`"):
        model_folder("https://huggingface.co/org/name")
    (snapshot / "config.json").touch()
    assert model_folder("glm4-9b") == snapshot
    for wrong in ("glm3-6b", "nowhere", "../../nowhere"):
        with pytest.raises(ModelFolderError, match=wrong):
            model_folder(wrong)
