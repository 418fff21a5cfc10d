"""A whole run in one folder, from texts to a model that can be served; what is there already is used again.

    <directory>/corpus/       corpus.parquet, instructions.jsonl, corpus.json
    <directory>/tokenizer/    tokenizer.json, tokenizer_config.json, special_tokens_map.json
    <directory>/tokens/       corpus_text_document.bin and .idx, instructions_packed_*_document.bin and .idx
    <directory>/pretrain/     see run.py; its `model` is the base model
    <directory>/sft/          see run.py; its `model` is the result

Each folder's `stage.json` holds the inputs it was made from. With other inputs, the first three are made again: that
takes seconds. The trained ones are never thrown away unasked; the run refuses and says what changed.

torch is imported only when there is something to train.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tandem.errors import CheckpointError
from tandem.text.trainer import train_tokenizer
from tandem.training.alone import alone_at
from tandem.training.data.corpus import Sources, gather, read_texts, write_corpus
from tandem.training.data.prepare import PrepareSpec, prepare
from tandem.training.data.rows.kinds import Kind
from tandem.training.inputs import Inputs, differences, digest, read_mark, write_mark
from tandem.training.progress import Progress, Silence
from tandem.training.settings.config import Recipe, StageConfig

if TYPE_CHECKING:
    from tandem.parallel.device import DeviceName

TEXTS, CONVERSATIONS = "corpus", "instructions"
"""How the files of tokens begin."""


def prepare_and_train(
    recipe: Recipe,
    directory: Path,
    progress: Progress,
    *,
    fresh: bool = False,
    resume: bool = True,
    device: DeviceName = "cpu",
) -> Path:
    """Run all stages that are not done yet; returns the folder of the fine-tuned model.

    Args:
        recipe: What to do.
        directory: Where the run lives; created where missing. One process at a time works in it.
        progress: Is told what happens.
        fresh: Make every stage anew.
        resume: Go on from checkpoints; else the fine-tuning stage begins anew.
        device: What to train on.

    Raises:
        CheckpointError: A trained stage was made from other inputs, or a checkpoint is damaged.
        DataError: A data file is broken, or there is too little data.
        DivergenceError: Training diverged.
        UsageError: Another process is at work in the directory.
    """
    with alone_at(directory / "run", progress, work="trains", wait=False):
        _clear(directory, fresh=fresh, stages=() if resume else ("sft",))
        run = _Run(recipe, directory, progress, device)
        run.prepare()
        run.pretrain()
        return run.sft()


def prepare_and_pretrain(
    recipe: Recipe,
    directory: Path,
    progress: Progress,
    *,
    fresh: bool = False,
    resume: bool = True,
    device: DeviceName = "cpu",
) -> Path:
    """As `prepare_and_train`, but stop before fine-tuning; returns the folder of the base model.

    Without `resume`, pretraining begins anew, and so will the fine-tuning that stood on it.
    """
    with alone_at(directory / "run", progress, work="trains", wait=False):
        _clear(directory, fresh=fresh, stages=() if resume else ("pretrain", "sft"))
        run = _Run(recipe, directory, progress, device)
        run.prepare()
        return run.pretrain()


class _Run:
    """One pass over the stages: what each makes is keyed by what it is made from."""

    def __init__(self, recipe: Recipe, directory: Path, progress: Progress, device: DeviceName) -> None:
        self._recipe = recipe
        self._corpus = directory / "corpus"
        self._tokenizer = directory / "tokenizer"
        self._tokens = directory / "tokens"
        self._pretrain = directory / "pretrain"
        self._sft = directory / "sft"
        self._progress = progress
        self._device = device

    def prepare(self) -> None:
        """What takes seconds: everything before training."""
        self.prepare_corpus()
        self.train_tokenizer()
        self.tokenise()

    def prepare_corpus(self) -> None:
        sources = gather(self._recipe.data.source)
        self._make(self._corpus, self._corpus_inputs(sources), lambda: write_corpus(sources, self._corpus))

    def train_tokenizer(self) -> None:
        size, longest = self._recipe.tokenizer.vocab_size, self._recipe.model.max_position
        inputs = {"corpus": self._key(self._corpus), "vocab_size": size, "max_length": longest}
        self._make(
            self._tokenizer,
            inputs,
            lambda: train_tokenizer(read_texts(self._corpus), size, self._tokenizer, longest),
        )

    def tokenise(self) -> None:
        inputs = {"corpus": self._key(self._corpus), "tokenizer": self._key(self._tokenizer)}
        self._make(self._tokens, inputs | {"longest": self._recipe.sft.seq_length}, self._write_tokens)

    def pretrain(self) -> Path:
        inputs = {"tokens": self._key(self._tokens)} | self._training_inputs(self._recipe.pretrain)

        def train() -> None:
            from tandem.training.run import Job, pretrain

            job = Job(recipe=self._recipe, folder=self._pretrain, tokenizer=self._tokenizer, inputs=inputs,
                      device=self._device)  # fmt: skip
            pretrain(job, self._tokens / TEXTS, self._progress)

        return self._train(self._pretrain, inputs, train)

    def sft(self) -> Path:
        inputs = {"base": self._key(self._pretrain)} | self._training_inputs(self._recipe.sft)

        def train() -> None:
            from tandem.training.run import Job, sft

            job = Job(recipe=self._recipe, folder=self._sft, tokenizer=self._tokenizer, inputs=inputs,
                      device=self._device)  # fmt: skip
            conversations, texts = self._tokens / CONVERSATIONS, self._tokens / TEXTS
            sft(job, self._pretrain / "model", conversations, texts, self._progress)

        return self._train(self._sft, inputs, train)

    def _make(self, folder: Path, inputs: Inputs, make: Callable[[], None]) -> None:
        """Make a cheap stage, unless it is there, made from these inputs."""
        if folder.exists() and read_mark(folder) == inputs:
            self._progress.reuse(folder.name)
            return
        self._progress.begin(folder.name, None)
        shutil.rmtree(folder, ignore_errors=True)
        make()
        write_mark(folder, inputs)
        self._progress.end(folder.name)

    def _train(self, folder: Path, inputs: Inputs, train: Callable[[], None]) -> Path:
        """Train a stage, or finish it, unless it is finished; refuse one made from other inputs."""
        made_from = read_mark(folder) if (folder / "model").exists() else None
        if made_from is not None and (different := differences(made_from, inputs)):
            raise CheckpointError(
                f"{folder}: was trained from other inputs: {different}; use another folder, or train anew with --fresh"
            )
        if made_from is not None:
            self._progress.reuse(folder.name)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            _let_threads_sleep()
            train()
            write_mark(folder, inputs)
            self._progress.end(folder.name)
        return folder / "model"

    def _write_tokens(self) -> None:
        self._prepare("corpus.parquet", TEXTS, "text")
        if (self._corpus / "instructions.jsonl").stat().st_size:  # files without docstrings can be pretrained on
            self._prepare("instructions.jsonl", CONVERSATIONS, "openai")

    def _prepare(self, name: str, prefix: str, kind: Kind) -> None:
        spec = PrepareSpec(input=self._corpus / name, tokenizer=self._tokenizer, prefix=self._tokens / prefix,
                           kind=kind, seq_length=self._recipe.sft.seq_length)  # fmt: skip
        prepared = prepare(spec, Silence())
        if prepared.skipped:
            self._progress.note(f"{prepared.skipped} of {prepared.rows} {prefix} are not trained on; reasons in "
                                f"{prepared.skipped_file}")  # fmt: skip

    def _corpus_inputs(self, sources: Sources) -> Inputs:
        return {"source": self._recipe.data.source, "digest": sources.digest}

    def _training_inputs(self, stage: StageConfig) -> Inputs:
        # How often to save, and how many to keep, changes no result. What to do about a spike is often decided only
        # when it is there; what was done is in guard.jsonl.
        settings = stage.model_dump(exclude={"save_every", "keep_last", "guard"})
        shape = self._recipe.model.model_dump()
        generation = self._recipe.generation.model_dump()
        return {"seed": self._recipe.seed, "model": shape, "stage": settings, "generation": generation}

    def _key(self, folder: Path) -> str:
        made_from = read_mark(folder)
        assert made_from is not None, f"{folder} is made before it is used"
        return digest(made_from)


def _let_threads_sleep() -> None:
    """Have torch's threads sleep while they wait for each other, unless the user has decided; before torch is imported.

    Spinning is a little faster on idle processors; beside another busy process it is several times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _clear(directory: Path, *, fresh: bool, stages: tuple[str, ...]) -> None:
    """Remove stages by name; whatever else is in the directory stays."""
    for name in ("corpus", "tokenizer", "tokens", "pretrain", "sft") if fresh else stages:
        shutil.rmtree(directory / name, ignore_errors=True)
