"""Every named model resolves to a run; variables and options outrank its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from tandem.catalogue.models import MODELS
from tandem.errors import RecipeError, UsageError
from tandem.training.settings.config import LoraConfig
from tandem.training.settings.named_recipe import named_recipes
from tandem.training.settings.resolve import Resolved, assignments, fields_of, resolve
from tandem.training.settings.run import StageName
from tandem.training.settings.variables import VARIABLES

GIVEN = {"ORIGINAL_HF_WEIGHT": "/w", "ORIGINAL_TRAIN_DATA_PATH": "/d.parquet"}
ROOT = Path("/r")


def resolved(name: str = "llama2-13b", stage: StageName = "sft", *sets: str, **variables: str) -> Resolved:
    return resolve(name, stage, environment=GIVEN | variables, options=assignments(sets), root=ROOT)


def test_the_32_models_of_the_documents_have_recipes() -> None:
    assert named_recipes() == [name for name in MODELS if not name.startswith("deepseek")]
    assert len(named_recipes()) == 32


@pytest.mark.parametrize("name", named_recipes())
@pytest.mark.parametrize("stage", get_args(StageName))
def test_every_stage_of_every_model_resolves(name: str, stage: StageName) -> None:
    run = resolved(name, stage).run
    assert (run.model, run.stage) == (name, stage)
    assert run.training.seq_length <= MODELS[name].config.max_position
    assert run.layout.cards == MODELS[name].layouts[0].cards
    assert (run.lora is not None) == (stage == "lora")


@pytest.mark.parametrize(
    ("name", "stage", "batch"),
    [
        ("llama2-7b", "lora", (2, 64)),
        ("llama2-13b", "pretrain", (4, 512)),
        ("llama2-70b", "pretrain", (1, 128)),
        ("baichuan2-13b", "sft", (1, 16)),
        ("qwen-14b", "sft", (2, 64)),
    ],
)
def test_batches_are_the_documents(name: str, stage: StageName, batch: tuple[int, int]) -> None:
    training = resolved(name, stage).run.training
    assert (training.micro_batch, training.global_batch, training.lr, training.min_lr) == (*batch, 2.5e-5, 2.5e-6)


def test_the_layout_follows_the_sequence_length() -> None:
    short, long = resolved("llama2-70b").run.layout, resolved("llama2-70b", SEQ_LEN="8192", MAX_PE="8192").run.layout
    assert (short.tp, short.pp, short.cards) == (8, 4, 32)
    assert (long.tp, long.pp, long.cards) == (8, 8, 64)
    mine = resolved("llama2-70b", TP="2", PP="1")
    assert (mine.run.layout.tp, mine.run.layout.cards) == (2, 32)
    assert mine.notes[0].startswith("TP 2: taken as a wish; ")


def test_options_outrank_variables_outrank_the_users_file_outranks_the_recipe() -> None:
    def lr(file: float | None, variable: str, *sets: str) -> tuple[float, str]:
        one = resolve(
            "yi-6b", "sft", file={"training": {"lr": file}} if file else None,
            environment=GIVEN | {"LR": variable}, options=assignments(sets), root=ROOT,
        )  # fmt: skip
        return one.run.training.lr, one.origins["training.lr"]

    assert lr(None, "") == (2.5e-5, "recipe all")
    assert lr(1e-4, "") == (1e-4, "recipe file")
    assert lr(1e-4, "2e-4") == (2e-4, "LR")
    assert lr(1e-4, "2e-4", "training.lr=3e-4") == (3e-4, "--set")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"paths": 3}, r"paths = 3: .*\(from recipe file\)"),
        ({"training": [1]}, r"training = \[1\]: .*\(from recipe file\)"),
        ({"paths": {"out": 3}}, r"paths\.out = 3: .*\(from recipe file\)"),
        ({"paths": {"weights": ["a"]}}, r"paths\.weights = \['a'\]: .*\(from recipe file\)"),
        ({1: 2}, "1 = 2: is not known; remove it"),
        ({"length": {"stepz": 6}}, r"length\.stepz = 6: is not known; remove it; did you mean .*length\.steps"),
    ],
)
def test_a_file_of_another_shape_is_refused_by_field(file: dict[str, object], message: str) -> None:
    variables = {"ORIGINAL_TRAIN_DATA_PATH": "/d"} if "weights" in str(file) else GIVEN
    with pytest.raises(RecipeError, match=message):
        resolve("yi-6b", "sft", file=file, environment=variables, options={}, root=ROOT)


def test_paths_follow_the_documents_rules() -> None:
    paths = resolved("llama2-13b", "pretrain").run.paths
    assert paths.tokenizer == paths.weights
    assert paths.processed == ROOT / "processed_for_input/llama2-13b"
    assert paths.checkpoints == ROOT / "saved_dir_for_output/saved_models/llama2-13b"
    assert paths.logs == ROOT / "saved_dir_for_output/saved_models/llama2-13b/log"
    assert paths.process_logs == ROOT / "saved_dir_for_output/plog"
    paths = resolved(OUTPUT_SAVE_DIR="/o", TOKENIZER_PATH="/t", CKPT_SAVE_PATH="/c").run.paths
    assert (paths.tokenizer, paths.checkpoints) == (Path("/t"), Path("/c"))
    assert (paths.logs, paths.process_logs) == (Path("/o/saved_models/llama2-13b/log"), Path("/o/plog"))


def test_steps_follow_from_samples_unless_they_are_given() -> None:
    assert resolved(SN="1200", GBS="128", EPOCH="5").run.stage_config(0).steps == 46
    assert resolved(GBS="8", EPOCH="2").run.stage_config(40).steps == 10
    assert resolved(TRAIN_ITERS="7").run.stage_config(40).steps == 7
    both = resolved(TRAIN_ITERS="7", SN="1200", GBS="128")
    assert "7 steps are asked for by number; samples and epochs do not count" in both.notes


@pytest.mark.parametrize("name", VARIABLES)
def test_every_variable_sets_what_it_says(name: str) -> None:
    variable = VARIABLES[name]
    assert variable.setting in fields_of()
    needs = {
        "CKPT_LOAD_TYPE": "2", "MBS": "2", "GBS": "1024", "MAX_PE": "9000", "SEQ_LEN": "99", "TP": "2",
        "SN": "1200", "MODEL_NAME": "llama2-13b",
        "DATA_TYPE": "AlpacaStyleInstructionHandler", "LR": "1e-4", "MIN_LR": "1e-6",
        "CONVERT_MG2HF": "false", "MA_TRAIN_AUTO_RESUME": "1", "train_auto_resume": "true",
    }  # fmt: skip
    hosts = {"MASTER_ADDR": "10.0.0.1", "NNODES": "2", "NODE_RANK": "1"}
    one = resolved(**(hosts if name in hosts else {name: needs.get(name, "3")}))
    assert one.origins[variable.setting] == ("command" if name == "MODEL_NAME" else name)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LR": "x", "MBS": "2.5"}, r"MBS=2\.5: give a whole number; LR=x: give a number"),
        ({"LR": "-1"}, r"training\.lr = -1\.0: write a number above 0 \(from LR\)"),
        ({"RUN_TYPE": "lora"}, "RUN_TYPE=lora contradicts the command, which says sft"),
        ({"RUN_TYPE": "sft", "STAGE": "pt"}, "RUN_TYPE=sft and STAGE=pt with FINETUNING_TYPE=full contradict"),
        ({"STAGE": "pt", "FINETUNING_TYPE": "lora"}, "there is no such stage; use one of pt/full, sft/full, sft/lora"),
        ({"MODEL_NAME": "yi-6b"}, "MODEL_NAME=yi-6b contradicts the command, which says llama2-13b"),
        ({"DATA_TYPE": "GeneralPretrainHandler"}, r"GeneralPretrainHandler: is for pretrain, and not for sft"),
        ({"DATA_TYPE": "MyHandler"}, r"data kind MyHandler: is not known; use auto, text"),
        (
            {"GBS": "100000000"},
            r"global_batch 100000000 of seq_length \d+ is a step of [\d,]+ tokens, and no run needs",
        ),
        ({"GBS": "6"}, "global_batch 6 is no multiple of micro_batch 4"),
        ({"SEQ_LEN": "8192"}, r"8192 \(SEQ_LEN\) is above the 4096 that llama2-13b was made for"),
        ({"SEQ_LEN": "2048", "MAX_PE": "1024"}, r"above the 1024 that max_position \(MAX_PE\) allows"),
        ({"SN": "100", "GBS": "512"}, r"length\.samples 100 \(SN\) times 5 epochs \(EPOCH\) make no step of 512"),
        ({"CKPT_LOAD_TYPE": "0"}, r"sft stands on trained weights, and resume\.load 0"),
        ({"CKPT_LOAD_TYPE": "3"}, r"resume\.load = 3: write 0, 1 or 2 \(from CKPT_LOAD_TYPE\)"),
        ({"CKPT_LOAD_TYPE": "2", "train_auto_resume": "false"}, "names no other; change one"),
        ({"LR": "1e-7"}, r"lr 1e-07; lower it \(training\.lr: from LR; training\.min_lr, MIN_LR: from recipe all\)"),
        ({"MA_TRAIN_AUTO_RESUME": "1", "train_auto_resume": "false"}, "contradicts MA_TRAIN_AUTO_RESUME"),
        ({"CONVERT_MG2HF": "maybe"}, "CONVERT_MG2HF=maybe: give true or false"),
        ({"NNODES": "2"}, "2 nodes need an address of the first .*; set MASTER_ADDR"),
        ({"NODE_RANK": "1"}, "node_rank 1 is none of 1 nodes"),
    ],
)
def test_what_cannot_be_is_refused_by_name(variables: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        resolved("llama2-13b", "sft", **variables)


def test_all_that_is_missing_is_named_at_once_and_misspelt_ones_too() -> None:
    with pytest.raises(RecipeError) as caught:
        resolve("yi-6b", "sft", environment={"ORIGNAL_HF_WEIGHT": "/w"}, options={}, root=ROOT)
    assert str(caught.value) == (
        "missing: raw data: set ORIGINAL_TRAIN_DATA_PATH, or give --data; model folder: set ORIGINAL_HF_WEIGHT, "
        "or give --weights; ORIGNAL_HF_WEIGHT: is no variable of ours and not read; did you mean ORIGINAL_HF_WEIGHT?"
    )
    alone = {"ORIGINAL_HF_WEIGHT": "/w", "USER_PROCESSED_DATA_DIR": "/p"}
    assert resolve("yi-6b", "sft", environment=alone, options={}, root=ROOT).run.paths.data is None


def test_misspelt_variables_get_a_hint() -> None:
    assert "SAVE_INTERVALL: is no variable of ours" in resolved(SAVE_INTERVALL="3").notes[-1]
    assert "did you mean EPOCH?" in resolved(EPOCHS="3").notes[-1]
    assert "did you mean SEQ_LEN?" in resolved(SEQLEN="128").notes[-1]
    assert "did you mean INPUT_PROCESSED_DIR?" in resolved(**{"INPUT_PRO CES SED_DIR": "/x"}).notes[-1]
    assert not any("no variable" in note for note in resolved(PATH="/bin", LS="1", HOME="/", SHELL="/bin/sh").notes)


@pytest.mark.parametrize(
    ("name", "text", "meant"),
    [("LRR", "1e-5", "LR"), ("GSB", "32", "GBS"), ("gbs", "32", "GBS"), ("MINLR", "1e-6", "MIN_LR"),
     ("SED", "3", "SEED")],
)  # fmt: skip
def test_slips_in_short_names_get_a_hint_where_the_value_is_a_number(name: str, text: str, meant: str) -> None:
    assert resolved(**{name: text}).notes[-1].endswith(f"did you mean {meant}?")
    assert not any("no variable" in note for note in resolved(**{name: text, meant: text}).notes), "it is set as well"
    assert not any("no variable" in note for note in resolved(**{name: ""}).notes), "empty is not set"


def test_what_systems_set_is_not_taken_for_a_slip() -> None:
    usual = {"CPP": "cpp", "SED": "/bin/sed", "PS1": "$ ", "PS4": "+", "SHLVL": "1", "TZ": "UTC", "LC_ALL": "C",
             "GPS": "1", "SPEED": "3", "PTP": "1", "SMB": "1", "COLUMNS": "80", "RANK": "0", "LOCAL_RANK": "0",
             "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "MASTER_PORTS": ""}  # fmt: skip
    assert not any("no variable" in note for note in resolved(**usual).notes)


def test_stages_by_the_documents_names() -> None:
    assert resolved("yi-6b", "lora", STAGE="sft", FINETUNING_TYPE="lora").run.stage == "lora"
    assert resolved("yi-6b", "pretrain", STAGE="pt").run.stage == "pretrain"
    again = resolved("yi-6b", "pretrain", RUN_TYPE="retrain").run
    assert again.resume.load == 2
    assert resolved("yi-6b", "pretrain", RUN_TYPE=" retrain ").run.resume.load == 2
    with pytest.raises(RecipeError, match="RUN_TYPE=retrain: goes on from a checkpoint, which CKPT_LOAD_TYPE"):
        resolved("yi-6b", "pretrain", RUN_TYPE="retrain", CKPT_LOAD_TYPE="1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr=1", r"there is no such setting; did you mean .*training\.lr"),
        ("training.lr", "give it as section.field=value"),
        ("zzz=1", "there is no such setting; `tandem train settings` lists all"),
        ("training.lr=[", r"--set training\.lr=\[: is no value that YAML knows; put it in quotes"),
        ("model=x", "there is no such setting"),
    ],
)
def test_settings_that_do_not_exist_are_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        assignments([text])


def test_lora_settings_are_for_lora() -> None:
    assert resolved("yi-6b", "lora", "lora.rank=8").run.lora == LoraConfig(rank=8, alpha=32)
    with pytest.raises(RecipeError, match="settings of lora are not for sft"):
        resolved("yi-6b", "sft", "lora.rank=8")
    with pytest.raises(RecipeError, match="lora: is empty, and the stage lora trains adapters"):
        resolve("yi-6b", "lora", file={"lora": None}, environment=GIVEN, options={}, root=ROOT)


def test_models_without_a_recipe_are_refused() -> None:
    with pytest.raises(RecipeError, match="deepseek-v3: has no recipe; these have one: llama2-7b"):
        resolved("deepseek-v3")
    with pytest.raises(UsageError, match="model llama9: is not known"):
        resolved("llama9")


def test_the_descent_of_wsd_is_a_share_of_the_run() -> None:
    wsd = ("training.schedule=wsd", "length.warmup=0.1", "length.steps=50")
    assert resolved("yi-6b", "sft", *wsd).run.stage_config(1).decay_steps is None
    stage = resolved("yi-6b", "sft", *wsd, "length.decay=0.3").run.stage_config(1)
    assert (stage.warmup_steps, stage.decay_steps) == (5, 15)
    with pytest.raises(RecipeError, match=r"length\.decay 0\.3 is for training\.schedule wsd, not cosine; remove it"):
        resolved("yi-6b", "sft", "length.decay=0.3")
    with pytest.raises(RecipeError, match=r"length\.warmup 0\.1 and length\.decay 0\.95 are more than the whole run"):
        resolved("yi-6b", "sft", *wsd, "length.decay=0.95")


def test_a_balance_is_for_mixtures() -> None:
    with pytest.raises(RecipeError, match=r"balance_bias 0\.001 is for routers with biases .* mixtral-8x7b has none"):
        resolved("mixtral-8x7b", "pretrain", "training.balance_bias=0.001")
    assert resolved("mixtral-8x7b", "sft", "training.balance=0.1").run.training.balance == 0.1
    with pytest.raises(RecipeError, match=r"training\.balance 0\.1 is for mixtures of experts, and yi-6b is none"):
        resolved("yi-6b", "sft", "training.balance=0.1")
