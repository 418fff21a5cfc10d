"""The two stages of training, each from its inputs on disk to an exported model folder.

<folder>/checkpoints/        see checkpoint.py
<folder>/metrics.jsonl       one line for each step
<folder>/loss.png            the same as a picture
<folder>/skipped.jsonl       fine-tuning only: rows not trained on, with reasons
<folder>/model/              the Hugging Face folder, written last
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tandem.model.decoder import Decoder
from tandem.model.folder import load, save
from tandem.parallel.device import DeviceName, choose_device
from tandem.text.tokenizer import Tokenizer, tokenizer_files
from tandem.text.trainer import BOS, END, EOS, PAD
from tandem.training.checkpoint import CheckpointStore
from tandem.training.config import Recipe, StageConfig
from tandem.training.data.batch import Batches
from tandem.training.data.batches import TokenBatches
from tandem.training.data.conversation_batches import ConversationBatches
from tandem.training.data.conversations import Example, encode_rows, read_conversations, write_skipped
from tandem.training.data.indexed import IndexedTokens
from tandem.training.data.replay import ReplayBatches
from tandem.training.inputs import Inputs
from tandem.training.loop import Trainer
from tandem.training.metrics import MetricsLog, read_metrics
from tandem.training.picture import draw_loss
from tandem.training.progress import Progress


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
    batches = TokenBatches(IndexedTokens(tokens).tokens, recipe.pretrain.seq_length, recipe.seed)
    return _train_and_export(job, "pretrain", recipe.pretrain, decoder, batches, progress)


def sft(job: Job, base: Path, conversations: Path, tokens: Path, progress: Progress) -> Path:
    """Fine-tune the model folder `base` on the rows of a JSON Lines file; returns the exported folder.

    Where the recipe asks for replay, documents under the prefix `tokens` are mixed in.

    Goes on from the latest checkpoint in the job's folder, if there is one. Rows that cannot be trained on are counted
    in a note and written to `skipped.jsonl`.

    Raises:
        CheckpointError: That checkpoint is damaged or belongs to another run.
        DataError: No row can be trained on.
        ModelFolderError: `base` is no model folder.
        DivergenceError: Training diverged.
    """
    recipe = job.recipe
    decoder = load(base, torch.device("cpu"), torch.float32).unfreeze()
    tokenizer = Tokenizer.from_folder(job.tokenizer)
    examples = _examples(job, tokenizer, conversations, progress)
    length, seed = recipe.sft.seq_length, recipe.seed
    batches: Batches = ConversationBatches(examples, length, _ids(tokenizer, PAD)[0], seed)
    if recipe.sft.replay_every is not None:
        texts = TokenBatches(IndexedTokens(tokens).tokens, length, seed)
        batches = ReplayBatches(batches, texts, recipe.sft.replay_every)
    return _train_and_export(job, "sft", recipe.sft, decoder, batches, progress)


def _train_and_export(
    job: Job, stage: str, config: StageConfig, decoder: Decoder, batches: Batches, progress: Progress
) -> Path:
    if job.recipe.threads is not None:
        torch.set_num_threads(job.recipe.threads)
    decoder.to(choose_device(job.device))
    store = CheckpointStore(job.folder / "checkpoints", job.inputs, config.keep_last)
    trainer = Trainer(decoder, batches, config, store)
    trainer.resume()
    progress.begin(stage, config.steps, done=trainer.state.step)
    metrics = job.folder / "metrics.jsonl"
    with MetricsLog(metrics, trainer.state.step) as log:
        trainer.run(log, progress)
    draw_loss(read_metrics(metrics), f"{job.recipe.name}: {stage}", job.folder / "loss.png")
    return _export(job, decoder)


def _export(job: Job, decoder: Decoder) -> Path:
    folder = job.folder / "model"
    # There already only if a run was killed between exporting and being marked as finished.
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = Tokenizer.from_folder(job.tokenizer)
    generation = job.recipe.generation.defaults(_ids(tokenizer, BOS)[0], tuple(_ids(tokenizer, EOS, END)))
    save(decoder, folder, generation, tokenizer_files(job.tokenizer))
    return folder


def _examples(job: Job, tokenizer: Tokenizer, conversations: Path, progress: Progress) -> Sequence[Example]:
    rows = read_conversations(conversations)
    examples, skipped = encode_rows(rows, tokenizer, job.recipe.sft.seq_length)
    write_skipped(path := job.folder / "skipped.jsonl", skipped)
    if skipped:
        progress.note(f"{len(skipped)} of {len(rows)} conversations are not trained on; reasons in {path}")
    return examples


def _ids(tokenizer: Tokenizer, *tokens: str) -> list[int]:
    ids = [tokenizer.id_of(token) for token in tokens]
    assert None not in ids, f"our own tokenizer lacks one of {tokens}"
    return [number for number in ids if number is not None]
