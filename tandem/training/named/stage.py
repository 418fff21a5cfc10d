"""One rank's part of a stage: weights and prepared data to steps, checkpoints and an exported model."""

from __future__ import annotations

import torch

from tandem.catalogue.generation import read_generation_defaults
from tandem.errors import CheckpointError
from tandem.files import read_json_object
from tandem.parallel.device import DeviceName, choose_device
from tandem.parallel.place import Place
from tandem.parallel.world import joined
from tandem.training.data.batches import TokenBatches
from tandem.training.data.conversation_batches import ConversationBatches
from tandem.training.data.open import open_conversations, open_texts
from tandem.training.inputs import Inputs, differences
from tandem.training.named.begin import Base, base_of, beginning
from tandem.training.named.data import RunData
from tandem.training.named.export import export
from tandem.training.progress import Progress, Silence
from tandem.training.settings.config import StageConfig
from tandem.training.settings.run import Run
from tandem.training.stage import Stage, train

NO_RESULT = {"save_every", "keep_last", "guard", "micro_batch", "recompute"}
"""Settings of a step that do not change what it learns, or are decided while it is under way."""


def train_and_export(run: Run, data: RunData, progress: Progress, place: Place, device: DeviceName) -> None:
    """Train what is left, and export it.

    Args:
        run: What to do.
        data: What to learn from.
        progress: Is told by rank 0.
        place: This process among the ranks.
        device: What to train on.
    """
    batches = open_batches(run, data)
    config = run.stage_config(batches.samples)
    told = progress if place.rank == 0 else Silence()
    base = base_of(run)
    inputs = inputs_of(base, data, config)
    if is_done(run, inputs):
        told.reuse(run.stage)
        return
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    told.note(length_in_words(run, batches.samples))
    decoder = base.decoder()
    run.paths.logs.mkdir(parents=True, exist_ok=True)
    with joined(place, choose_device(device)) as world:
        stage = Stage(
            name=run.stage, title=f"{run.model}: {run.stage}", config=config, folder=run.paths.logs, inputs=inputs,
            checkpoints=run.paths.checkpoints, begins_from=beginning(run), process_logs=run.paths.process_logs,
            world=world, nodes=run.launch.nodes, hosts_apart=run.hosts_apart, data=(data.prefix,),
        )  # fmt: skip
        train(stage, decoder, batches, told, lambda decoder: base.fill(decoder, world))
        if run.export:
            export(base, decoder, inputs, data.chat_template, world)
        told.end(run.stage)


def length_in_words(run: Run, samples: int) -> str:
    """How long a run is over so many samples."""
    config = run.stage_config(samples)
    return (
        f"{run.stage}: {samples:,} samples of up to {config.seq_length:,} tokens; {config.steps:,} steps of "
        f"{config.global_batch:,} samples"
    )


def open_batches(run: Run, data: RunData) -> TokenBatches | ConversationBatches:
    """The samples of a run.

    Raises:
        DataError: There are no such files, they are damaged, or too little for one sample.
    """
    length = run.training.seq_length
    if run.reads == "pretrain":
        return open_texts(data.prefix, seq_length=length, seed=run.seed, apart=run.data.documents_apart)
    ends = read_generation_defaults(run.paths.weights).eos_token_ids
    pad = (ends or (0,))[0]  # behind a row's end: never looked at, never learnt
    return open_conversations(data.prefix, seq_length=length, seed=run.seed, pad=pad, pack=run.data.pack)


def inputs_of(base: Base, data: RunData, config: StageConfig) -> Inputs:
    """All that the result of a run depends on.

    Raises:
        CheckpointError: The checkpoint it begins from is missing or damaged.
        ModelFolderError: The weights cannot be read.
    """
    run = base.run
    begins = {} if base.checkpoint is None else {"begins_from": base.checkpoint.identity}
    return begins | {
        "for": run.stage,
        "model": base.model,
        "data": data.key,
        "seed": run.seed,
        "pack": run.data.pack,
        "documents_apart": run.data.documents_apart,
        "stage": config.model_dump(mode="json", exclude=NO_RESULT),
        "lora": None if run.lora is None else run.lora.model_dump(mode="json"),
    }


def is_done(run: Run, inputs: Inputs) -> bool:
    """Whether the exported model is there already.

    Raises:
        CheckpointError: It is, made from other inputs.
    """
    if not run.export or not run.exported.is_dir() or not run.mark.exists():
        return False
    if different := differences(read_json_object(run.mark, CheckpointError), inputs):
        raise CheckpointError(
            f"{run.exported}: was trained from other inputs: {different}; set another CKPT_SAVE_PATH, or train anew "
            "with --fresh"
        )
    return True
