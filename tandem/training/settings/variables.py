"""The documents' environment variables: what each sets, how it is read, and what it is without it.

Sources: the training guides for AscendSpeed 6.3.902 to 6.3.912, tables of hyper-parameters. Where releases differ, the
names of all of them are taken. An empty variable is one that is not set, as in their scripts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain, groupby
from typing import Any

from tandem.errors import RecipeError
from tandem.training.settings.run import StageName
from tandem.training.settings.values import Value, Values


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One environment variable."""

    name: str
    setting: str
    """The dotted name of what it sets."""
    meaning: str
    default: str
    """What holds without it, for people."""
    read: Callable[[str], Any] = str
    """Text to value; ValueError where it is none."""


def _flag(text: str) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in words:
        raise ValueError("give true or false, or 1 or 0")
    return words[text.lower()]


RECIPE = "the recipe's"

_PATHS = (
    ("ORIGINAL_TRAIN_DATA_PATH", "data", "raw data: a file or a folder", "must be set, or USER_PROCESSED_DATA_DIR"),
    ("ORIGINAL_HF_WEIGHT", "weights", "model folder in Hugging Face format", "must be set"),
    ("TOKENIZER_PATH", "tokenizer", "folder of the tokenizer files", "`$ORIGINAL_HF_WEIGHT`"),
    ("INPUT_PROCESSED_DIR", "processed", "gets the prepared data", "`<out>/processed_for_input/<model>`"),
    ("USER_PROCESSED_DATA_DIR", "prepared", "data prepared before; nothing is prepared then", "not set"),
    ("OUTPUT_SAVE_DIR", "out", "parent of checkpoints, logs, process logs", "`<out>/saved_dir_for_output`"),
    ("CKPT_SAVE_PATH", "checkpoints", "gets checkpoints and the exported model",
     "`$OUTPUT_SAVE_DIR/saved_models/<model>`"),
    ("LOG_SAVE_PATH", "logs", "gets metrics and pictures", "`$OUTPUT_SAVE_DIR/saved_models/<model>/log`"),
    ("ASCEND_PROCESS_LOG_PATH", "process_logs", "gets what each process says, and its stacks",
     "`$OUTPUT_SAVE_DIR/plog`"),
    ("TANDEM_STORE_CACHE", "cache", "keeps here what is on an object store; ours", "`~/.cache/tandem/store`"),
)  # fmt: skip

_NUMBERS = (
    ("MBS", "training.micro_batch", int, "samples in memory at once", RECIPE),
    ("GBS", "training.global_batch", int, "samples in a step", RECIPE),
    ("LR", "training.lr", float, "learning rate after the warm-up", RECIPE),
    ("MIN_LR", "training.min_lr", float, "learning rate at the end", RECIPE),
    ("SEQ_LEN", "training.seq_length", int, "tokens in a sample", RECIPE),
    ("MAX_PE", "max_position", int, "bound on SEQ_LEN", "what the model was made for"),
    ("SN", "length.samples", int, "samples in the data", "counted"),
    ("EPOCH", "length.epochs", int, "times every sample is seen", RECIPE),
    ("TRAIN_ITERS", "length.steps", int, "steps; outranks SN and EPOCH", "SN * EPOCH / GBS without the rest"),
    ("SEED", "seed", int, "of data order and random weights", RECIPE),
    ("SAVE_INTERVAL", "training.save_every", int, "steps between checkpoints", RECIPE),
    ("TP", "layout.tp", int, "tensor parallel: a wish", "the catalogue's"),
    ("PP", "layout.pp", int, "pipeline parallel: a wish", "the catalogue's"),
    ("CP", "layout.cp", int, "context parallel: a wish", "the catalogue's"),
    ("CKPT_LOAD_TYPE", "resume.load", int,
     "0 random weights, 1 weights only, 2 a checkpoint with optimizer and position", "1"),
    ("NNODES", "launch.nodes", int, "hosts", "1"),
    ("NODE_RANK", "launch.node_rank", int, "which of them this one is, from 0", "0"),
    ("MASTER_PORT", "launch.master_port", int, "port on the first host", "6000"),
)  # fmt: skip

_OTHERS = (
    ("MODEL_NAME", "model", str, "a name of `tandem train list`", "the command's"),
    ("DATA_TYPE", "data.kind", str, "kind of rows, by the documents' handler or ours",
     "GeneralPretrainHandler for pretrain; found out from the rows otherwise"),
    ("CONVERT_MG2HF", "export", _flag, "write a Hugging Face folder at the end", "TRUE"),
    ("USER_CONVERTED_CKPT_PATH", "resume.checkpoint", str,
     "checkpoints of another run, its export, or an adapter, to begin from", "not set"),
    ("MA_TRAIN_AUTO_RESUME", "resume.auto", _flag,
     "go on from the latest own checkpoint; outranks USER_CONVERTED_CKPT_PATH", "go on if there is one"),
    ("train_auto_resume", "resume.auto", _flag, "the same", "the same"),
    ("MASTER_ADDR", "launch.master_addr", str, "address of the first host", "localhost"),
)  # fmt: skip

VARIABLES: dict[str, Variable] = {
    variable.name: variable
    for variable in (
        *(Variable(name=name, setting=f"paths.{field}", meaning=says, default=default)
          for name, field, says, default in _PATHS),
        *(Variable(name=name, setting=setting, read=read, meaning=says, default=default)
          for name, setting, read, says, default in _NUMBERS + _OTHERS),
    )
}  # fmt: skip
"""Name -> variable, but for those that name the stage."""

