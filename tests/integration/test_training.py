"""Training from text to an exported model, stopped and damaged on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recording import Recording, StoppedError, StoppingAt
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tandem.deploy.port import free_ports
from tandem.errors import CheckpointError, DivergenceError, UsageError
from tandem.model.context import CausalContext
from tandem.model.folder import load
from tandem.training.checkpoints.store import CheckpointStore
from tandem.training.data.open import open_texts
from tandem.training.job import Job
from tandem.training.pipeline import prepare_and_pretrain, prepare_and_train
from tandem.training.preflight.recipe import check_recipe
from tandem.training.progress import StepReport
from tandem.training.settings.config import Launch, Recipe, build_recipe
from tandem.training.watch.metrics import read_metrics

STAGE = {"steps": 12, "seq_length": 96, "global_batch": 4, "micro_batch": 2, "lr": 0.01, "min_lr": 0.001,
         "warmup_steps": 2, "save_every": 4}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for number in range(12):
        (folder / f"module_{number}.py").write_text(
            f'"""Module number {number} adds and subtracts."""\n'
            + "".join(
                f'def add_{n}(first, second):\n    """Add {n} to the sum of both."""\n    return first + second + {n}\n'
                for n in range(20)
            )
        )
    return folder


def fields_for(source: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "threads": torch.get_num_threads(),
        "model": {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "feed_forward_size": 48,
                  "max_position": 128},
        "tokenizer": {"vocab_size": 300},
        "data": {"source": str(source)},
        "pretrain": STAGE,
        "sft": STAGE | {"steps": 6},
    }  # fmt: skip


@pytest.fixture(scope="module")
def recipe(source: Path) -> Recipe:
    return build_recipe(fields_for(source), "test")


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run that nothing disturbed; not to be changed."""
    directory = tmp_path_factory.mktemp("finished")
    model = prepare_and_train(recipe, directory, Recording())
    assert model == directory / "sft" / "model"
    return directory


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The same run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def losses(folder: Path) -> list[tuple[int, float, float]]:
    return [(report.step, report.loss, report.grad_norm) for report in read_metrics(folder / "metrics.jsonl")]


