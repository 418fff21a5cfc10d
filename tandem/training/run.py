"""The two stages of training, each from its inputs on disk to an exported model folder.

<folder>/checkpoints/        and more: see stage.py
<folder>/model/              the Hugging Face folder, written last
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from tandem.model.decoder import Decoder
from tandem.model.folder import load, save
from tandem.parallel.device import DeviceName, choose_device
from tandem.parallel.world import World
from tandem.text.tokenizer import Tokenizer, tokenizer_files
from tandem.text.trainer import BOS, END, EOS, PAD
from tandem.training.data.batch import Batches
from tandem.training.data.open import open_batches
from tandem.training.data.replay import ReplayBatches
from tandem.training.inputs import Inputs
from tandem.training.progress import Progress
from tandem.training.settings.config import Recipe, StageConfig
from tandem.training.stage import Stage, train


@dataclass(frozen=True, kw_only=True)
class Job:
    """What both stages need to know."""

    recipe: Recipe
    folder: Path
    """The stage's own."""
    tokenizer: Path
    """Folder of the tokenizer files."""
    inputs: Inputs
    """All that the result depends on; guards the checkpoints."""
    device: DeviceName = "cpu"


def pretrain(job: Job, tokens: Path, progress: Progress) -> Path:
    """Train a new model on the documents under the prefix `tokens`; returns the exported folder.

    Goes on from the latest checkpoint in the job's folder, if there is one.

    Raises:
        CheckpointError: That checkpoint is damaged or belongs to another run.
        DataError: The tokens are missing or too few.
        DivergenceError: Training diverged.
    """
    recipe = job.recipe
    vocab_size = Tokenizer.from_folder(job.tokenizer).vocab_size
    decoder = Decoder(recipe.model.with_vocabulary(vocab_size))
    decoder.initialise(recipe.seed)
    batches = open_batches(tokens, seq_length=recipe.pretrain.seq_length, seed=recipe.seed, pad=0)
    return _train_and_export(job, "pretrain", recipe.pretrain, decoder, batches, progress)


def sft(job: Job, base: Path, conversations: Path, texts: Path, progress: Progress) -> Path:
    """Fine-tune the model folder `base` on the tokens under the prefix `conversations`; returns the exported folder.

    Where the recipe asks for replay, documents under the prefix `texts` are mixed in.

    Goes on from the latest checkpoint in the job's folder, if there is one.

    Raises:
        CheckpointError: That checkpoint is damaged or belongs to another run.
        DataError: The tokens are missing or too few.
        ModelFolderError: `base` is no model folder.
        DivergenceError: Training diverged.
    """
    recipe = job.recipe
    decoder = load(base, torch.device("cpu"), torch.float32).unfreeze()
    tokenizer = Tokenizer.from_folder(job.tokenizer)
    length, seed, pad = recipe.sft.seq_length, recipe.seed, _ids(tokenizer, PAD)[0]
    batches: Batches = open_batches(conversations, seq_length=length, seed=seed, pad=pad)
    if recipe.sft.replay_every is not None:
        replayed = open_batches(texts, seq_length=length, seed=seed, pad=pad)
        batches = ReplayBatches(batches, replayed, recipe.sft.replay_every)
    return _train_and_export(job, "sft", recipe.sft, decoder, batches, progress)


def _train_and_export(
    job: Job, stage: str, config: StageConfig, decoder: Decoder, batches: Batches, progress: Progress
) -> Path:
    if job.recipe.threads is not None:
        torch.set_num_threads(job.recipe.threads)
    stage_ = Stage(name=stage, title=f"{job.recipe.name}: {stage}", config=config, folder=job.folder, inputs=job.inputs,
                   world=World(device=choose_device(job.device)))  # fmt: skip
    trained = train(stage_, decoder, batches, progress)
    assert trained is not None, "the only rank leads"
    return _export(job, trained)


def _export(job: Job, decoder: Decoder) -> Path:
    folder = job.folder / "model"
    # There already only if a run was killed between exporting and being marked as finished.
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = Tokenizer.from_folder(job.tokenizer)
    generation = job.recipe.generation.defaults(_ids(tokenizer, BOS)[0], tuple(_ids(tokenizer, EOS, END)))
    save(decoder, folder, generation, tokenizer_files(job.tokenizer))
    return folder


def _ids(tokenizer: Tokenizer, *tokens: str) -> list[int]:
    ids = [tokenizer.id_of(token) for token in tokens]
    assert None not in ids, f"our own tokenizer lacks one of {tokens}"
    return [number for number in ids if number is not None]
