from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tandem.cli import run


def test_stages_that_do_not_exist_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "lora", "quickstart", "--rank", "8"]) == 2
    assert capsys.readouterr().err == "tandem: train lora: there is no such stage; use pretrain or sft\n"


def test_recipes_that_do_not_exist_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "pretrain", "nothing", "--out", str(tmp_path / "out")]) == 2
    assert "recipe nothing: is not built in; use quickstart" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", [["train"], ["train", "--help"], ["train", "pretrain", "--help"], ["train", "sft", "--help"]]
)
def test_help_needs_no_torch(words: list[str]) -> None:
    code = (
        f"import sys; from tandem.cli import run; run({words!r}); assert not {{'torch', 'pyarrow'}} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout or "RECIPE" in done.stdout


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
