from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tandem.cli import run
from tandem.training.settings.named_recipe import named_recipes
from tandem.training.settings.resolve import fields_of
from tandem.training.settings.variables import VARIABLES


def test_stages_that_do_not_exist_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "dpo", "quickstart", "--rank", "8"]) == 2
    assert capsys.readouterr().err == "tandem: train dpo: there is no such stage; use pretrain, sft, lora\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain", "nothing"], "recipe nothing: is not built in; use quickstart, or a model of `tandem train list`"),
        (["sft", "yi"], "recipe yi: is not built in; did you mean yi-6b, yi-34b?"),
        (["lora", "quickstart"], "recipe quickstart: makes a new model and has no stage lora"),
        (["sft", "quickstart"], "recipe quickstart: needs a folder for the run; give --out"),
        (["sft", "quickstart", "--data", "x", "--set", "seed=1"], "takes no --data, --set; edit its file"),
        (["sft", "quickstart", "--data-only"], "makes a new model, and --data-only is for named ones"),
        (["sft", "yi-6b", "--data-only", "--plan"], "--plan and --json show the plan and prepare nothing"),
        (["sft", "quickstart", "--ranks", "0"], "launch.ranks = 0: write a number above 0"),
        (["sft", "yi-6b", "--set", "lr=1"], "--set lr: there is no such setting; did you mean"),
        (["sft", "yi-6b", "--data", "/none", "--weights", "/no"], "/none: is not there; raw data"),
        (["sft", "yi-6b", "--data", "/none", "--weights", "/no"], "/no/config.json: is not there; model folder"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if "needs a folder" in message else ["--out", str(tmp_path / "out")]
    assert run(["train", *words, *out]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "there", "hint"),
    [
        ("run", "run/sft_hf/config.json", "(ORIGINAL_HF_WEIGHT, --weights); give {0}/run/sft_hf"),
        ("run/iter_0000003", "run/sft_hf/config.json", "; give {0}/run/sft_hf"),
        ("run/iter_0000003", "run/latest", "; this one holds checkpoints: give the model folder that"),
        ("run", "run/checkpoints/iter_0000003/state.json", "as USER_CONVERTED_CKPT_PATH (--set resume.checkpoint=…)"),
    ],
)
def test_checkpoints_given_as_weights_are_told_what_to_be_given_as(
    given: str, there: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / given / "file", tmp_path / there):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    words = ["--data", str(tmp_path), "--weights", str(tmp_path / given), "--out", str(tmp_path / "out")]
    assert run(["train", "sft", "yi-6b", *words]) == 2
    assert hint.format(tmp_path) in capsys.readouterr().err


def test_lists_name_every_model_and_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*named_recipes(), "quickstart"))
    assert run(["train", "settings"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*fields_of(), *VARIABLES))
    assert run(["train", "settings", "--json"]) == 0
    rows = {row["setting"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == fields_of()
    assert all(row["meaning"] for row in rows.values())
    assert rows["training.recompute"]["meaning"].endswith("One of none, selective, full.")
    assert run(["train", "list", "--json"]) == 0
    models = {row["model"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(models) == list(named_recipes())
    assert (models["llama2-70b"]["micro_batch"], models["llama2-70b"]["lora_micro_batch"]) == (1, 2)


@pytest.mark.parametrize(
    "words",
    [["train"], ["train", "--help"], ["train", "pretrain", "--help"], ["train", "sft", "--help"], ["train", "list"]],
)
def test_help_needs_no_torch(words: list[str]) -> None:
    code = (
        f"import sys; from tandem.cli import run; run({words!r}); assert not {{'torch', 'pyarrow'}} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert any(word in done.stdout for word in ("pretrain", "WHAT", "llama2-7b"))


def test_a_recipe_file_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text(
        "".join(f'def f{n}():\n    """Return {n}."""\n    return {n}\n' for n in range(60))
    )
    (tmp_path / "tiny.yaml").write_text(f"""
name: tiny
model: {{hidden_size: 16, layers: 1, heads: 2, kv_heads: 1, feed_forward_size: 16, max_position: 64}}
tokenizer: {{vocab_size: 270}}
data: {{source: {tmp_path / "code"}}}
pretrain: &stage {{steps: 2, seq_length: 32, global_batch: 2, micro_batch: 1, lr: 0.01, min_lr: 0.001,
  warmup_steps: 1, save_every: 1}}
sft: *stage
""")
    out = tmp_path / "out"
    assert run(["train", "pretrain", str(tmp_path / "tiny.yaml"), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}/pretrain/model\n"
    assert "step 2/2" in printed.err
    assert run(["train", "pretrain", str(tmp_path / "tiny.yaml"), "--out", str(out), "--no-resume"]) == 0
    assert "corpus: there already, used again" in (err := capsys.readouterr().err)
    assert "pretrain: begins" in err


def test_what_an_error_quotes_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "sft", "qwen2\x1b[2J"]) == 2
    assert r"recipe qwen2\x1b[2J: is not built in" in capsys.readouterr().err