def unfinish(stage: Path, step: int | None = None) -> None:
    """Take a stage back to before its export, and to one of its checkpoints."""
    (stage / "stage.json").unlink()
    shutil.rmtree(stage / "model")
    if step is not None:
        (stage / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(f"{step}\n")


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_loss_goes_down(finished: Path) -> None:
    for stage in ("pretrain", "sft"):
        curve = [loss for _, loss, _ in losses(finished / stage)]
        assert sum(curve[-3:]) / 3 < sum(curve[:3]) / 3 - 0.3
        assert (finished / stage / "training_loss.png").exists()


def test_second_run_uses_everything_again(recipe: Recipe, copy: Path) -> None:
    saved = [copy / stage / "checkpoints" for stage in ("pretrain", "sft")]
    left = [shutil.copytree(next(one.glob("iter_*")), one / ".iter_0000002.old.part") for one in saved]
    progress = Recording()
    prepare_and_train(recipe, copy, progress)
    assert progress.reused == ["corpus", "tokenizer", "tokens", "pretrain", "sft"]
    assert progress.begun == []
    assert not any(one.exists() for one in left)


def test_two_runs_are_equal_bit_for_bit(recipe: Recipe, finished: Path, tmp_path: Path) -> None:
    prepare_and_pretrain(recipe, tmp_path / "again", Recording())
    ours, theirs = (folder / "pretrain" / "model" / "model.safetensors" for folder in (tmp_path / "again", finished))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(("stage", "stop", "resumed"), [("pretrain", 6, 4), ("pretrain", 8, 4), ("sft", 5, 4)])
def test_resumed_run_equals_an_uninterrupted_one(
    recipe: Recipe, finished: Path, copy: Path, stage: str, stop: int, resumed: int
) -> None:
    shutil.rmtree(copy / stage)
    with pytest.raises(StoppedError):
        prepare_and_train(recipe, copy, StoppingAt(stop))
    progress = Recording()
    prepare_and_train(recipe, copy, progress)
    assert progress.reports[0].step == resumed + 1
    assert losses(copy / stage) == losses(finished / stage)
    last = f"checkpoints/iter_{len(losses(finished / stage)):07d}/rank_00000.safetensors"
    ours, theirs = load_file(copy / stage / last), load_file(finished / stage / last)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_old_checkpoints_go(finished: Path) -> None:
    names = {path.name for path in (finished / "pretrain" / "checkpoints").iterdir()}
    assert names == {"iter_0000008", "iter_0000012", "latest_checkpointed_iteration.txt"}
    state = json.loads((finished / "pretrain" / "checkpoints" / "iter_0000008" / "state.json").read_text())
    assert (state["step"], state["consumed_samples"]) == (8, 32)


def test_texts_are_kept_apart(finished: Path) -> None:
    prefix = finished / "tokens" / "corpus"
    joined, apart = (open_texts(prefix, seq_length=96, seed=0, apart=apart).at(0, 48) for apart in (False, True))
    assert read_metrics(finished / "pretrain" / "metrics.jsonl")[-1].tokens == apart.valid() < joined.valid()


@pytest.mark.parametrize("name", ["rank_00000.safetensors", "state.json"])
def test_flipped_byte_is_found_and_the_way_out_works(recipe: Recipe, copy: Path, name: str) -> None:
    unfinish(copy / "pretrain")
    flip_byte(copy / "pretrain" / "checkpoints" / "iter_0000012" / name)
    with pytest.raises(CheckpointError, match=rf"iter_0000012/{name}: (is damaged|cannot be read)") as caught:
        prepare_and_pretrain(recipe, copy, Recording())
    if name != "state.json":
        assert "write 8 into" in str(caught.value)
    (copy / "pretrain" / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("8\n")
    prepare_and_pretrain(recipe, copy, Recording())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "latest_checkpointed_iteration.txt").write_text("release\n"), "holds 'release'"),
        (lambda folder: shutil.rmtree(folder / "iter_0000012"), "is missing, though"),
        (lambda folder: (folder / "iter_0000012" / "rank_00000.safetensors").unlink(), r"safetensors: is damaged"),
    ],
)
def test_incomplete_checkpoints_are_refused(
    recipe: Recipe, copy: Path, damage: Callable[[Path], None], message: str
) -> None:
    unfinish(copy / "pretrain")
    damage(copy / "pretrain" / "checkpoints")
    with pytest.raises(CheckpointError, match=message):
        prepare_and_pretrain(recipe, copy, Recording())


def test_another_recipe_is_refused_by_field_and_fresh_trains_it(source: Path, copy: Path) -> None:
    fields = fields_for(source)
    fields["pretrain"] = STAGE | {"lr": 0.02}
    changed = build_recipe(fields, "test")
    with pytest.raises(CheckpointError, match=r"stage\.lr was 0\.01, now 0\.02; .*--fresh"):
        prepare_and_train(changed, copy, Recording())
    unfinish(copy / "pretrain")
    with pytest.raises(CheckpointError, match=r"stage\.lr was 0\.01, now 0\.02"):
        prepare_and_train(changed, copy, Recording())
    progress = Recording()
    prepare_and_train(changed, copy, progress, fresh=True)
    assert progress.reused == []


def test_without_resume_a_stage_begins_anew(recipe: Recipe, finished: Path, copy: Path) -> None:
    progress = Recording()
    prepare_and_train(recipe, copy, progress, resume=False)
    assert progress.reused == ["corpus", "tokenizer", "tokens", "pretrain"]
    assert losses(copy / "sft") == losses(finished / "sft")


