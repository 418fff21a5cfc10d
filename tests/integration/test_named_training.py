"""A named model by the documents' variables and script alone: from a parquet file to a model that is loaded again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from openai import OpenAI
from recording import Recording, StoppedError, StoppingAt
from safetensors.torch import load_file

from tandem.catalogue.models import find_model
from tandem.catalogue.shrink import chosen_config
from tandem.cli import run as run_command
from tandem.compat.scripts import write_scripts
from tandem.deploy.port import free_ports
from tandem.deploy.service import local_topology, running
from tandem.errors import CheckpointError, RecipeError, TandemError, UsageError
from tandem.model.context import CausalContext
from tandem.model.decoder import Decoder
from tandem.model.folder import load
from tandem.model.random_folder import write_random_folder
from tandem.parallel.device import DeviceName
from tandem.parallel.world import World
from tandem.text.tokenizer import Tokenizer
from tandem.topology.topology import Role
from tandem.training.adapters.lora import merge
from tandem.training.adapters.peft_folder import load_adapter
from tandem.training.compute.loss import LossModel
from tandem.training.compute.parallelize import materialise
from tandem.training.data.prepare import prepare
from tandem.training.data.spec import PrepareSpec
from tandem.training.named.begin import base_of
from tandem.training.named.run import run_named
from tandem.training.progress import Silence
from tandem.training.settings.resolve import Resolved, assignments, resolve
from tandem.training.settings.run import StageName
from tandem.training.watch.metrics import read_metrics
from tandem.training.watch.report import summaries

MODEL = "qwen2-0.5b"
SMALL = {"SEQ_LEN": "128", "GBS": "4", "MBS": "2", "TRAIN_ITERS": "6", "SAVE_INTERVAL": "3", "LR": "1e-3"}
FLOAT32 = "training.precision=float32"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables that must be set: a model of the family's own layout, and data as Stanford's Alpaca."""
    folder = tmp_path_factory.mktemp("given")
    named = find_model(MODEL)
    config = chosen_config(named.config, tiny=True, shape=None, full=False)
    write_random_folder(config, named.tokenizer, folder / "weights", dtype="bfloat16", seed=0)
    rows = [
        {"instruction": f"What follows {n}?", "input": "", "output": f"It is {n + 1}.", "text": f"{n}, {n + 1}. " * 9}
        for n in range(60)
    ]
    rows.append({"instruction": "What follows 60?", "input": "", "output": "", "text": "60. " * 9})
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), folder / "train-00000-of-00001-a09b74b3ef9c3b56.parquet"
    )
    data = str(folder / "train-00000-of-00001-a09b74b3ef9c3b56.parquet")
    return {"ORIGINAL_TRAIN_DATA_PATH": data, "ORIGINAL_HF_WEIGHT": str(folder / "weights")} | SMALL


def resolved(given: dict[str, str], root: Path, *sets: str, stage: StageName = "sft", **variables: str) -> Resolved:
    return resolve(MODEL, stage, environment=given | variables, options=assignments((FLOAT32, *sets)), root=root)


def losses(run: Resolved) -> list[float]:
    return [report.loss for report in read_metrics(run.run.paths.logs / "metrics.jsonl")]