STAGES: dict[str, str] = {
    "RUN_TYPE": "pretrain, sft, lora; retrain is pretrain with CKPT_LOAD_TYPE=2",
    "STAGE": "pt or sft, with FINETUNING_TYPE",
    "FINETUNING_TYPE": "full or lora, with STAGE",
}
"""The variables that name the stage, and their values."""

_RUN_TYPES: dict[str, StageName] = {"pretrain": "pretrain", "retrain": "pretrain", "sft": "sft", "lora": "lora"}
_TUNINGS: dict[str, StageName] = {"pt/full": "pretrain", "sft/full": "sft", "sft/lora": "lora"}

SHORTEST_GUESS = 6
"""Characters a name needs to be taken for a misspelt one by likeness alone: short ones are like anything."""


def variable_values(environment: Mapping[str, str]) -> Values:
    """What the variables set.

    Raises:
        RecipeError: One or several hold what is no value, or two that set the same differ; all are named.
    """
    values, faults = Values(), []
    for name, text in _given(environment, VARIABLES):
        variable = VARIABLES[name]
        try:
            value = variable.read(text)
        except ValueError as error:
            faults.append(f"{name}={text}: {_why(variable, error)}")
            continue
        before = values.get(variable.setting)
        if before is not None and before.value != value:
            faults.append(f"{name}={text}: contradicts {before.origin}; set one of them")
        values[variable.setting] = Value(value, name)
    retrains = ("RUN_TYPE", "retrain") in _given(environment, STAGES)
    if retrains and values.setdefault("resume.load", Value(2, "RUN_TYPE")).value != 2:
        faults.append("RUN_TYPE=retrain: goes on from a checkpoint, which CKPT_LOAD_TYPE contradicts; unset one")
    if faults:
        raise RecipeError("; ".join(faults))
    return values


def launch_values(environment: Mapping[str, str]) -> Values:
    """Of the variables only what those set that say which processes take part: all that a new model's recipe hears.

    Raises:
        RecipeError: As `variable_values`.
    """
    names = [name for name, variable in VARIABLES.items() if variable.setting.startswith("launch.")]
    return variable_values({name: environment[name] for name in names if name in environment})


def stage_of(environment: Mapping[str, str]) -> tuple[StageName, str] | None:
    """The stage that the variables name, and which of them do; None where none does.

    Raises:
        RecipeError: They name none that exists, or contradict each other.
    """
    given = dict(_given(environment, STAGES))
    stages = {}
    if (run_type := given.get("RUN_TYPE")) is not None:
        stages[f"RUN_TYPE={run_type}"] = _known(_RUN_TYPES, run_type, f"RUN_TYPE={run_type}")
    if "STAGE" in given or "FINETUNING_TYPE" in given:
        kind, tuning = given.get("STAGE", "pt"), given.get("FINETUNING_TYPE", "full")
        words = f"STAGE={kind} with FINETUNING_TYPE={tuning}"
        stages[words] = _known(_TUNINGS, f"{kind}/{tuning}", words)
    if len(set(stages.values())) > 1:
        raise RecipeError(f"{' and '.join(stages)} contradict each other; unset RUN_TYPE, or STAGE and FINETUNING_TYPE")
    return next(((stage, words) for words, stage in stages.items()), None)


def hints(environment: Mapping[str, str]) -> list[str]:
    """A line for each variable that is none of ours and looks like a misspelt one."""
    known = [*VARIABLES, *STAGES]
    lines = []
    for name, text in sorted(environment.items()):
        alike = _alike(name, text.strip(), known) if name not in known and text.strip() else None
        if alike and alike not in environment:
            lines.append(f"{name}: is no variable of ours and not read; did you mean {alike}?")
    return lines


def _alike(name: str, text: str, known: Sequence[str]) -> str | None:
    """What a variable is misspelt from, if anything."""
    slips = (one for one in known if _is_slip(name, one) and _takes_number(one, text))
    close = get_close_matches(name.replace(" ", ""), known, n=1, cutoff=0.85) if len(name) >= SHORTEST_GUESS else []
    return next(chain(close, slips), None)


def _is_slip(name: str, known: str) -> bool:
    """Whether they differ by case, an underscore, a letter typed twice, or neighbours swapped."""
    one, other = name.replace("_", "").upper(), known.replace("_", "").upper()
    if len(one) == len(other) > 2:
        return any(one == f"{other[:at]}{other[at : at + 2][::-1]}{other[at + 2 :]}" for at in range(len(other)))
    return [letter for letter, _ in groupby(one)] == [letter for letter, _ in groupby(other)]


def _takes_number(name: str, text: str) -> bool:
    """Whether a variable takes numbers or flags and the text is one, which of the system's short ones it seldom is."""
    if name not in VARIABLES or VARIABLES[name].read is str:
        return False
    with suppress(ValueError):
        VARIABLES[name].read(text)
        return True
    return False


def _given(environment: Mapping[str, str], names: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    return ((name, text) for name in names if (text := environment.get(name, "").strip()))


def _why(variable: Variable, error: ValueError) -> str:
    kinds: dict[object, str] = {int: "give a whole number", float: "give a number"}
    return kinds.get(variable.read, str(error))


def _known(stages: Mapping[str, StageName], key: str, words: str) -> StageName:
    if key not in stages:
        raise RecipeError(f"{words}: there is no such stage; use one of {', '.join(stages)}")
    return stages[key]
