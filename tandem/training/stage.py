"""One stage of training on this rank, from a model and batches to checkpoints, metrics and a picture.

<folder>/checkpoints/        see checkpoints/store.py
<folder>/metrics.jsonl       one line for each step, written by rank 0; and what else watch/record.py names
<folder>/retaken.jsonl       lines of steps behind the checkpoint, until these were taken again
<folder>/guard.jsonl         one line for each step that was wild or no number, where there was one
<folder>/plog/               where ranks were that hung, and their stacks
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tandem.catalogue.config import MoE
from tandem.errors import RecipeError, UsageError
from tandem.model.decoder import Decoder
from tandem.parallel.device import is_out_of_memory
from tandem.parallel.world import World
from tandem.training.checkpoints.lengthening import LENGTHENED, but_for_length, in_words
from tandem.training.checkpoints.proof import TOLERANCE
from tandem.training.checkpoints.state import TrainState
from tandem.training.checkpoints.store import CheckpointStore
from tandem.training.compute.loads import PRETRAINING
from tandem.training.compute.loss import LossModel
from tandem.training.compute.parallelize import Fill, materialise, parallelize
from tandem.training.compute.recompute import apply_recompute
from tandem.training.data.batch import Batches
from tandem.training.guard.guard import Guard
from tandem.training.guard.hang import HangWatch, Unwatched
from tandem.training.guard.journal import GUARD, Journal
from tandem.training.inputs import Inputs, digest
from tandem.training.loop import Trainer
from tandem.training.progress import Progress, Silence
from tandem.training.settings.config import StageConfig
from tandem.training.watch.record import Record
from tandem.training.watch.retaken import Retaken


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage needs besides the model and the data."""

    name: str
    """pretrain, sft or lora."""
    title: str
    """Of the picture."""
    config: StageConfig
    folder: Path
    """The stage's own."""
    checkpoints: Path | None = None
    """Where checkpoints go; None for the folder's `checkpoints`."""
    begins_from: Path | None = None
    """Checkpoints of another run to go on from, while there are no own ones."""
    inputs: Inputs
    """All that the result depends on; guards the checkpoints."""
    world: World = field(default_factory=World)
    nodes: int = 1
    """Hosts of the run."""
    hosts_apart: bool = False
    """Whether each of them has a folder of checkpoints of its own."""
    data: tuple[Path, ...] = ()
    """Prefixes of the prepared data, for the report of the run."""
    process_logs: Path | None = None
    """Where ranks that hang say so; by default `plog` in the folder."""


def train(stage: Stage, decoder: Decoder, batches: Batches, progress: Progress, fill: Fill | None = None) -> Inputs:
    """Train a model in place, or go on from the latest checkpoint in the folder; returns what it was made from.

    That is the stage's inputs, and how it was made longer where it was.

    Args:
        stage: How, and where.
        decoder: The same on all ranks, adapters included; what is frozen is frozen already. Afterwards each rank holds
            its rows of it (`compute/gathering.py` brings them together).
        batches: The same on all ranks.
        progress: Is told by rank 0 alone.
        fill: Gives a decoder on the meta device its first values, once it is shared out; None for one that has them.

    Raises:
        CheckpointError: The latest checkpoint is damaged or belongs to another run, or one cannot be written; or a step
            that is taken again is not what was logged.
        DivergenceError: Training diverged.
        ProcessError: A rank is gone.
        RecipeError: Routers' biases shall move, and there are none, or only adapters are trained.
        KeyboardInterrupt: It was told to stop, and what was done is in a checkpoint.
        UsageError: There is not enough memory.
    """
    with _enough_memory():
        state = _train(stage, decoder, batches, progress, fill)
    return stage.inputs | ({LENGTHENED: [asdict(one) for one in state.lengthened]} if state.lengthened else {})


