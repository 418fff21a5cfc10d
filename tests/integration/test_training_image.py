"""The image for training: what its Containerfile promises, and, where buildah and a base are at hand, the image itself.

buildah, and TANDEM_TEST_IMAGE_BASE=localhost/...    a base that buildah has, or can fetch
TANDEM_TEST_IMAGE_BUILD="--secret id=pip,..."        what `buildah build` needs here beside that
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "images" / "training"
BASE = os.environ.get("TANDEM_TEST_IMAGE_BASE", "")
INSIDE = """
set -eu
tandem --version
tandem model random qwen2-0.5b models/small --tiny
for n in $(seq 200); do
    echo "{\\"instruction\\": \\"What follows $n?\\", \\"output\\": \\"It is $((n + 1)).\\"}"
done > data.jsonl
export ORIGINAL_TRAIN_DATA_PATH=$PWD/data.jsonl ORIGINAL_HF_WEIGHT=$PWD/models/small
export SEQ_LEN=64 GBS=4 MBS=2 TRAIN_ITERS=100000
script=llm_train/AscendSpeed/scripts/qwen2/0_pl_sft_0.5b.sh
sh $script --check
/opt/tandem/start sh $script & run=$!
log=llm_train/AscendSpeed/saved_dir_for_output/saved_models/qwen2-0.5b/log/metrics.jsonl
until grep -q '"step": 3,' $log 2>/dev/null; do kill -0 $run; sleep 0.2; done
kill -TERM $run
code=0; wait $run || code=$?
echo "user $(id -u):$(id -g) code $code step $(cat ${log%/log/*}/latest_checkpointed_iteration.txt)"
"""


def instructions() -> list[tuple[str, str]]:
    """Each with its words, lines put together."""
    lines = [line for line in (FOLDER / "Containerfile").read_text().splitlines() if not re.match(r"\s*#", line)]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [(first, rest.strip()) for first, _, rest in (line.partition(" ") for line in whole.splitlines() if line)]


def arguments() -> dict[str, str]:
    return {name: value.strip('"') for kind, rest in instructions() if kind == "ARG"
            for name, _, value in [rest.partition("=")] if value}  # fmt: skip


def test_what_is_copied_is_in_the_checkout() -> None:
    copied = [rest.split() for kind, rest in instructions() if kind == "COPY"]
    sources = [word for words in copied if not words[0].startswith("--from") for word in words[:-1] if word[:2] != "--"]
    assert sources == ["pyproject.toml", "README.md", "LICENSE", "tandem", "images/training/start.sh"]
    assert all((ROOT / source).exists() for source in sources)
    assert os.access(FOLDER / "start.sh", os.X_OK)


def test_what_is_installed_is_what_the_project_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert arguments()["TORCH"] in project["dependencies"]
    assert set(arguments()["EXTRAS"].split(",")) <= set(project["optional-dependencies"])


def test_it_runs_as_a_user_and_signals_reach_the_command() -> None:
    found = instructions()
    last = dict(found)
    assert (last["USER"], last["WORKDIR"], last["VOLUME"]) == ("ma-user", "/home/ma-user/ws", "/home/ma-user/ws")
    assert json.loads(last["ENTRYPOINT"]) == ["/opt/tandem/start"]
    assert json.loads(last["CMD"]) == ["tandem", "--help"]
    after = [kind for kind, _ in found[[kind for kind, _ in found].index("USER") + 1 :]]
    assert "COPY" not in after  # whose files would be root's
    process = subprocess.Popen([FOLDER / "start.sh", "sleep", "600"])
    try:
        while b"sleep" not in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[0]:
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
    finally:
        process.kill()


def test_it_holds_no_secrets() -> None:
    kept = " ".join(rest for kind, rest in instructions() if kind in ("ARG", "ENV", "LABEL"))
    assert not re.search(r"(?i)passw|token|secret|_key|://[^/ ]*@|index_url", kept)
    assert all("type=secret,id=pip" in rest for kind, rest in instructions() if kind == "RUN" and "pip" in rest)


def test_its_page_names_every_argument() -> None:
    page = (ROOT / "docs" / "training-image.md").read_text()
    named = [rest.partition("=")[0] for kind, rest in instructions() if kind == "ARG"]
    assert all(f"`{name}`" in page for name in named)


def buildah(*words: str) -> str:
    done = subprocess.run(["buildah", *words], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def container() -> Iterator[str]:
    extra = shlex.split(os.environ.get("TANDEM_TEST_IMAGE_BUILD", ""))
    name = "localhost/tandem-training-tested"
    buildah("build", "--layers=false", "--build-arg", f"BASE={BASE}", *extra, "-f", str(FOLDER / "Containerfile"), "-t",
            name, ".")  # fmt: skip
    one = buildah("from", name).strip()
    try:
        yield one
    finally:
        buildah("rm", one)
        buildah("rmi", name)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not shutil.which("buildah"), reason="no buildah; on Debian: apt install buildah")
@pytest.mark.skipif(not BASE, reason="TANDEM_TEST_IMAGE_BASE names no base image")
def test_the_image_trains_and_keeps_what_it_did_when_it_is_told_to_stop(container: str) -> None:
    said = buildah("run", container, "--", "/opt/tandem/start", "bash", "-c", INSIDE)
    assert "nothing was found that it would fail of" in said
    user, code, step = re.findall(r"user (\S+) code (\d+) step (\d+)", said)[0]
    assert (user, code) == ("1000:100", "130")
    assert int(step) >= 3
    left = "ls -A /wheels /etc/pip.conf /tmp/kept 2>/dev/null; true"
    assert buildah("run", container, "--", "bash", "-c", left) == ""
