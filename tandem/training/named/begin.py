"""What a run begins from: published weights, random ones, an adapter, or a checkpoint, its own or another run's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tandem.catalogue.config import ModelConfig
from tandem.errors import CheckpointError
from tandem.model.decoder import Decoder
from tandem.model.folder import fingerprint, load_own
from tandem.model.skeleton import bare
from tandem.parallel.world import World
from tandem.training.adapters.lora import apply_lora, fill_factors, initial_factors
from tandem.training.adapters.peft_folder import fill_from
from tandem.training.checkpoints.folder import CheckpointFolder
from tandem.training.checkpoints.lengthening import but_for_length
from tandem.training.checkpoints.store import CheckpointStore
from tandem.training.compute.parallelize import trained
from tandem.training.inputs import Inputs, digest
from tandem.training.named.adapter import adapter_at, identity
from tandem.training.named.identity import made_before
from tandem.training.named.weights import CHECKPOINT, adapter_of, config_of, weights_of
from tandem.training.settings.run import Run


@dataclass(frozen=True, kw_only=True)
class Base:
    """What a run's parameters are before its first step."""

    run: Run
    world: World
    folder: Path
    """Of the model: its configuration, and its weights where they are not random."""
    config: ModelConfig
    checkpoint: Checkpoint | None
    """Another run's, whose weights are taken in place of the folder's or, of LoRA, beside them."""
    adapter: Path | None
    """Folder of one that is gone on with; None for a new one, or for no LoRA."""
    before: Inputs | None
    """What it was made from so far, where it is told to go on: it began as that says, whatever it is told now."""

    @property
    def is_random(self) -> bool:
        """Whether its first weights are drawn, and not read."""
        return self.run.resume.load == 0 or (self.before is not None and self.before.get("model") == self.run.model)

    @property
    def model(self) -> str:
        """Which weights it stands on: a hash of the folder's, or the model's name where they are random."""
        return self.run.model if self.is_random else fingerprint(self.folder)

    @property
    def begins_from(self) -> Inputs | None:
        """Which checkpoint of another run its weights are of, and which run that is; raises as that."""
        if self.before is not None:
            return self.before.get("begins_from")
        if self.adapter is not None:
            return {"adapter": identity(self.adapter)}
        return None if self.checkpoint is None else self.checkpoint.identity

    def remarks(self) -> Iterator[str]:
        """What the user should know, a line each."""
        if self.checkpoint is None:
            return
        if self.checkpoint.is_gone:
            yield (
                f"{self.checkpoint.path}: is there no more; the run began from it, and goes on from its own checkpoints"
            )
        elif self.checkpoint.recorded is None:
            yield f"weights: what was trained is taken from {self.checkpoint.path}, with a fresh optimizer"

    def decoder(self) -> Decoder:
        """On the meta device, adapters included; what is not trained is frozen."""
        decoder = bare(self.config)
        if self.run.lora is not None:
            apply_lora(decoder, self.run.lora, self.run.seed)
        return decoder

    def fill(self, decoder: Decoder) -> None:
        """Give a decoder its first values, or this rank's rows of them; all ranks call this together.

        Raises:
            CheckpointError: The checkpoint is damaged.
            ModelFolderError: The folder cannot be used, or the adapter's.
            RecipeError: The adapter is not as the run's settings have it.
        """
        if self.is_random:
            decoder.initialise(self.run.seed)
        else:
            load_own(decoder, self.folder)
        if self.adapter is not None:
            assert self.run.lora is not None, "adapter_of has seen it"
            fill_from(adapter_at(self.adapter, self.config, self.run.lora), decoder, self.adapter)
        else:
            fill_factors(decoder, initial_factors(decoder, self.run.seed))
        if self.checkpoint is not None and self.checkpoint.recorded is None:
            store = CheckpointStore(self.checkpoint.folder, {}, keep_last=1, world=self.world)
            store.load_weights(trained(decoder), self.checkpoint.step)

    def require_usable(self) -> None:
        """Refuse another run's checkpoint that this one cannot take weights from.

        Raises:
            CheckpointError: It is another model's or broken, or has adapters where the run has none, or the reverse.
        """
        checkpoint = self.checkpoint
        if checkpoint is None or checkpoint.recorded is not None:
            return
        made_from = checkpoint.there.inputs_of(checkpoint.step)
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
    recorded: Inputs | None = None
    """What the run's own checkpoints say they began from; with them, nothing more is taken from here."""

    @property
    def there(self) -> CheckpointFolder:
        """What its folder says of itself."""
        return CheckpointFolder(self.folder)

    @property
    def path(self) -> Path:
        """Its own folder."""
        return self.there.at(self.step)

    @property
    def is_gone(self) -> bool:
        """Whether it is there no more, and was the one that the run began from."""
        named = self.recorded is not None and str(self.recorded.get("checkpoint")).startswith(f"{self.path.name} ")
        return named and not self.path.exists()

    @property
    def identity(self) -> Inputs:
        """Its name with a hash of all that it holds, and a hash of what its run is made from.

        Of one that is gone they are what was recorded; but where its folder still holds others, these must be of the
        same run.

        Raises:
            CheckpointError: As `CheckpointFolder.fields`.
        """
        if not self.is_gone:
            name = f"{self.path.name} {self.there.digest(self.step)}"
            return {"checkpoint": name, "run": self._run_at(self.step)}
        assert self.recorded is not None, "what is gone was recorded"
        latest = self.there.latest()
        return self.recorded if latest is None else self.recorded | {"run": self._run_at(latest)}

    def _run_at(self, step: int) -> str:
        return digest(but_for_length(self.there.inputs_of(step)))


def base_of(run: Run, world: World) -> Base:
    """What a run begins from; nothing is read but what says what it is. All ranks call this together.

    Raises:
        CheckpointError: There is nothing at the other run's place, or it is damaged.
        ModelFolderError, RecipeError: As `config_of`.
    """
    folder = Path(world.decided(lambda: str(weights_of(run))))
    told = world.decided(lambda: _checkpoint(run))
    checkpoint = None if told is None else Checkpoint(Path(told[0]), told[1], told[2])
    adapter = world.decided(lambda: str(adapter_of(run) or ""))
    return Base(
        run=run, world=world, folder=folder, config=config_of(run, folder), checkpoint=checkpoint,
        adapter=Path(adapter) if adapter else None, before=world.decided(lambda: _before(run)),
    )  # fmt: skip


def _checkpoint(run: Run) -> tuple[str, int, Inputs | None] | None:
    """The checkpoint that weights alone are taken from; of several the latest, or the one that was when it began."""
    other = run.resume.checkpoint
    if other is None or run.resume.load != 1 or weights_of(run) == other or run.names_its_own or adapter_of(run):
        return None
    recorded = _recorded(run.paths.checkpoints)
    if one := CHECKPOINT.fullmatch(other.name):
        return str(other.parent), int(one[1]), recorded
    if recorded and (one := CHECKPOINT.match(recorded.get("checkpoint", ""))):
        return str(other), int(one[1]), recorded
    step = CheckpointFolder(other).latest()
    assert step is not None, "weights_of has seen one"
    return str(other), step, None


def _before(run: Run) -> Inputs | None:
    return made_before(run).made_from if run.resume.load == 2 or run.names_its_own else None


def _recorded(own: Path) -> Inputs | None:
    """What a run's latest checkpoint says it began from; None where it has none, or began from a model's folder."""
    folder = CheckpointFolder(own)
    step = folder.latest()
    return None if step is None else folder.inputs_of(step).get("begins_from")
