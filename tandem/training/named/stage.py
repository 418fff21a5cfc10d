"""One rank's part of a stage: weights and prepared data to steps, checkpoints and an exported model."""

from __future__ import annotations

from pathlib import Path

import torch

from tandem.catalogue.generation import read_generation_defaults
from tandem.parallel.device import DeviceName, choose_device
from tandem.parallel.place import Place
from tandem.parallel.world import joined
from tandem.training.data.batches import TokenBatches
from tandem.training.data.conversation_batches import ConversationBatches
from tandem.training.data.open import open_conversations, open_texts
from tandem.training.named.begin import base_of
from tandem.training.named.data import RunData
from tandem.training.named.export import export
from tandem.training.named.identity import finished, identity_of
from tandem.training.named.memory import memory_demand
from tandem.training.named.origin import origin_of
from tandem.training.progress import Progress, Silence
from tandem.training.settings.run import Run
from tandem.training.stage import Stage, train


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
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    with joined(place, choose_device(device)) as world:
        base = base_of(run, world)
        inputs = world.decided(lambda: identity_of(run, data.key, config, base.model, base.begins_from))
        if world.decided(lambda: finished(run).is_it(inputs)):
            told.reuse(run.stage)
            return
        told.note(length_in_words(run, batches.samples))
        demand = memory_demand(run, device)
        demand.require_possible()
        for remark in demand.remarks() if world.leads else ():
            told.note(remark)
        for remark in base.remarks():
            told.note(remark)
        run.paths.logs.mkdir(parents=True, exist_ok=True)
        decoder = base.decoder()
        origin = world.decided(lambda: str(origin_of(run) or ""))
        stage = Stage(
            name=run.stage, title=f"{run.model}: {run.stage}", config=config, folder=run.paths.logs, inputs=inputs,
            checkpoints=run.paths.checkpoints, begins_from=Path(origin) if origin else None, world=world,
            nodes=run.launch.nodes, process_logs=run.paths.process_logs, hosts_apart=run.hosts_apart,
            data=(data.prefix,),
        )  # fmt: skip
        made_from = train(stage, decoder, batches, told, base.fill)
        if run.export:
            export(base, decoder, made_from, data.chat_template, world)
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
