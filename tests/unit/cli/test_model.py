from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tandem.catalogue.models import MODELS
from tandem.cli import run


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


def test_random_then_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "llama"
    assert run(["model", "random", "llama3.2-1b", str(folder), "--tiny"]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    fields = json.loads((folder / "config.json").read_text())
    assert (fields["architectures"], fields["torch_dtype"]) == (["LlamaForCausalLM"], "bfloat16")
    assert fields["rope_scaling"]["rope_type"] == "llama3"
    assert fields["tie_word_embeddings"]
    assert run(["model", "show", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "Llama 3 scaling by 32, trained on 64 tokens" in shown
    assert "files hold    38 tensors of 609.12 KiB in BF16, every one that is needed\n" in shown
    assert "tokenizer     tokenizer.json of 1024 ids, a chat format\n" in shown
    assert run(["model", "show", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tensors"], found["faults"], found["costs"]["context"]) == (38, [], 1024)
    assert found["stored"] == {"BF16": found["stored_bytes"]}
    assert found["tokenizer"] == {"file": "tokenizer.json", "ids": 1024, "chat": True}


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        shape = "layers=1,hidden=32,heads=2"
        assert run(["model", "random", "qwen2-7b", str(tmp_path / name), "--shape", shape, "--seed", seed]) == 0
    a, b, c = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "abc")
    assert a == b
    assert {name for name in a if a[name] != c[name]} == {"model.safetensors"}


def test_show_names_faulty_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "llama"
    assert run(["model", "random", "llama3-8b", str(folder), "--tiny"]) == 0
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 5, "intermediate_size": 16}))
    capsys.readouterr()
    assert run(["model", "show", str(folder), "--json"]) == 3
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert "model.layers.4.self_attn.q_proj.weight is missing" in faults
    assert "model.layers.0.mlp.up_proj.weight has shape [224, 64], config.json asks for [16, 64]" in faults
    assert run(["model", "show", str(folder)]) == 3
    assert "and 1 more; --json lists all" in capsys.readouterr().out
    (folder / "model.safetensors").unlink()
    assert run(["model", "show", str(folder)]) == 3
    assert "has no *.safetensors and no *.bin file" in capsys.readouterr().out


def test_show_names_every_dtype_most_bytes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "fp8"
    assert run(["model", "random", "deepseek-v3", str(folder), "--tiny", "--fp8"]) == 0
    assert run(["model", "show", str(folder)]) == 0
    assert " in F8_E4M3, BF16, F32, every one that is needed\n" in capsys.readouterr().out


def test_show_opens_the_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "yi"
    assert run(["model", "random", "yi-6b", str(folder), "--tiny"]) == 0
    path, config = folder / "tokenizer.model", folder / "config.json"
    for content, fault in ((b"\xff" + path.read_bytes(), "is no SentencePiece model"), (None, "has no tokenizer.json")):
        path.unlink() if content is None else path.write_bytes(content)
        capsys.readouterr()
        assert run(["model", "show", str(folder)]) == 3
        assert fault in capsys.readouterr().out
    assert run(["model", "random", "yi-6b", str(tmp_path / "other"), "--tiny"]) == 0
    shutil.copy(tmp_path / "other" / "tokenizer.model", path)
    config.write_text(config.read_text().replace('"vocab_size": 1024', '"vocab_size": 1000'))
    assert run(["model", "show", str(folder), "--json"]) == 3
    faults = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))["faults"]
    assert "the tokenizer has 1024 tokens and the model 1000" in faults[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "choose one of --tiny, --shape and --full; the full size is 128.5 GiB in bfloat16"),
        (["--tiny", "--full"], "choose one of"),
        (["--shape", "depth=3"], "'depth=3' is not NAME=NUMBER"),
    ],
)
def test_random_needs_a_size(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["model", "random", "llama2-70b", str(tmp_path / "out"), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_random_in_full_needs_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["model", "random", "deepseek-v3", str(tmp_path / "out"), "--full"]) == 2
    assert "random weights need 1,249.88 GiB" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_random_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["model", "random", "llama2-7b", str(tmp_path), "--tiny"]) == 2
    assert "exists already" in capsys.readouterr().err


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
    "arguments",
    [
        ["--help"],
        ["list", "--help"],
        ["show", "--help"],
        ["fetch", "--help"],
        ["random", "--help"],
        ["list"],
        ["show", "deepseek-r1"],
    ],
)
def test_needs_no_torch(arguments: list[str]) -> None:
    code = f"import sys; from tandem.cli import run; run({['model', *arguments]!r}); assert 'torch' not in sys.modules"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 2  # 0.2 s on an idle machine
    assert done.stdout
