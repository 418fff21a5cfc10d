"""The documents' training scripts: there for every model, and nothing but a way to `tandem train`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tandem.compat.scripts import write_scripts
from tandem.training.settings.named_recipe import named_recipes
from tandem.training.settings.variables import VARIABLES

SCRIPTS = "llm_train/AscendSpeed/scripts"
FAKE = r"""#!/bin/sh
for word; do echo "<$word>"; done
env | grep -E "^(MASTER_|NNODES|NODE_|ORIGINAL_|CONVERT_|LR=)"
exit 5
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a place")
    write_scripts(folder)
    (folder / "tandem").write_text(FAKE)
    (folder / "tandem").chmod(0o755)
    return folder


def script(tree: Path, name: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{tree}:/usr/bin:/bin", **variables}
    command = ["sh", tree / SCRIPTS / name, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_every_model_and_stage_has_its_script(tree: Path) -> None:
    names = {str(path.relative_to(tree / SCRIPTS)) for path in (tree / SCRIPTS).rglob("0_pl_*.sh")}
    wanted = {
        f"{name.rpartition('-')[0]}/0_pl_{stage}_{name.rpartition('-')[2]}.sh"
        for name in named_recipes()
        for stage in ("pretrain", "sft", "lora")
    }
    assert names == wanted
    assert len(names) == 96
    for family in {path.parent for path in (tree / SCRIPTS).rglob("*.sh")}:
        assert {path.name for path in family.glob("[123]_*.sh")} == {
            "1_preprocess_data.sh", "2_convert_mg_hf.sh", "3_training.sh",
        }  # fmt: skip
    assert all(os.access(path, os.X_OK) for path in (tree / SCRIPTS).rglob("*.sh"))


def test_scripts_are_sound(tree: Path) -> None:
    scripts = sorted((tree / SCRIPTS / "llama2").glob("*.sh"))
    assert not [path for path in (tree / SCRIPTS).rglob("*.sh") if re.search("@[A-Z]+@", path.read_text())]
    for path in scripts:
        subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", *scripts], check=True)


def test_a_script_names_every_variable_of_the_documents(tree: Path) -> None:
    text = (tree / SCRIPTS / "llama2" / "0_pl_sft_70b.sh").read_text()
    named = set(re.findall(r'^export (\w+)="\$\{\1:-\}"$', text, re.M))
    assert named == VARIABLES.keys() - {"MODEL_NAME", "train_auto_resume", "TANDEM_STORE_CACHE"}


def test_the_environment_form(tree: Path) -> None:
    done = script(tree, "llama2/0_pl_sft_70b.sh", ORIGINAL_HF_WEIGHT="/my models/'x' $y", NNODES="2", NODE_RANK="1")
    root = tree / "llm_train" / "AscendSpeed"
    assert done.stdout.splitlines()[:5] == ["<train>", "<sft>", "<llama2-70b>", "<--out>", f"<{root}>"]
    assert {"ORIGINAL_HF_WEIGHT=/my models/'x' $y", "NNODES=2", "NODE_RANK=1", "LR="} <= set(done.stdout.splitlines())
    assert done.returncode == 5


def test_the_positional_form(tree: Path) -> None:
    done = script(tree, "qwen2.5/0_pl_lora_7b.sh", "10.0.0.1", "4", "3", "--plan", MASTER_ADDR="else")
    lines = done.stdout.splitlines()
    assert lines[1:3] == ["<lora>", "<qwen2.5-7b>"]
    assert "<--plan>" in lines
    assert {"MASTER_ADDR=10.0.0.1", "NNODES=4", "NODE_RANK=3"} <= set(lines)
    done = script(tree, "qwen2.5/0_pl_lora_7b.sh", "10.0.0.1")
    assert (done.returncode, done.stderr) == (
        2, "0_pl_lora_7b.sh: give all three of MASTER_ADDR NNODES NODE_RANK, or none\n"
    )  # fmt: skip


def test_single_steps(tree: Path) -> None:
    assert "MODEL_NAME is not set" in script(tree, "yi/3_training.sh").stderr
    done = script(tree, "yi/1_preprocess_data.sh", MODEL_NAME="yi-6b", RUN_TYPE="sft")
    assert done.stdout.splitlines()[:3] == ["<train>", "<sft>", "<yi-6b>"]
    assert "<--data-only>" in done.stdout
    named = {"MODEL_NAME": "yi-6b", "STAGE": "sft", "FINETUNING_TYPE": "lora"}
    assert script(tree, "yi/3_training.sh", **named).stdout.splitlines()[1] == "<lora>"
    assert script(tree, "yi/3_training.sh", MODEL_NAME="yi-6b").stdout.splitlines()[1] == "<pretrain>"
    assert "nothing to do" in script(tree, "yi/2_convert_mg_hf.sh", "hf2hg", MODEL_NAME="yi-6b").stdout
    assert "CONVERT_MG2HF=TRUE" in script(tree, "yi/2_convert_mg_hf.sh", "mg2hf", MODEL_NAME="yi-6b").stdout
    done = script(tree, "yi/2_convert_mg_hf.sh", "up", MODEL_NAME="yi-6b")
    assert (done.returncode, "up: is no direction" in done.stderr) == (2, True)


def test_without_tandem_a_script_says_so(tree: Path) -> None:
    done = script(tree, "yi/0_pl_sft_6b.sh", PATH="/usr/bin:/bin")
    assert (done.returncode, done.stderr) == (
        127, "0_pl_sft_6b.sh: tandem is not on the PATH; activate the environment it is installed in\n"
    )  # fmt: skip