def same(first: Path, second: Path) -> bool:
    return (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_the_documents_script_makes_a_model(given: dict[str, str], tmp_path: Path) -> None:
    write_scripts(tmp_path)
    (tmp_path / "tandem").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tandem "$@"\n')
    (tmp_path / "tandem").chmod(0o755)
    work = tmp_path / "llm_train" / "AscendSpeed"
    environment = {**os.environ, **given, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NO_COLOR": "1"}
    done = subprocess.run(
        ["sh", work / "scripts" / "qwen2" / "0_pl_sft_0.5b.sh"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    saved = work / "saved_dir_for_output" / "saved_models" / MODEL
    assert done.stdout == f"{saved}/sft_hf\n"
    assert "no conversion is needed" in done.stderr
    assert (work / "processed_for_input" / MODEL / "data" / "finetune").is_dir()
    assert (saved / "latest_checkpointed_iteration.txt").read_text() == "6\n"
    (summary,) = summaries(saved)
    assert summary.skipped_rows is not None
    assert [(file.rows, file.path) for file in summary.skipped_rows] == [
        (1, str(work / "processed_for_input" / MODEL / "data" / "finetune" / "data_skipped.jsonl"))
    ]
    curve = [json.loads(line)["loss"] for line in (saved / "log" / "metrics.jsonl").read_text().splitlines()]
    assert len(curve) == 6
    assert curve[-1] < curve[0] - 0.2
    tokenizer = Tokenizer.from_folder(saved / "sft_hf")
    assert tokenizer.chat is not None
    ids = torch.tensor([tokenizer.chat.encode([{"role": "user", "content": "What follows 3?"}])])
    with torch.no_grad():
        logits = load(saved / "sft_hf", torch.device("cpu"))(ids, CausalContext(1, ids.shape[1], ids.device))
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


def test_a_run_is_used_again_and_goes_on_where_it_was_stopped(given: dict[str, str], tmp_path: Path) -> None:
    whole, broken = resolved(given, tmp_path / "whole"), resolved(given, tmp_path / "broken")
    model = run_named(whole, Recording())
    saved = whole.run.paths.checkpoints
    left = shutil.copytree(saved / "iter_0000006", saved / ".iter_0000003.old.part")  # by a kill in the last pruning
    again = Recording()
    assert run_named(whole, again) == model
    assert again.reused == ["prepare data", "sft"]
    assert not left.exists()
    finished = resolved(given, tmp_path / "whole", train_auto_resume="false")
    assert run_named(finished, Recording()) == model
    with pytest.raises(StoppedError):
        run_named(broken, StoppingAt(4))
    refused = resolved(given, tmp_path / "broken", train_auto_resume="false")
    with pytest.raises(CheckpointError, match="holds a checkpoint of step 3, and the run may not go on from it"):
        run_named(refused, Recording())
    progress = Recording()
    resumed = run_named(broken, progress)
    assert [report.step for report in progress.reports] == [4, 5, 6]
    assert losses(broken) == losses(whole)
    assert same(resumed, model)
    with pytest.raises(
        CheckpointError, match=r"sft_hf: was trained from other inputs: stage\.lr was 0\.001, now 0\.002"
    ):
        run_named(resolved(given, tmp_path / "whole", LR="2e-3"), Recording())
    prepared = sorted((tmp_path / "whole" / "processed_for_input").rglob("*.bin"))
    before = [(path, path.stat().st_mtime_ns) for path in prepared]
    with pytest.raises(CheckpointError, match=r"sft_hf: was trained from other inputs: .*stage\.seq_length was"):
        run_named(resolved(given, tmp_path / "whole", SEQ_LEN="64"), Recording())
    assert prepared
    assert [(path, path.stat().st_mtime_ns) for path in prepared] == before, "they are not made anew in vain"
    anew = Recording()
    run_named(resolved(given, tmp_path / "whole", LR="2e-3"), anew, fresh=True)
    assert [report.step for report in anew.reports] == [1, 2, 3, 4, 5, 6]


def test_what_a_run_begins_from(given: dict[str, str], tmp_path: Path) -> None:
    text = {"stage": "pretrain", "TRAIN_ITERS": "3"}
    first = resolved(given, tmp_path / "first", **text)  # type: ignore[arg-type]
    model = run_named(first, Recording())
    checkpoints = str(first.run.paths.checkpoints)

    drawn = Recording()
    random = run_named(resolved(given, tmp_path / "random", CKPT_LOAD_TYPE="0", **text), drawn)  # type: ignore[arg-type]
    assert not same(random, model)
    assert not any("is read" in note for note in drawn.notes)
    retrain = {"RUN_TYPE": "retrain", **text, "TRAIN_ITERS": "4"}  # of weights that were drawn once
    run_named(resolved(given, tmp_path / "random", **retrain), longer := Recording())  # type: ignore[arg-type]
    assert [report.step for report in longer.reports] == [4]

    on = Recording()  # weights, optimizer and position of another run, here already at its end
    other = {"CKPT_LOAD_TYPE": "2", "USER_CONVERTED_CKPT_PATH": checkpoints}
    assert same(run_named(resolved(given, tmp_path / "second", **other, **text), on), model)  # type: ignore[arg-type]
    assert on.reports == []

    for kind in ("1", "2"):  # the documents' way to let a run go on
        itself = {"USER_CONVERTED_CKPT_PATH": checkpoints, "MA_TRAIN_AUTO_RESUME": "1", "CKPT_LOAD_TYPE": kind}
        named = resolved(given, tmp_path / "first", **itself, **text)  # type: ignore[arg-type]
        run_named(named, again := Recording())
        assert again.reused == ["prepare data", "pretrain"]
        assert not any("is taken only if" in note for note in named.notes)

    adrift: list[dict[str, str]] = [itself, {"RUN_TYPE": "retrain"}]
    adrift += [{name: str(model)} for name in ("USER_CONVERTED_CKPT_PATH", "ORIGINAL_HF_WEIGHT", "TOKENIZER_PATH")]
    for variables in adrift:  # what the run needs is not thrown away
        with pytest.raises(UsageError, match="--fresh throws"):
            run_named(resolved(given, tmp_path / "first", **variables, **text), Recording(), fresh=True)  # type: ignore[arg-type]
    assert (model / "config.json").exists()

    weights = {"USER_CONVERTED_CKPT_PATH": str(model)}
    progress = Recording()
    run_named(resolved(given, tmp_path / "third", **weights, **text), progress)  # type: ignore[arg-type]
    assert f"weights: {model} is read as it is; no conversion is needed" in progress.notes
    assert progress.reports[0].loss < losses(first)[0]
    with pytest.raises(CheckpointError, match="was trained from other inputs: model was"):
        run_named(resolved(given, tmp_path / "third", **text), Recording())  # type: ignore[arg-type]

    wrong: dict[str, dict[str, str]] = {
        "holds no checkpoint to go on from": {"CKPT_LOAD_TYPE": "2"},
        "is no model folder and holds no checkpoint": {"USER_CONVERTED_CKPT_PATH": str(tmp_path)},
        "is one checkpoint, and a run goes on from the latest": other
        | {"USER_CONVERTED_CKPT_PATH": f"{checkpoints}/iter_0000003"},
        r"other inputs: stage\.lr was .*; take its weights alone": other | {"LR": "2e-3"},
        r"other inputs: stage\.steps was 3, now 2; take its weights alone": other | {"TRAIN_ITERS": "2"},
        "holds a whole model and no adapters": {"USER_CONVERTED_CKPT_PATH": checkpoints, "stage": "lora"},
    }
    for number, (message, variables) in enumerate(wrong.items()):
        root = tmp_path / f"wrong-{number}"
        with pytest.raises(CheckpointError, match=message):
            run_named(resolved(given, root, **(text | variables)), Recording())  # type: ignore[arg-type]
        assert not list(root.rglob("*.bin")), "it is refused before data is prepared"


def test_texts_of_a_sample_are_blind_to_each_other_unless_told(given: dict[str, str], tmp_path: Path) -> None:
    apart, joined = Recording(), Recording()
    short = {"stage": "pretrain", "TRAIN_ITERS": "1"}
    run_named(resolved(given, tmp_path / "apart", **short), apart)  # type: ignore[arg-type]
    run_named(resolved(given, tmp_path / "joined", "data.documents_apart=false", **short), joined)  # type: ignore[arg-type]
    assert joined.reports[0].tokens == 4 * 128
    assert apart.reports[0].tokens < joined.reports[0].tokens  # the first of a document is no target


@pytest.mark.parametrize(
    ("name", "variables", "device", "message"),
    [
        (MODEL, {"SEQ_LEN": "4096"}, "auto", "takes 1024 tokens, a sample has 4096; lower SEQ_LEN, or raise MAX_PE"),
        ("llama3.2-1b", {}, "auto", "holds a qwen2 model, llama3.2-1b is a llama; give its own"),
        (MODEL, {}, "npu", "--device npu: this machine has none"),
        (
            MODEL,
            {"CKPT_LOAD_TYPE": "2"},
            "auto",
            "holds no checkpoint to go on from; set CKPT_LOAD_TYPE=1",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_data_is_prepared(
    given: dict[str, str], tmp_path: Path, name: str, variables: dict[str, str], device: DeviceName, message: str
) -> None:
    run = resolve(name, "sft", environment=given | variables, options={}, root=tmp_path)
    with pytest.raises(TandemError, match=message):
        run_named(run, Recording(), device=device)
    assert not (tmp_path / "processed_for_input").exists()


def test_weights_alone_come_from_a_checkpoint(given: dict[str, str], tmp_path: Path) -> None:
    text = {"stage": "pretrain", "TRAIN_ITERS": "3"}
    first = resolved(given, tmp_path / "first", **text)  # type: ignore[arg-type]
    run_named(first, Recording())
    newest = first.run.paths.checkpoints / "iter_0000003"
    stored = load_file(newest / "rank_00000.safetensors")
    variables = {**text, "USER_CONVERTED_CKPT_PATH": str(first.run.paths.checkpoints)}
    begun = filled(resolved(given, tmp_path / "one", **variables))  # type: ignore[arg-type]
    assert all(torch.equal(one, stored[f"model.{name}"]) for name, one in begun.named_parameters())

    progress = Recording()
    variables["USER_CONVERTED_CKPT_PATH"] = str(newest)
    run_named(resolved(given, tmp_path / "second", **variables), progress)  # type: ignore[arg-type]
    assert [report.step for report in progress.reports] == [1, 2, 3]
    assert progress.reports[0].loss < losses(first)[0] - 0.05
    assert f"weights: what was trained is taken from {newest}, with a fresh optimizer" in progress.notes

    variables["USER_CONVERTED_CKPT_PATH"] = str(first.run.paths.checkpoints)
    third = resolved(given, tmp_path / "third", **variables, CONVERT_MG2HF="FALSE")  # type: ignore[arg-type]
    run_named(third, Recording())
    pointer = first.run.paths.checkpoints / "latest_checkpointed_iteration.txt"
    run_named(resolved(given, tmp_path / "first", **text | {"TRAIN_ITERS": "4"}), Recording())  # type: ignore[arg-type]
    later, hidden = newest.with_name("iter_0000004"), newest.rename(tmp_path / "hidden")
    run_named(third, again := Recording())
    assert not again.reports, "the other run went on, and dropped what this one began from"
    assert any(note.startswith(f"{newest}: is there no more; the run began from it") for note in again.notes)
    apart = resolved(given, tmp_path / "apart", **text | {"TRAIN_ITERS": "1", "LR": "2e-3"}, CONVERT_MG2HF="FALSE")  # type: ignore[arg-type]
    run_named(apart, Recording())
    wrong = variables | {"USER_CONVERTED_CKPT_PATH": str(apart.run.paths.checkpoints), "CONVERT_MG2HF": "FALSE"}
    with pytest.raises(CheckpointError, match=r"other inputs: begins_from\.run was"):
        run_named(resolved(given, tmp_path / "third", **wrong), Recording())  # type: ignore[arg-type]
    gone = variables | {"USER_CONVERTED_CKPT_PATH": str(newest.with_name("iter_0000009")), "CONVERT_MG2HF": "FALSE"}
    with pytest.raises(CheckpointError, match="iter_0000009"):
        run_named(resolved(given, tmp_path / "third", **gone), Recording())  # type: ignore[arg-type]
    hidden.rename(newest)
    shutil.rmtree(later)
    pointer.write_text("3\n")

    variables["USER_CONVERTED_CKPT_PATH"] = str(newest)
    other = tmp_path / "other"
    named = find_model(MODEL)
    config = chosen_config(named.config, tiny=True, shape=None, full=False)
    write_random_folder(config, named.tokenizer, other, dtype="bfloat16", seed=1)
    with pytest.raises(CheckpointError, match=f"iter_0000003: began from other weights than those in {other}"):
        run_named(resolved(given, tmp_path / "refused", **{**variables, "ORIGINAL_HF_WEIGHT": str(other)}), Recording())  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="iter_0000003: holds a whole model and no adapters, which lora cannot"):
        run_named(resolved(given, tmp_path / "refused", **{**variables, "stage": "lora"}), Recording())  # type: ignore[arg-type]
    assert not list((tmp_path / "refused").rglob("*.bin")), "it is refused before data is prepared"
    part = newest / "rank_00000.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rank_00000\.safetensors: is damaged"):
        filled(resolved(given, tmp_path, **variables))  # type: ignore[arg-type]


def filled(run: Resolved) -> Decoder:
    """What the first step of a run begins from."""
    base = base_of(run.run, World())
    base.require_usable()
    decoder = base.decoder()
    materialise(LossModel(decoder), torch.device("cpu"), base.fill)
    return decoder


def test_data_that_was_prepared_before(
    given: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = run_named(resolved(given, tmp_path / "one"), Recording(), data_only=True)
    without = {name: text for name, text in given.items() if name != "ORIGINAL_TRAIN_DATA_PATH"}
    progress = Recording()
    run_named(resolved(without, tmp_path / "two", USER_PROCESSED_DATA_DIR=str(prepared)), progress)
    assert len(progress.reports) == 6
    assert progress.begun == ["sft"]
    with pytest.MonkeyPatch.context() as patch:
        for name, text in (without | {"USER_PROCESSED_DATA_DIR": str(prepared)}).items():
            patch.setenv(name, text)
        assert run_command(["train", "sft", MODEL, "--plan"]) == 0
    assert any(line.startswith("sft: ") and "; 6 steps of" in line for line in capsys.readouterr().out.splitlines())
    pair = str(prepared / "data_packed_input_ids_document")  # as Megatron's users name it
    for name in (pair, f"{pair}.idx", f"{pair}.bin"):
        run_named(resolved(without, tmp_path / "two", USER_PROCESSED_DATA_DIR=name), again := Recording())
        assert again.reused == ["sft"]
    with pytest.raises(TandemError, match="must hold one file"):
        run_named(
            resolved(without, tmp_path / "three", stage="pretrain", USER_PROCESSED_DATA_DIR=str(prepared)), Recording()
        )


def test_data_that_was_prepared_before_brings_its_wording_along(given: dict[str, str], tmp_path: Path) -> None:
    raw, tokenizer = Path(given["ORIGINAL_TRAIN_DATA_PATH"]), Path(given["ORIGINAL_HF_WEIGHT"])
    made = prepare(PrepareSpec(input=raw, tokenizer=tokenizer, prefix=tmp_path / "data", template="alpaca"), Silence())
    other = shutil.copytree(tokenizer, tmp_path / "tokenizer")
    fields = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(fields | {"clean_up_tokenization_spaces": True}))
    variables = {"USER_PROCESSED_DATA_DIR": str(tmp_path), "TOKENIZER_PATH": str(other), "TRAIN_ITERS": "1",
                 "SEQ_LEN": "256"}  # fmt: skip
    progress = Recording()
    exported = run_named(resolved(given, tmp_path, **variables), progress)  # type: ignore[arg-type]
    assert any(f"other tokenizer files than those in {other}: tokenizer_config" in note for note in progress.notes)
    written = json.loads((exported / "tokenizer_config.json").read_text())
    assert made.chat_template
    assert written["chat_template"] == made.chat_template


def test_lora_leaves_an_adapter_and_a_merged_model(given: dict[str, str], tmp_path: Path) -> None:
    run = resolved(given, tmp_path, stage="lora")
    merged = run_named(run, Recording())
    curve = losses(run)
    assert curve[-1] < curve[0]
    modes = {path.stat().st_mode for folder in (merged, run.run.adapter) for path in folder.iterdir()}
    assert len(modes) == 1, "who may serve the model may read the adapter"
    base = load(Path(given["ORIGINAL_HF_WEIGHT"]), torch.device("cpu"), torch.float32)
    load_adapter(base, run.run.adapter)
    merge(base)
    ours = load(merged, torch.device("cpu"), torch.float32)
    for name, parameter in base.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), parameter.bfloat16().float(), msg=name)

    newest = str(run.run.paths.checkpoints / "iter_0000006")
    on = resolved(given, tmp_path / "on", stage="lora", USER_CONVERTED_CKPT_PATH=newest, TRAIN_ITERS="1")
    run_named(on, Recording())
    assert losses(on)[0] < curve[0], "the adapter goes on from where it was"
    alone = resolved(given, tmp_path / "alone", USER_CONVERTED_CKPT_PATH=str(run.run.adapter))
    with pytest.raises(CheckpointError, match="this is an adapter: `tandem lora merge BASE ADAPTER OUT` makes"):
        run_named(alone, Recording())
    whole = resolved(given, tmp_path / "whole", USER_CONVERTED_CKPT_PATH=newest)
    with pytest.raises(CheckpointError, match="iter_0000006: holds adapters alone, which sft cannot begin from"):
        filled(whole)
    with pytest.raises(CheckpointError, match="belongs to a run with other inputs: for was lora, now sft"):
        run_named(resolved(given, tmp_path), Recording())


def test_lora_goes_on_with_an_adapter_in_pefts_format(given: dict[str, str], tmp_path: Path) -> None:
    sets = ("lora.rank=3", "lora.alpha=5", "lora.targets=[q_proj, mlp.up_proj]")
    first = resolved(given, tmp_path / "first", *sets, stage="lora", CONVERT_MG2HF="TRUE")
    run_named(first, Recording())
    adapter = shutil.copytree(first.run.adapter, tmp_path / "adapter")
    variables = {"USER_CONVERTED_CKPT_PATH": str(adapter), "TRAIN_ITERS": "2"}
    with pytest.raises(
        RecipeError, match=r"give --set lora\.rank=3 --set lora\.alpha=5 --set lora\.rslora=false"
    ) as refused:
        run_named(resolved(given, tmp_path / "on", stage="lora", **variables), Recording())
    assert not (tmp_path / "on" / "processed_for_input").exists(), "it is refused before data is prepared"
    said = [one.strip("' ") for one in str(refused.value).partition("give ")[2].split("--set ") if one]

    on = resolved(given, tmp_path / "on", *said, stage="lora", **variables)
    decoder, base = filled(on), load(Path(given["ORIGINAL_HF_WEIGHT"]), torch.device("cpu"), torch.float32)
    load_adapter(base, adapter)
    assert all(torch.equal(one, base.get_parameter(name)) for name, one in decoder.named_parameters())
    run_named(on, progress := Recording())
    assert f"adapter: {adapter} is gone on with, with a fresh optimizer" in progress.notes
    assert losses(on)[0] < losses(first)[0] - 0.05
    run_named(on, again := Recording())
    assert again.reused == ["prepare data", "lora"]
    with (adapter / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    with pytest.raises(CheckpointError, match=r"other inputs: begins_from\.adapter was"):
        run_named(on, Recording())


def test_hosts_that_share_folders_throw_nothing_away(given: dict[str, str], tmp_path: Path) -> None:
    two = resolved(given, tmp_path, MASTER_ADDR="10.0.0.1", NNODES="2")
    with pytest.raises(TandemError, match="2 hosts share it, and none of them may throw anything away"):
        run_named(two, Recording(), fresh=True)


@pytest.mark.full
def test_what_was_trained_is_served_apart_and_chats(given: dict[str, str], tmp_path: Path) -> None:
    longer = {"TRAIN_ITERS": "160", "SAVE_INTERVAL": "160", "LR": "5e-3", "MIN_LR": "5e-4"}
    exported = run_named(resolved(given, tmp_path, **longer), Recording())
    topology = local_topology(exported, prefill=1, decode=1, port=0, served_model_name="alpaca")
    with running(topology, tmp_path / "service", timeout=120):
        client = OpenAI(base_url=f"{topology.of(Role.GATEWAY)[0].url}/v1", api_key="none")
        for number in (3, 30):
            asked: Any = [{"role": "user", "content": f"What follows {number}?"}]
            answer = client.chat.completions.create(model="alpaca", messages=asked, temperature=0, max_tokens=32)
            assert (answer.choices[0].message.content or "").startswith("It is")
            assert answer.choices[0].finish_reason == "stop"


@pytest.mark.full
def test_two_hosts_that_share_a_folder(given: dict[str, str], tmp_path: Path) -> None:
    alone = resolved(given, tmp_path / "alone")
    run_named(alone, Recording())
    [port] = free_ports("127.0.0.2", 1)
    hosts = []
    for number in ("0", "1"):
        said = {"MASTER_ADDR": "127.0.0.2", "MASTER_PORT": str(port), "NNODES": "2", "NODE_RANK": number,
                "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
        command = [sys.executable, "-m", "tandem", "train", "sft", MODEL, "--set", FLOAT32, "--out", str(tmp_path)]
        hosts.append(subprocess.Popen(command, env={**os.environ, **given, **said}, stdout=subprocess.PIPE, text=True))
    said = [host.communicate(timeout=200)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    two = resolved(given, tmp_path)
    assert losses(two) == pytest.approx(losses(alone), rel=1e-5)
    assert said[0].strip() == str(two.run.exported)
    assert (two.run.exported / "model.safetensors").exists()
    assert (two.run.paths.logs / "run_log-2-0.txt").exists()


@pytest.mark.full
@pytest.mark.parametrize(("stage", "precision", "relative"), [("sft", "float32", 1e-5), ("lora", "bfloat16", 1e-2)])
def test_two_ranks_of_one_host(
    stage: StageName, precision: str, relative: float, given: dict[str, str], tmp_path: Path
) -> None:
    sets = (f"training.precision={precision}",)
    alone = resolved(given, tmp_path / "alone", *sets, stage=stage)
    run_named(alone, Recording())
    two = resolved(given, tmp_path / "two", *sets, "launch.ranks=2", stage=stage, TP="2")
    assert two.notes[0].startswith("TP 2: taken as a wish; the weights are sharded over all ranks by FSDP")
    exported = run_named(two, Recording())
    assert (exported / "model.safetensors").exists()
    assert losses(two) == pytest.approx(losses(alone), rel=relative)
    assert (two.run.paths.process_logs / "run_log-1-1.txt").exists()


def test_a_plan_says_where_values_come_from(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LR", "3e-5")
    (tmp_path / "mine.yaml").write_text("model: qwen2-0.5b\ntraining: {clip: 0.5}\n")
    words = ["sft", str(tmp_path / "mine.yaml"), "--data", "d", "--weights", given["ORIGINAL_HF_WEIGHT"],
             "--set", "seed=7", "--set", "training.seq_length=64"]  # fmt: skip
    assert run_command(["train", *words, "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "note: d: is not there; raw data (ORIGINAL_TRAIN_DATA_PATH, --data)" in lines
    shown = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert shown["memory"][:3] == ["of", "each", "rank,"]
    assert shown["training.lr"] == ["3e-05", "LR"]
    assert shown["training.clip"] == ["0.5", str(tmp_path / "mine.yaml")]
    assert shown["seed"] == ["7", "--set"]
    assert shown["paths.data"] == ["d", "--data"]
    assert run_command(["train", *words, "--json", "--no-resume"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["run"]["model"], plan["run"]["resume"]["auto"]) == (MODEL, False)
    assert plan["origins"]["layout.pp"].startswith("catalogue: ")
    assert plan["memory"]["fits"]
    assert 0 < plan["memory"]["weights"] < plan["memory"]["total"] < plan["memory"]["capacity"]
    assert run_command(["train", "sft", "llama2-7b", *words[2:], "--plan"]) == 2
    said = capsys.readouterr()
    assert "holds a qwen2 model" in said.err
    assert not said.out, "what is refused is refused before anything is shown"
