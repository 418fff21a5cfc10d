"""One rank's part in a stage that makes a new model, from its inputs on disk to an exported folder.

<directory>/<stage>/checkpoints/        and more: see stage.py
<directory>/<stage>/model/              the Hugging Face folder, written last but for `stage.json`
"""

from __future__ import annotations

import os
import shutil
from functools import partial

import torch

from tandem.catalogue.config import ModelConfig
from tandem.errors import UsageError
from tandem.model.decoder import Decoder
from tandem.model.families import translate
from tandem.model.folder import load_own
from tandem.model.skeleton import bare
from tandem.parallel.device import DeviceName, choose_device
from tandem.parallel.place import Place
from tandem.parallel.world import World, joined
from tandem.text.tokenizer import Tokenizer, tokenizer_files
from tandem.text.trainer import BOS, END, EOS, PAD
from tandem.training.compute.gathering import Gathering
from tandem.training.data.batch import Batches
from tandem.training.data.open import open_conversations, open_texts
from tandem.training.data.replay import ReplayBatches
from tandem.training.inputs import MARK, Inputs, digest, read_mark, write_mark
from tandem.training.job import Job, finished
from tandem.training.plan.demand import Demand
from tandem.training.progress import Progress, Silence
from tandem.training.stage import Stage, train


def train_and_export(job: Job, progress: Progress, place: Place, device: DeviceName) -> None:
    """Train what is left, and export it.

    Goes on from the latest checkpoint in the job's folder, if there is one.

    Args:
        job: What to do.
        progress: Is told by rank 0.
        place: This process among the ranks.
        device: What to train on.

    Raises:
        CheckpointError: That checkpoint is damaged or belongs to another run.
        DataError: The tokens are missing or too few.
        DivergenceError: Training diverged.
        ModelFolderError: There is no model to fine-tune.
        ProcessError: A rank is gone.
        UsageError: A host has other files at the run's place than the first.
    """
    if job.recipe.threads is not None:
        torch.set_num_threads(job.recipe.threads)
    told = progress if place.rank == 0 else Silence()
    with joined(place, choose_device(device)) as world:
        # Not before: the first host's ranks come when it has prepared everything.
        inputs = world.decided(job.inputs)
        if world.decided(lambda: finished(job).is_it(inputs)):
            told.reuse(job.stage)
            return
        _require_shared(job, inputs, world)
        stage = Stage(name=job.stage, title=f"{job.recipe.name}: {job.stage}", config=job.config, folder=job.folder,
                      inputs=inputs, world=world, nodes=job.recipe.launch.nodes, data=job.data)  # fmt: skip
        decoder = bare(_config(job))
        demand = Demand.of(decoder.config, job.config, job.recipe.launch, device, packed=True)
        demand.require_possible()
        for remark in demand.remarks() if world.leads else ():
            told.note(remark)
        made_from = train(stage, decoder, _batches(job), told, partial(_fill, job))
        _export(job, decoder, world)
        if world.leads:
            write_mark(job.folder, made_from)
        told.end(job.stage)


def _require_shared(job: Job, inputs: Inputs, world: World) -> None:
    """Refuse, on all ranks, a host that does not see what the first one has prepared."""
    sees = read_mark(job.stands_on) is not None and digest(job.inputs()) == digest(inputs)
    if blind := [host for host in world.words.gather("" if sees else os.uname().nodename) if host]:
        raise UsageError(
            f"{job.stands_on}: is not on {', '.join(dict.fromkeys(blind))} what it is on the first host; the hosts of "
            "a new model share the folder of their run"
        )


def _config(job: Job) -> ModelConfig:
    if job.stage == "sft":
        return translate(job.base.model)[1]
    return job.recipe.model.with_vocabulary(Tokenizer.from_folder(job.tokenizer).vocab_size)


def _fill(job: Job, decoder: Decoder) -> None:
    """Before the first step: a new model, or the pretrained one."""
    if job.stage == "sft":
        load_own(decoder, job.base.model)
    else:
        decoder.initialise(job.recipe.seed)


def _batches(job: Job) -> Batches:
    """Of conversations every so many-th sample is text, where the recipe asks for that; no text sees another."""
    texts = partial(open_texts, seq_length=job.config.seq_length, seed=job.recipe.seed, apart=True)
    if job.stage == "pretrain":
        return texts(job.data[0])
    pad = _ids(Tokenizer.from_folder(job.tokenizer), PAD)[0]
    conversations = open_conversations(job.data[0], seq_length=job.config.seq_length, seed=job.recipe.seed, pad=pad)
    every = job.recipe.sft.replay_every
    return ReplayBatches(conversations, texts(job.data[1]), every) if every else conversations


def _export(job: Job, decoder: Decoder, world: World) -> None:
    if world.leads:
        # There already only if a run was made longer, or killed between exporting and being marked as finished.
        (job.folder / MARK).unlink(missing_ok=True)
        shutil.rmtree(job.model, ignore_errors=True)
    tokenizer = Tokenizer.from_folder(job.tokenizer)
    generation = job.recipe.generation.defaults(_ids(tokenizer, BOS)[0], tuple(_ids(tokenizer, EOS, END)))
    Gathering(decoder, world).save(torch.float32, job.model, generation, tokenizer_files(job.tokenizer))


def _ids(tokenizer: Tokenizer, *tokens: str) -> list[int]:
    ids = [tokenizer.id_of(token) for token in tokens]
    assert None not in ids, f"our own tokenizer lacks one of {tokens}"
    return [number for number in ids if number is not None]
