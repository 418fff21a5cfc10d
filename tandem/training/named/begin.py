"""What a run begins from: published weights, random ones, or a checkpoint, its own or another run's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tandem.catalogue.config import ModelConfig
from tandem.errors import CheckpointError
from tandem.model.decoder import Decoder
from tandem.model.folder import fingerprint, load_own
from tandem.model.skeleton import bare
from tandem.parallel.world import World
from tandem.training.adapters.lora import apply_lora, fill_factors, initial_factors
from tandem.training.checkpoints.store import CheckpointStore
from tandem.training.compute.parallelize import trained
from tandem.training.named.weights import CHECKPOINT, config_of, not_megatron, weights_of
from tandem.training.settings.run import Run


@dataclass(frozen=True, kw_only=True)
class Base:
    """What a run's parameters are before its first step."""

    run: Run
    folder: Path
    """Of the model: its configuration, and its weights where they are not random."""
    config: ModelConfig
    checkpoint: Checkpoint | None
    """Another run's, whose weights are taken in place of the folder's or, of LoRA, beside them."""

    @property
    def model(self) -> str:
        """Which weights it stands on: a hash of the folder's, or the model's name where they are random."""
        return fingerprint(self.folder) if self.run.resume.load else self.run.model

    def decoder(self) -> Decoder:
        """On the meta device, adapters included; what is not trained is frozen."""
        decoder = bare(self.config)
        if self.run.lora is not None:
            apply_lora(decoder, self.run.lora, self.run.seed)
        return decoder

    def fill(self, decoder: Decoder, world: World) -> None:
        """Give a decoder its first values, or this rank's rows of them; all ranks call this together.

        Raises:
            CheckpointError: The checkpoint is damaged, or another model's.
            ModelFolderError: The folder cannot be used.
        """
        if self.run.resume.load == 0:
            decoder.initialise(self.run.seed)
        else:
            load_own(decoder, self.folder)
        fill_factors(decoder, initial_factors(decoder, self.run.seed))
        if self.checkpoint is not None and self.checkpoint.recorded is None:
            self._require_same_model(self.checkpoint)
            self.checkpoint.store(world).load_weights(trained(decoder), self.checkpoint.step)

    def _require_same_model(self, checkpoint: Checkpoint) -> None:
        made_from = checkpoint.store().inputs_of(checkpoint.step)
        if made_from["model"] not in (self.model, self.run.model):
            raise CheckpointError(
                f"{checkpoint.path}: began from other weights than those in {self.folder}; give the model folder that "
                "its run began from as ORIGINAL_HF_WEIGHT (--weights)"
            )
        if bool(made_from["lora"]) != bool(self.run.lora):
            raise CheckpointError(
                f"{checkpoint.path}: holds "
                + ("adapters alone" if made_from["lora"] else "a whole model and no adapters")
                + f", which {self.run.stage} cannot begin from; give its run's exported folder in its place"
            )


@dataclass(frozen=True)
class Checkpoint:
    """One of the checkpoints in a folder."""

    folder: Path
    step: int
    recorded: str | None = None
    """What the run's own checkpoints say they began from; with them, nothing more is taken from here."""

    @property
    def path(self) -> Path:
        """Its own folder."""
        return self.folder / f"iter_{self.step:07d}"

    @property
    def identity(self) -> str:
        """Its name and a hash of all that it holds, or as recorded where it is there no more.

        Raises:
            CheckpointError: As `CheckpointStore.digest`.
        """
        if self.recorded is not None and self.recorded.startswith(f"{self.path.name} ") and not self.path.exists():
            return self.recorded
        return f"{self.path.name} {self.store().digest(self.step)}"

    def store(self, world: World | None = None) -> CheckpointStore:
        """The store to read it from, by one rank or by all of a world together."""
        return CheckpointStore(self.folder, {}, keep_last=1, world=world)


def base_of(run: Run) -> Base:
    """What a run begins from; nothing is read but what says what it is. Errors as `config_of`."""
    return Base(run=run, folder=weights_of(run), config=config_of(run), checkpoint=_checkpoint(run))


def _checkpoint(run: Run) -> Checkpoint | None:
    """The checkpoint that weights alone are taken from; of several the latest, or the one that was when it began."""
    other = run.resume.checkpoint
    if other is None or run.resume.load != 1 or weights_of(run) == other:
        return None
    recorded = _recorded(run.paths.checkpoints)
    if one := CHECKPOINT.fullmatch(other.name):
        return Checkpoint(other.parent, int(one[1]), recorded)
    if recorded and (one := CHECKPOINT.match(recorded)):
        return Checkpoint(other, int(one[1]), recorded)
    step = _latest(other)
    assert step is not None, "weights_of has seen one"
    return Checkpoint(other, step)


def _recorded(own: Path) -> str | None:
    """What a run's latest checkpoint says it began from; None where it has none, or began from a model's folder."""
    store = CheckpointStore(own, {}, keep_last=1)
    step = store.latest()
    return None if step is None else store.inputs_of(step).get("begins_from")


def beginning(run: Run) -> Path | None:
    """The other run whose checkpoints this one goes on from while it has none of its own; None for no other.

    Raises:
        CheckpointError: There are checkpoints that the run may not go on from, or none where it must.
    """
    own, other = run.paths.checkpoints, run.resume.checkpoint
    step = _latest(own)
    if step is not None and run.resume.auto is False:
        raise CheckpointError(
            f"{own}: holds a checkpoint of step {step}, and the run may not go on from it; set train_auto_resume=true, "
            "or another CKPT_SAVE_PATH, or train anew with --fresh"
        )
    if step is not None or run.resume.load < 2:
        return None
    if other is None or _latest(not_megatron(other)) is None:
        raise CheckpointError(
            f"{other or own}: holds no checkpoint to go on from; set CKPT_LOAD_TYPE=1, or USER_CONVERTED_CKPT_PATH to "
            "the folder of one, with latest_checkpointed_iteration.txt"
        )
    return other


def _latest(folder: Path) -> int | None:
    return CheckpointStore(folder, {}, keep_last=1).latest()
