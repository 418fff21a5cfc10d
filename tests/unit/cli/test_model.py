from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tandem.catalogue.models import MODELS
from tandem.cli import run

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 256,
    "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5, "vocab_size": 300,
}  # fmt: skip


def words(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_list_has_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["model", "list"]) == 0
    heading, *rows, note = words(capsys)
    assert heading[:2] == ["name", "params"]
    assert [row[0] for row in rows] == list(MODELS)
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["llama2-70b"] == [
        "68.98", "80", "8192", "64/8", "4096", "128.5", "320.0", "8×4", "/", "32", "meta-llama/Llama-2-70b-chat-hf",
    ]  # fmt: skip
    assert by_name["mixtral-8x7b"][7:11] == ["8×4", "CP2", "/", "64*"]
    assert note[0] == "*"


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["model", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(MODELS)
    assert rows["glm4-9b"]["revision"] == "4b556ad4d70c38924cb8c120adbf21a0012de6ce"
    assert rows["qwen2-0.5b"]["bfloat16_bytes"] == 988_065_536
    assert rows["deepseek-v3"]["kv_heads"] is None
    assert rows["llama2-13b"]["layout"]["source"] == "document"


def test_show_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["model", "show", "DeepSeek-V3"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "671,026,419,200", "latent of 512", "4 of 8 groups", "float8_e4m3fn 624.94 GiB", "70,272 bytes per token",
        "neighbouring pairs",
    ):  # fmt: skip
        assert part in shown
    assert run(["model", "show", "llama3.1-70b"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "Llama 3 scaling by 8",
        "16 for LoRA",
        "TP 8, PP 4 on 32 cards (derived: as llama3-70b",
        "hf download",
    ):
        assert part in shown


@pytest.mark.parametrize("name", MODELS)
def test_show_every_name_as_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["model", "show", name, "--json", "--context", "1000"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["name"] == name
    assert shown["config"]["attention"]["kind"] in ("GQA", "MLA")
    assert shown["costs"]["context"] == 1000
    assert shown["costs"]["kv_bytes"] == 1000 * shown["costs"]["kv_bytes_per_token"]
    assert run(["model", "show", name]) == 0


def test_show_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    run(["model", "show", str(tmp_path)])
    assert "2 layers, hidden size 64, vocabulary 300" in capsys.readouterr().out
    run(["model", "show", str(tmp_path), "--json"])
    assert json.loads(capsys.readouterr().out)["costs"]["context"] == 256


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lama3-8b"], "model lama3-8b: is not known; did you mean llama3-8b"),
        (["llama3-8b", "--context", "0"], "--context 0: give a number of tokens from 1 up"),
        (["./nowhere"], "no such folder"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["model", "show", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list", "--help"], ["show", "--help"], ["list"], ["show", "deepseek-r1"]]
)
def test_needs_no_torch(arguments: list[str]) -> None:
    code = f"import sys; from tandem.cli import run; run({['model', *arguments]!r}); assert 'torch' not in sys.modules"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 2  # 0.2 s on an idle machine
    assert done.stdout
