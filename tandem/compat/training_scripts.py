"""The documents' training scripts: one template, filled in for every named model and stage.

    llm_train/AscendSpeed/scripts/<family>/0_pl_{pretrain,sft,lora}_<size>.sh
    llm_train/AscendSpeed/scripts/<family>/{1_preprocess_data,2_convert_mg_hf,3_training}.sh

What the documents call the work directory, with processed_for_input and saved_dir_for_output, is llm_train/AscendSpeed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tandem.catalogue.models import MODELS

TEMPLATES = Path(__file__).parent / "training_scripts"
FOLDER = Path("llm_train/AscendSpeed/scripts")
HOSTS = """\
#   sh @NAME@                                    on one host
#   sh @NAME@ MASTER_ADDR NNODES NODE_RANK       on each of several; or set the three as variables"""
DIRECTIONS = "#   sh @NAME@ hf2hg|mg2hf"
STAGES = {"pretrain": "pretraining", "sft": "fine-tuning of all weights", "lora": "fine-tuning with LoRA"}
CONVERT = "2_convert_mg_hf.sh"
STEPS = {
    "1_preprocess_data.sh": "prepares the data of MODEL_NAME for RUN_TYPE",
    CONVERT: "converts weights: hf2hg before training, mg2hf after it",
    "3_training.sh": "trains MODEL_NAME as RUN_TYPE says",
}


def training_scripts() -> dict[Path, str]:
    """Path below the tree -> content."""
    return {FOLDER / path: text for path, text in _scripts()}


def _scripts() -> Iterator[tuple[Path, str]]:
    for model in (model for model in MODELS.values() if model.layouts):
        family, _, size = model.name.rpartition("-")
        for name, says in STEPS.items():
            hosts = () if name == CONVERT else ("hosts.sh",)
            usage = DIRECTIONS if name == CONVERT else HOSTS
            yield Path(family, name), _filled((*hosts, "stage.sh", name), USAGE=usage, SAYS=says, NAME=name)
        for stage, says in STAGES.items():
            name, says = f"0_pl_{stage}_{size}.sh", f"{model.name}: {says}"
            words = {"USAGE": HOSTS, "SAYS": says, "NAME": name, "MODEL": model.name, "STAGE": stage}
            yield Path(family, name), _filled(("hosts.sh", "0_pl.sh"), **words)


def _filled(parts: tuple[str, ...], **words: str) -> str:
    text = "".join((TEMPLATES / part).read_text(encoding="utf-8") for part in ("head.sh", *parts))
    for name, word in words.items():  # the usage first: it holds the name
        text = text.replace(f"@{name}@", word)
    return text