def _train(stage: Stage, decoder: Decoder, batches: Batches, progress: Progress, fill: Fill | None) -> TrainState:
    world, config = stage.world, _with_speed(stage, decoder)
    told = progress if world.leads else Silence()
    if fill is None:
        decoder.to(world.device)
    apply_recompute(decoder, config.recompute)
    model = LossModel(decoder)
    parallelize(model, world, config.precision)
    if fill is not None:
        materialise(model, world.device, fill)
    folder = stage.checkpoints or stage.folder / "checkpoints"
    store = CheckpointStore(folder, stage.inputs, config.keep_last, world, hosts_apart=stage.hosts_apart)
    journal = Journal.of(stage.folder / GUARD, digest(but_for_length(stage.inputs)), world, told.note)
    guard = Guard(config.guard, journal, told.note)
    trainer = Trainer(model, batches, config, store, world, guard)
    trainer.resume(_first(stage, store))
    told.begin(stage.name, config.steps, done=trainer.state.step)
    told.note(formula := trainer.meter.formula())
    for remark in _remarks(config, decoder):
        told.note(remark)
    if (longer := _made_longer(config, trainer.state)) is not None:
        told.note(longer)
    retaken = Retaken.of(stage.folder, trainer.state, world, TOLERANCE[config.precision], told.note)
    record = _record(stage, trainer.state.step, formula, told) if world.leads else nullcontext()
    with record as log, _watch(stage) as watch:
        trainer.run(log, told, watch, retaken)
    return trainer.state


def _with_speed(stage: Stage, decoder: Decoder) -> StageConfig:
    """Its settings with the speed of routers' biases, which only a pretraining moves unasked."""
    speed, there = stage.config.balance_bias, decoder.config.router_biases
    if speed is None:
        speed = PRETRAINING if there and stage.name == "pretrain" else 0.0
    if speed and not there:
        raise RecipeError(f"balance_bias {speed:g}: the model's routers have no biases; remove it")
    if speed and stage.name == "lora":
        raise RecipeError(
            f"balance_bias {speed:g}: adapters leave the routers' biases as they are, and PEFT's format has no place "
            "for them; remove it, or use the stage sft"
        )
    return stage.config.model_copy(update={"balance_bias": speed})


def _remarks(config: StageConfig, decoder: Decoder) -> Iterator[str]:
    """How a mixture's experts are kept evenly busy, which is not as its `config.json` may say."""
    part = decoder.config.feed_forward
    if not isinstance(part, MoE):
        return
    coefficient = part.balance if config.balance is None else config.balance
    if coefficient:
        yield (
            f"balance of experts: a loss with coefficient {coefficient:g} over each sequence by itself, also where the "
            "model was published with one over a whole micro-batch (seq_aux false)"
        )
    if config.balance_bias:
        yield f"balance of experts: the routers' biases move by {config.balance_bias:g} a step"


@contextmanager
def _enough_memory() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UsageError(
            f"not enough memory ({str(error).splitlines()[0]:.160}); lower the micro-batch, set recompute to full, use "
            "more devices, or train adapters; of a named model, --plan says what would fit"
        ) from None


def _made_longer(config: StageConfig, state: TrainState) -> str | None:
    """What it means that more steps are asked for than there were, where that is so now."""
    if not state.lengthened or state.lengthened[-1].after != state.step:
        return None
    return in_words(state.lengthened[-1], config)


def _record(stage: Stage, step: int, formula: str, told: Progress) -> Record:
    return Record(stage.folder, stage.title, step, formula, stage.nodes, stage.data, told.note)


def _watch(stage: Stage) -> HangWatch | Unwatched:
    world, floor = stage.world, stage.config.guard.hang_after
    if world.mesh is None or floor is None:
        return Unwatched()
    return HangWatch(stage.process_logs or stage.folder / "plog", world.rank, world.ranks, floor=floor)


def _first(stage: Stage, own: CheckpointStore) -> CheckpointStore:
    """The checkpoints to go on from."""
    if stage.begins_from is None or own.latest() is not None:
        return own
    return CheckpointStore(stage.begins_from, stage.inputs, stage.config.keep_last, stage.world)