def test_what_is_trained_is_refused_before_its_tokens_are_made_anew(source: Path, copy: Path) -> None:
    fields = fields_for(source)
    fields["sft"] = STAGE | {"steps": 6, "seq_length": 64}
    progress = Recording()
    with pytest.raises(CheckpointError, match="pretrain: was trained from other inputs: tokens was"):
        prepare_and_train(build_recipe(fields, "test"), copy, progress)
    assert progress.begun == []


def test_a_finished_stage_is_made_longer_and_exported_again(source: Path, copy: Path) -> None:
    fields = fields_for(source)
    fields["sft"] = STAGE | {"steps": 8}
    before = (copy / "sft" / "model" / "model.safetensors").read_bytes()
    progress = Recording()
    prepare_and_train(build_recipe(fields, "test"), copy, progress)
    assert progress.reused == ["corpus", "tokenizer", "tokens", "pretrain"]
    assert [report.step for report in progress.reports] == [7, 8]
    assert (copy / "sft" / "model" / "model.safetensors").read_bytes() != before
    mark = json.loads((copy / "sft" / "stage.json").read_text())
    assert (mark["stage"]["steps"], mark["lengthened"]) == (8, [{"after": 6, "before": 6, "steps": 8}])
    prepare_and_train(build_recipe(fields, "test"), copy, again := Recording())
    assert again.reused[-1] == "sft"
    with pytest.raises(CheckpointError, match=r"stage\.steps was 8, now 6"):
        prepare_and_train(build_recipe(fields_for(source), "test"), copy, Recording())
    shutil.rmtree(copy / "sft" / "checkpoints")
    fields["sft"] = STAGE | {"steps": 9}
    with pytest.raises(CheckpointError, match=r"checkpoints: holds no checkpoint, and .* is made longer than 8 steps"):
        prepare_and_train(build_recipe(fields, "test"), copy, Recording())


def test_a_base_model_is_not_made_longer_under_what_was_fine_tuned_from_it(source: Path, copy: Path) -> None:
    fields = fields_for(source)
    fields["pretrain"] = STAGE | {"steps": STAGE["steps"] + 4}
    longer = build_recipe(fields, "test")
    progress = Recording()
    with pytest.raises(CheckpointError, match=r"sft: was fine-tuned from .* as it is, .* --no-resume"):
        prepare_and_train(longer, copy, progress)
    assert progress.begun == []
    assert "--no-resume" in where_it_begins(longer, copy, resume=True)["problem"]
    assert where_it_begins(longer, copy, resume=False)["good"].startswith(f"{copy}/sft: begins anew")
    same = build_recipe(fields_for(source), "test")
    assert where_it_begins(same, copy, resume=True).keys() == {"note"}
    shutil.rmtree(copy / "tokens")  # what they would be is known
    assert where_it_begins(same, copy, resume=True)["note"].endswith(
        "is there, from the same inputs; the stage would train nothing"
    )
    assert "--no-resume" in where_it_begins(longer, copy, resume=True)["problem"]
    assert "made longer after step 12: 16 steps" in where_it_begins(longer, copy, resume=False)["note"]
    shutil.rmtree(copy / "pretrain")
    assert "comes out as it was" in where_it_begins(same, copy, resume=True)["note"]
    assert "sft: was trained from other inputs: base was" in where_it_begins(longer, copy, resume=True)["problem"]
    with pytest.raises(CheckpointError, match=r"sft: was trained from other inputs: base was .* --no-resume"):
        prepare_and_train(longer, copy, progress)
    assert progress.begun == ["tokens"], "and no base model that it would be refused for in the end"


def where_it_begins(recipe: Recipe, folder: Path, *, resume: bool) -> dict[str, str]:
    """What `--check` says of the stages, the last of each verdict."""
    job = Job(recipe=recipe, directory=folder, stage="sft")
    found = check_recipe(job, "cpu", {}, fresh=False, resume=resume)
    return {one.remark.verdict: one.remark.text for one in found if one.subject == "checkpoints"}


