"""`Job`: one of the two stages that make a new model, as every rank of it reads it. No torch.

What it reads and writes lies in the run's directory, see `pipeline.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tandem.training.checkpoints.finished import Finished
from tandem.training.checkpoints.folder import CheckpointFolder
from tandem.training.inputs import Inputs, digest, read_mark
from tandem.training.settings.config import Recipe, Section, StageConfig

TEXTS, CONVERSATIONS = "corpus", "instructions"
"""How the files of tokens begin."""


class Job(Section):
    """What to do."""

    recipe: Recipe
    directory: Path
    stage: Literal["pretrain", "sft"]

    @property
    def config(self) -> StageConfig:
        """How the stage is trained."""
        return self.recipe.pretrain if self.stage == "pretrain" else self.recipe.sft

    @property
    def folder(self) -> Path:
        """The stage's own."""
        return self.directory / self.stage

    @property
    def model(self) -> Path:
        """Where the exported model goes, which fine-tuning begins from when it is pretraining's."""
        return self.folder / "model"

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer files."""
        return self.directory / "tokenizer"

    @property
    def data(self) -> tuple[Path, ...]:
        """Prefixes of the tokens that are learnt from."""
        texts, conversations = (self.directory / "tokens" / name for name in (TEXTS, CONVERSATIONS))
        if self.stage == "pretrain":
            return (texts,)
        return (conversations,) if self.recipe.sft.replay_every is None else (conversations, texts)

    @property
    def base(self) -> Job:
        """Pretraining, from whose model fine-tuning begins."""
        return Job(recipe=self.recipe, directory=self.directory, stage="pretrain")

    @property
    def stands_on(self) -> Path:
        """Folder of what it is made from."""
        return self.directory / "tokens" if self.stage == "pretrain" else self.base.folder

    def inputs(self, tokens: str | None = None) -> Inputs:
        """All that the result depends on; what it is made from must be there.

        Args:
            tokens: The key of pretraining's, where these may not be made yet.
        """
        # How often to save, and how many to keep, changes no result. What to do about a spike is often decided only
        # when it is there; what was done is in guard.jsonl.
        settings = self.config.model_dump(exclude={"save_every", "keep_last", "guard"})
        base = {"base": key(self.stands_on)} if self.stage == "sft" else {"tokens": tokens or key(self.stands_on)}
        return base | {
            "seed": self.recipe.seed,
            "model": self.recipe.model.model_dump(),
            "stage": settings,
            "generation": self.recipe.generation.model_dump(),
            "documents_apart": True,  # once they were not: what was trained so is not gone on from
        }


def finished(job: Job) -> Finished:
    """What a stage was before."""
    return Finished(
        place=job.folder,
        checkpoints=CheckpointFolder(job.folder / "checkpoints"),
        exported_from=read_mark(job.folder) if job.model.exists() else None,
        way_out="use another folder, "
        + ("fine-tune anew with --no-resume, " if job.stage == "sft" else "")
        + "or train anew with --fresh",
    )


def key(folder: Path) -> str:
    """Digest of what the content of a finished folder was made from."""
    made_from = read_mark(folder)
    assert made_from is not None, f"{folder} is made before it is used"
    return digest(made_from)
