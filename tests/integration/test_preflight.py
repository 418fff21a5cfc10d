"""`tandem train ... --check`: a good run, and every kind of problem that files and places can have."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from recording import Recording
from s3_server import ABSENT, BUCKET, REASON, s3_server
from safetensors.torch import load_file, save_file
from tiny import TINY

from tandem.catalogue.models import find_model
from tandem.catalogue.shrink import chosen_config
from tandem.cli import run as run_command
from tandem.errors import RecipeError, UsageError
from tandem.model.random_folder import write_random_folder
from tandem.storage.bucket import Bucket
from tandem.storage.location import Location
from tandem.text.trainer import train_tokenizer
from tandem.training.alone import alone_at
from tandem.training.job import Job
from tandem.training.named.memory import memory_demand
from tandem.training.named.run import run_named
from tandem.training.preflight.finding import UNKNOWN
from tandem.training.preflight.named import check_named
from tandem.training.preflight.recipe import check_recipe
from tandem.training.settings.config import build_recipe
from tandem.training.settings.recipe import read_fields
from tandem.training.settings.resolve import Resolved, assignments, resolve
from tandem.training.settings.run import StageName
from tandem.training.staging.lease import Lease
from tandem.training.staging.staging import Staging

MODEL = "qwen2-0.5b"
SMALL = {"SEQ_LEN": "64", "GBS": "4", "MBS": "2", "TRAIN_ITERS": "2", "SAVE_INTERVAL": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "small"
    named = find_model(MODEL)
    config = chosen_config(named.config, tiny=True, shape=None, full=False)
    write_random_folder(config, named.tokenizer, folder, dtype="bfloat16", seed=0)
    return folder


@pytest.fixture
def given(model: Path, tmp_path: Path) -> dict[str, str]:
    """The variables of a good run, over copies that a test may spoil."""
    shutil.copytree(model, tmp_path / "small")
    rows = [{"instruction": f"What follows {n}?", "output": f"It is {n + 1}.", "text": f"{n}. " * 9} for n in range(60)]
    (tmp_path / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data, weights = tmp_path / "data.jsonl", tmp_path / "small"
    return {"ORIGINAL_TRAIN_DATA_PATH": str(data), "ORIGINAL_HF_WEIGHT": str(weights)} | SMALL


def settled(given: dict[str, str], *sets: str, stage: StageName = "sft", **variables: str) -> Resolved:
    root = Path(given["ORIGINAL_HF_WEIGHT"]).parent / "work"
    return resolve(MODEL, stage, environment=given | variables, options=assignments(sets), root=root)


def problems(given: dict[str, str], *sets: str, stage: StageName = "sft", **variables: str) -> list[tuple[str, str]]:
    found = check_named(settled(given, *sets, stage=stage, **variables), "cpu", variables, fresh=False)
    return [(finding.subject, finding.remark.text) for finding in found if finding.remark.verdict == "problem"]


def test_the_command_finds_nothing_wrong_with_a_good_run(
    given: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    work = tmp_path / "work"
    assert run_command(["train", "sft", MODEL, "--out", str(work), "--check", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "nothing was found that it would fail of"
    subjects = [line.split()[0] for line in lines[1:-1]]
    assert [*dict.fromkeys(subjects)] == [
        "data", "model", "checkpoints", "ranks", "memory", "folders", "machine",
    ]  # fmt: skip
    assert any("60 rows (alpaca)" in line for line in lines)
    assert not work.exists()


def test_what_the_system_refuses_is_one_problem_among_others(given: dict[str, str], tmp_path: Path) -> None:
    found = problems(given, ORIGINAL_TRAIN_DATA_PATH=f"/{'x' * 300}.jsonl", ORIGINAL_HF_WEIGHT="/dev/null")
    files = [text for subject, text in found if subject == "files"]
    assert "cannot be looked at (File name too long)" in files[0]
    assert files[1].startswith("/dev/null/config.json: is not there")
    (loop := tmp_path / "loop").symlink_to(loop)
    assert [subject for subject, _ in problems(given, OUTPUT_SAVE_DIR=str(loop))] == ["folders"]


def test_all_that_is_wrong_is_told_at_once(
    given: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    words = ["train", "sft", MODEL, "--data", str(tmp_path / "none.jsonl"), "--out", "/proc/work", "--device", "cpu"]
    (tmp_path / "small" / "tokenizer.json").write_text("{}")
    assert run_command([*words, "--check", "--json"]) == 3
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    bad = [finding for finding in told["findings"] if finding["verdict"] == "problem"]
    assert told["problems"] == len(bad) == 3
    assert [finding["subject"] for finding in bad] == ["files", "model", "folders"]
    assert bad[0]["text"] == f"{tmp_path}/none.jsonl: is not there; raw data (ORIGINAL_TRAIN_DATA_PATH, --data)"
    assert "tokenizer.json" in bad[1]["text"]
    assert "/proc cannot be written to" in bad[2]["text"]


@pytest.mark.parametrize("other", ["--plan", "--data-only"])
def test_one_thing_is_shown_at_a_time(
    other: str,
    given: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert run_command(["train", "sft", MODEL, "--out", str(tmp_path / "work"), "--check", other]) == 2
    assert f"give it without {other}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "data.jsonl: holds no row"),
        ('{"question": "?"}\n', "data.jsonl"),
        ('{"instruction": "Why?", "output": ""}\n', "none of 1 alpaca rows can be trained on. 1 times: "),
    ],
)
def test_data_that_cannot_be_trained_on(content: str, says: str, given: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(content)
    ((subject, text),) = [one for one in problems(given) if one[0] == "data"]
    assert (subject, says in text) == ("data", True), text


def test_too_few_texts_and_rows_that_are_skipped(given: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "short"}\n')
    assert "tokens make no sample of 64 + 1" in dict(problems(given, stage="pretrain"))["data"]
    (tmp_path / "data.jsonl").write_text('{"instruction": "Why?", "output": "So."}\nno json\n')
    found = list(check_named(settled(given), "cpu", {}, fresh=False))
    told = [one.remark for one in found if one.subject == "data"]
    assert [remark.verdict for remark in told] == ["good", "note"]
    assert "is no JSON" in told[1].text


def test_weights_that_are_not_whole(given: dict[str, str], tmp_path: Path) -> None:
    (file,) = (tmp_path / "small").glob("*.safetensors")
    tensors = load_file(file)
    name = next(one for one in tensors if one.endswith("q_proj.weight"))
    save_file({one: tensor for one, tensor in tensors.items() if one != name}, file)
    ((subject, text),) = problems(given)
    assert (subject, name in text, str(tmp_path / "small") in text) == ("model", True, True)
    save_file(tensors | {name: tensors[name][:-1].contiguous()}, file)
    assert [(subject, name in text) for subject, text in problems(given)] == [("model", True)]
    index = {"weight_map": dict.fromkeys(tensors, "gone.safetensors")}
    (tmp_path / "small" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert any("names gone.safetensors, which is not in this folder" in text for _, text in problems(given))


def test_what_one_problem_hides_is_said_to_be_hidden(given: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "small" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 32}))
    found = {one.subject: one.remark for one in check_named(settled(given), "cpu", {}, fresh=False)}
    assert found["model"].verdict == "problem"
    assert "takes 32 tokens, a sample has 64" in found["model"].text
    assert (found["memory"].verdict, found["memory"].text) == ("note", UNKNOWN)


def test_random_weights_need_no_file(given: dict[str, str], tmp_path: Path) -> None:
    (file,) = (tmp_path / "small").glob("*.safetensors")
    file.unlink()
    assert [subject for subject, _ in problems(given)] == ["model"]
    assert problems(given, stage="pretrain", CKPT_LOAD_TYPE="0") == []
    exported = run_named(settled(given, stage="pretrain", CKPT_LOAD_TYPE="0"), Recording())
    assert (exported / "model.safetensors").exists()


def test_adapters_that_the_model_has_no_place_for(given: dict[str, str]) -> None:
    sets = ("lora.rank=4096", "lora.targets=[q_proj]")
    ((subject, text),) = problems(given, *sets, stage="lora")
    assert (subject, text.startswith("lora.rank 4096: is above ")) == ("model", True), text
    resolved = settled(given, *sets, stage="lora")
    with pytest.raises(RecipeError, match=r"lora\.rank 4096"):
        run_named(resolved, Recording())
    assert not resolved.run.paths.processed.exists(), "before its data is prepared"


def test_a_tokenizer_of_another_model(given: dict[str, str], tmp_path: Path) -> None:
    texts = [f"{n} {n * n} {n**3:x} {n**5:o}" for n in range(4000)]
    train_tokenizer(texts, 2000, tmp_path / "other", TINY.max_position)
    ((subject, text),) = problems(given, TOKENIZER_PATH=str(tmp_path / "other"))
    assert (subject, str(tmp_path / "other") in text) == ("model", True)


def test_a_run_that_is_under_way_or_was_another(given: dict[str, str]) -> None:
    resolved = settled(given)
    place = resolved.run.paths.checkpoints / "host-0"
    with alone_at(place, Recording(), work="trains", wait=False):
        ((subject, text),) = problems(given)
    assert subject == "work"
    assert text.startswith(f"{place}: another process ({os.uname().nodename}, pid {os.getpid()}) trains there")
    other = {"CKPT_SAVE_PATH": f"{place.parent}_other"}
    with alone_at(resolved.run.paths.logs / "host-0", Recording(), work="trains", wait=False):
        assert [subject for subject, _ in problems(given, **other)] == ["work"]  # its logs would be the other run's
        with pytest.raises(UsageError, match=r"log/host-0: another process .* trains there"):
            run_named(settled(given, **other), Recording())
    run_named(resolved, Recording())
    assert problems(given, train_auto_resume="false") == []  # it is finished
    beside = {"CKPT_SAVE_PATH": f"{place.parent}_beside", "USER_CONVERTED_CKPT_PATH": str(place.parent)}
    told = problems(given, **beside, CKPT_LOAD_TYPE="2", LR="0.5", INPUT_PROCESSED_DIR=f"{place.parent}_data")
    assert [(subject, "lr was 2.5e-05, now 0.5" in text) for subject, text in told] == [("checkpoints", True)]
    checkpoint = resolved.run.paths.checkpoints / "iter_0000002" / "rank_00000.safetensors"
    # The shard has a table of names beside the numbers.
    assert checkpoint.stat().st_size == pytest.approx(memory_demand(resolved.run, "cpu").need.checkpoint, rel=0.05)
    ((subject, text),) = problems(given, LR="0.5")
    assert (subject, "lr was 2.5e-05, now 0.5" in text) == ("checkpoints", True)
    shutil.rmtree(resolved.run.exported)
    found = {one.subject: one.remark for one in check_named(settled(given), "cpu", {}, fresh=False)}
    assert found["checkpoints"].text.endswith("goes on from step 2")
    longer = check_named(settled(given, TRAIN_ITERS="3"), "cpu", {}, fresh=False)
    notes = [one.remark.text for one in longer if (one.subject, one.remark.verdict) == ("checkpoints", "note")]
    assert notes == [
        "made longer after step 2: 3 steps, not 2; the schedule (cosine) ends at step 3, so the learning rate of step "
        "3 is 2.5e-06"
    ]
    assert "lr was 2.5e-05, now 0.5" in dict(problems(given, LR="0.5"))["checkpoints"]
    assert "may not go on from it" in dict(problems(given, train_auto_resume="false"))["checkpoints"]


def test_a_new_model_in_a_folder_whose_name_is_no_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / os.fsdecode(b"\xff")
    assert run_command(["train", "pretrain", "quickstart", "--device", "cpu", "--out", str(out)]) == 2
    assert "\\udcff: the path is no UTF-8" in capsys.readouterr().err
    job = Job(recipe=build_recipe(read_fields("quickstart"), "quickstart"), directory=out, stage="pretrain")
    found = check_recipe(job, "cpu", {}, fresh=False, resume=True)
    assert ["the path is no UTF-8" in one.remark.text for one in found if one.subject == "work"] == [True]
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_for_a_new_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quickstart", "--out", str(tmp_path), "--check", "--device", "cpu"]
    assert run_command(["train", "sft", *words]) == 0
    assert "python-stdlib: " in capsys.readouterr().out
    with alone_at(tmp_path / "host-0", Recording(), work="trains", wait=False):
        assert run_command(["train", "pretrain", *words]) == 3
    assert "trains there; wait for it, or give another --out" in capsys.readouterr().out


@pytest.mark.skipif(ABSENT, reason=REASON)
def test_places_on_a_store(given: dict[str, str], tmp_path: Path) -> None:
    with s3_server() as server:
        variables = dict(server) | {"ORIGINAL_TRAIN_DATA_PATH": f"s3://{BUCKET}/data.jsonl",
                                   "OUTPUT_SAVE_DIR": f"s3://{BUCKET}/out",
                                   "TANDEM_STORE_CACHE": str(tmp_path / "cache")}  # fmt: skip
        ((subject, text),) = problems(given, **variables)
        assert subject == "store"
        assert text == f"s3://{BUCKET}/data.jsonl: holds nothing; check the key, or send the input there"
        location = Location("s3", BUCKET, "data.jsonl")
        Bucket.connect(location, server).upload(tmp_path / "data.jsonl", location.key, lambda size: None)
        found = list(check_named(settled(given, **variables), "cpu", variables, fresh=False))
        assert [one.subject for one in found if one.remark.verdict == "problem"] == []
        assert any("is fetched when the run begins" in one.remark.text for one in found)
        assert any(one.remark.text.startswith(f"{location}: 1 object, ") for one in found)
        assert list(Bucket.connect(location, server).list("")) == ["data.jsonl"], "what was written to try it is gone"
        begun = {"USER_CONVERTED_CKPT_PATH": f"s3://{BUCKET}/first", "CKPT_LOAD_TYPE": "1"}
        location = Location("s3", BUCKET, "first/latest_checkpointed_iteration.txt")
        Bucket.connect(location, server).write(location.key, b"3")
        for kind in ("1", "2"):
            settings = settled(given, **variables | begun | {"CKPT_LOAD_TYPE": kind})
            found = list(check_named(settings, "cpu", variables, fresh=False))
            assert [one.remark.text for one in found if one.remark.verdict == "problem"] == []
            assert any(one.remark.text.startswith(f"s3://{BUCKET}/first: is fetched when") for one in found)
            assert any(one.subject == "model" and one.remark.verdict == "good" for one in found)
        Bucket.connect(location, server).delete([location.key])
        write, refusing = Bucket.write, Bucket.connect(Location("s3", "nobody", ""), server)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Bucket, "write", lambda bucket, key, content: write(refusing, key, content))
            ((subject, text),) = problems(given, **variables)
        assert (subject, "/.probe-" in text) == ("store", True)
        place = settled(given, **variables).run.paths.checkpoints
        own = Location("s3", BUCKET, f"out/saved_models/{MODEL}")
        pointer = (own / "latest_checkpointed_iteration.txt").key
        Bucket.connect(own, server).write(pointer, b"3")  # by another machine
        found = list(check_named(settled(given, **variables, CKPT_LOAD_TYPE="2"), "cpu", variables, fresh=False))
        assert [one.remark.text for one in found if one.remark.verdict == "problem"] == []
        assert any(one.remark.text.startswith(f"{place}: gets the checkpoint of step 3") for one in found)
        Bucket.connect(own, server).delete([pointer])
        with Lease(Bucket.connect(own, server), own, tmp_path, print):
            found = list(check_named(settled(given, **variables), "cpu", variables, fresh=False))
            second = settled(given, **variables, NNODES="2", NODE_RANK="1", MASTER_ADDR="first").run
            with Staging(second, tmp_path / "data", server, said := Recording()).alone():
                pass
        assert any(one.remark.text.startswith(f"{place}: {os.uname().nodename}, pid ") for one in found)
        [note] = said.notes
        assert note.startswith(f"{own}: {os.uname().nodename}, pid {os.getpid()}, at 20")
        assert "has this place; unless that is this run's first host (first), it is another run" in note
        ((subject, text),) = problems(given, **variables | {"OUTPUT_SAVE_DIR": "s3://nobody/out"})
        assert (subject, "check the bucket's name" in text) == ("store", True)
        assert not (tmp_path / "cache").exists()