def test_changed_saving_is_no_other_run(recipe: Recipe, copy: Path) -> None:
    stage = recipe.pretrain.model_copy(update={"save_every": 3, "keep_last": 1})
    progress = Recording()
    prepare_and_pretrain(recipe.model_copy(update={"pretrain": stage}), copy, progress)
    assert "pretrain" in progress.reused


def test_divergence_is_an_error_and_harms_no_checkpoint(source: Path, copy: Path) -> None:
    fields = fields_for(source)
    fields["pretrain"] = STAGE | {"lr": 1e30, "min_lr": 1e29, "warmup_steps": 0, "save_every": 1}
    checkpoints = copy / "other" / "pretrain" / "checkpoints"
    for _ in range(2):  # the second time it goes on from the checkpoint, which must be whole
        with pytest.raises(DivergenceError, match=r"step 2: .*diverged at samples 4 to 7; lower the learning rate or "):
            prepare_and_pretrain(build_recipe(fields, "test"), copy / "other", Recording())
        assert [path.name for path in checkpoints.glob("iter_*")] == ["iter_0000001"]


def test_an_abandoned_stretch_does_not_outlive_the_new_one(recipe: Recipe, copy: Path) -> None:
    checkpoints = copy / "pretrain" / "checkpoints"
    shutil.rmtree(copy / "pretrain" / "model")
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("8\n")
    with pytest.raises(StoppedError):
        prepare_and_pretrain(recipe, copy, StoppingAt(9))
    assert (checkpoints / "iter_0000012").is_dir()
    store = CheckpointStore(checkpoints, inputs={}, keep_last=1)
    store._prune(8)
    assert [path.name for path in checkpoints.glob("iter_*")] == ["iter_0000008"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_keeps_the_step_under_way(number: signal.Signals, source: Path, tmp_path: Path) -> None:
    class Signalling(Recording):
        def step(self, report: StepReport) -> None:
            super().step(report)
            if report.step == 6:
                signal.raise_signal(number)

    before, progress = signal.signal(number, signal.SIG_DFL), Signalling()  # it may be ignored, as behind `&`
    try:
        with pytest.raises(KeyboardInterrupt):
            prepare_and_pretrain(build_recipe(fields_for(source), "test"), tmp_path, progress)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert progress.notes[-1] == "stopped after step 6; the same command goes on from there"
    assert (tmp_path / "pretrain" / "checkpoints" / "iter_0000006").is_dir()
    again = Recording()
    prepare_and_pretrain(build_recipe(fields_for(source), "test"), tmp_path, again)
    assert [report.step for report in again.reports] == list(range(7, 13))


def test_one_process_at_a_time(recipe: Recipe, copy: Path) -> None:
    class Nested(Recording):
        def reuse(self, stage: str) -> None:
            with pytest.raises(UsageError, match=r"host-0: another process \(.*\) trains there; wait for it"):
                prepare_and_train(recipe, copy, Recording())
            super().reuse(stage)

    progress = Nested()
    prepare_and_train(recipe, copy, progress)
    assert len(progress.reused) == 5


def close(first: Path, second: Path) -> bool:
    """Whether two runs took the same steps and have the same model, but for rounding."""
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    assert [step for step, _, _ in losses(first)] == [step for step, _, _ in losses(second)]
    assert [loss for _, loss, _ in losses(first)] == pytest.approx([loss for _, loss, _ in losses(second)], rel=1e-6)
    one, other = (torch.cat([weights[name].flatten() for name in theirs]) for weights in (ours, theirs))
    return float((one - other).norm() / other.norm()) < 1e-6


def on_ranks(recipe: Recipe, number: int) -> Recipe:
    return recipe.model_copy(update={"launch": Launch(ranks=number)})


@pytest.mark.full
def test_any_number_of_ranks_makes_the_same_model_and_goes_on_from_any_other(
    recipe: Recipe, finished: Path, tmp_path: Path
) -> None:
    prepare_and_train(on_ranks(recipe, 2), tmp_path, Recording())
    for stage in ("pretrain", "sft"):
        assert close(tmp_path / stage, finished / stage)
        assert (tmp_path / stage / "plog" / "run_log-1-1.txt").exists()
    for ranks in (1, 3):
        unfinish(tmp_path / "pretrain", step=8)
        shutil.rmtree(tmp_path / "pretrain" / "checkpoints" / "iter_0000012")
        prepare_and_pretrain(on_ranks(recipe, ranks), tmp_path, Recording())
        assert close(tmp_path / "pretrain", finished / "pretrain")
        sessions = [report.session for report in read_metrics(tmp_path / "pretrain" / "metrics.jsonl")]
        assert sessions[:8] == [1] * 8
        assert sessions[8] > 1


@pytest.mark.full
@pytest.mark.timeout(600)
def test_hosts_that_share_a_folder_make_one_model(source: Path, finished: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    assert [out for out, _ in on_two_hosts(source, shared, shared)] == [f"{shared}/sft/model\n"] * 2
    for stage in ("pretrain", "sft"):
        assert close(shared / stage, finished / stage)
        assert (shared / stage / "run_log-2-0.txt").exists()
    on_two_hosts(source, shared, shared, steps=14)  # made longer, where one host alone would see that it is finished
    assert [step for step, *_ in losses(shared / "sft")] == list(range(1, 15))
    # The second host sees none of it, and takes the first one's word.
    on_two_hosts(source, shared, tmp_path / "elsewhere", steps=14)
    assert not (tmp_path / "elsewhere" / "sft" / "model").exists()


@pytest.mark.full
def test_a_host_that_does_not_see_the_folder_of_the_others_is_named_on_all(source: Path, tmp_path: Path) -> None:
    for _, error in on_two_hosts(source, tmp_path / "here", tmp_path / "there", code=1):
        said = f"tokens: is not on {os.uname().nodename} what it is on the first host; the hosts of a new model share"
        assert said in " ".join(error.split())


def on_two_hosts(source: Path, first: Path, second: Path, code: int = 0, steps: int = 6) -> list[tuple[str, str]]:
    """What the second and the first one say on standard output and on standard error."""
    fields = fields_for(source)
    recipe = source / f"{steps}.json"
    recipe.write_text(json.dumps(fields | {"sft": fields["sft"] | {"steps": steps}}))
    [port] = free_ports("127.0.0.2", 1)
    hosts = []
    for number, out in (("1", second), ("0", first)):
        told = {"MASTER_ADDR": "127.0.0.2", "MASTER_PORT": str(port), "NNODES": "2", "NODE_RANK": number,
                "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
        command = [sys.executable, "-m", "tandem", "train", "sft", str(recipe), "--out", str(out)]
        hosts.append(
            subprocess.Popen(command, env=os.environ | told, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    said = [host.communicate(timeout=200) for host in hosts]
    assert [host.returncode for host in hosts] == [code, code], said
    return said


def test_hosts_throw_nothing_away(recipe: Recipe, tmp_path: Path) -> None:
    several = recipe.model_copy(update={"launch": Launch(nodes=2, master_addr="10.0.0.1")})
    for how in ({"fresh": True}, {"resume": False}):
        with pytest.raises(UsageError, match="2 hosts share it, and none of them may throw anything away; remove what"):
            prepare_and_train(several, tmp_path, Recording(), **how)


def test_exported_model_computes_the_same_in_transformers(finished: Path) -> None:
    folder = finished / "sft" / "model"
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer.apply_chat_template(
        [{"role": "user", "content": "What does module_1.add_3 do?"}], add_generation_prompt=True, return_dict=False
    )])  # fmt: skip
    with torch.no_grad():
        ours = load(folder, torch.device("cpu"))(ids, CausalContext(1, ids.shape[1], ids.device))
        torch.testing.assert_close(ours, theirs(ids).logits, atol=1e-4, rtol=0)
    assert theirs.generation_config.eos_token_id == [1, 6]
    assert (theirs.generation_config.temperature, theirs.generation_config.top_k) == (0.7, 40)
