"""All that a run which makes a new model could fail of later, looked at on this host; see `named.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path

from tandem.parallel.device import DeviceName
from tandem.training.alone import at_work, require_unshared
from tandem.training.data.corpus import Sources, gather
from tandem.training.inputs import read_mark
from tandem.training.job import Job, finished
from tandem.training.pipeline import require_base, require_tokens, require_utf8, tokens_key
from tandem.training.plan.demand import Demand, Need
from tandem.training.preflight.checkpoints import goes_on
from tandem.training.preflight.finding import Finding, Remark, findings, good, note, problem
from tandem.training.preflight.hosts import look_at_meeting, look_at_memory, look_at_ranks
from tandem.training.preflight.machine import look_at_machine
from tandem.training.preflight.space import held, look_at_folders
from tandem.training.settings.config import Recipe, StageConfig


def check_recipe(
    job: Job, device: DeviceName, environment: Mapping[str, str], *, fresh: bool, resume: bool
) -> Iterator[Finding]:
    """Look at everything, and tell all that is found.

    Args:
        job: What shall be made: this stage, and what it stands on.
        device: On what.
        environment: The process's variables.
        fresh: Whether all of an earlier run is to be thrown away.
        resume: Whether to go on from what there is of the stage; else that is thrown away.
    """
    recipe, out, launch = job.recipe, job.directory, job.recipe.launch
    sources = cache(partial(gather, recipe.data.source))
    stages = {"pretrain": recipe.pretrain} | ({} if job.stage == "pretrain" else {"sft": recipe.sft})
    return findings(
        {
            "data": lambda: _data(recipe, sources()),
            "work": lambda: _work(recipe, out, fresh=fresh or not resume),
            "checkpoints": lambda: _checkpoints(job, sources, fresh=fresh, resume=resume),
            "ranks": lambda: look_at_ranks(launch, device),
            "memory": lambda: look_at_memory(_most(recipe, stages, device), launch, device),
            "folders": lambda: look_at_folders(_wanted(recipe, stages, out, device)),
            "hosts": lambda: look_at_meeting(launch, device, environment),
            "machine": lambda: look_at_machine(launch, device, 1, ()),
        }
    )


def _data(recipe: Recipe, sources: Sources) -> Iterator[Remark]:
    yield good(f"{recipe.data.source}: {len(sources.files):,} Python files")


def _work(recipe: Recipe, out: Path, *, fresh: bool) -> Iterator[Remark]:
    place = out / f"host-{recipe.launch.node_rank}"
    require_utf8(out)
    if fresh:
        require_unshared(out, recipe.launch.nodes)
    if other := at_work(place):
        yield problem(f"{place}: {other} trains there; wait for it, or give another --out")


def _checkpoints(job: Job, sources: Callable[[], Sources], *, fresh: bool, resume: bool) -> Iterator[Remark]:
    """Where each stage begins."""
    tokens = tokens_key(job.recipe, sources())
    if not fresh:
        require_tokens(job, sources())
        if resume and job.stage == "sft":
            require_base(job, tokens)
    for one in (job,) if job.stage == "pretrain" else (job.base, job):
        anew = fresh or (one.stage == job.stage and not resume)
        if anew:
            yield good(f"{one.folder}: begins anew; what was made before is thrown away")
        else:
            yield from _begins(one, tokens)


def _begins(job: Job, tokens: str) -> Iterator[Remark]:
    before = finished(job)
    if before.made_from is None:
        yield good(f"{job.folder}: begins at step 0")
    elif job.stage == "sft" and read_mark(job.base.folder) is None:
        yield note(f"{job.folder}: goes on if {job.base.folder}, which is made first, comes out as it was")
    elif before.is_it(inputs := job.inputs(tokens)):
        yield note(f"{job.model}: is there, from the same inputs; the stage would train nothing")
    else:
        step = before.checkpoints.latest()
        assert step is not None, "what is not finished has a checkpoint, or was made from nothing"
        yield from goes_on(before.checkpoints.path, step, inputs, job.config)


def _need(recipe: Recipe, stage: StageConfig, device: DeviceName) -> Need:
    config = recipe.model.with_vocabulary(recipe.tokenizer.vocab_size)
    return Demand.of(config, stage, recipe.launch, device, packed=True).need


def _most(recipe: Recipe, stages: Mapping[str, StageConfig], device: DeviceName) -> Need:
    return max((_need(recipe, stage, device) for stage in stages.values()), key=lambda need: need.plan.total)


def _wanted(recipe: Recipe, stages: Mapping[str, StageConfig], out: Path, device: DeviceName) -> dict[Path, int]:
    """Checkpoints and the exported model of each stage; the model is as large as the weights in a checkpoint."""
    wanted = {}
    for name, stage in stages.items():
        size = _need(recipe, stage, device).checkpoint
        wanted[out / name] = max(0, (stage.keep_last + 1) * size + size // 3 - held(out / name, "*"))
    return wanted
