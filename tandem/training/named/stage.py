"""One rank's part of a stage: weights and prepared data to steps, checkpoints and an exported model."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from tandem.catalogue.generation import read_generation_defaults
from tandem.errors import CheckpointError, DataError
from tandem.files import json_bytes, read_json_object, write_whole
from tandem.model.decoder import Decoder
from tandem.model.folder import fingerprint, own_dtype, save
from tandem.parallel.device import DeviceName, choose_device
from tandem.parallel.place import Place
from tandem.parallel.world import joined
from tandem.text.tokenizer import Tokenizer, tokenizer_files
from tandem.training.adapters.lora import apply_lora, merge
from tandem.training.adapters.peft_folder import save_adapter
from tandem.training.data.batches import TokenBatches
from tandem.training.data.conversation_batches import ConversationBatches
from tandem.training.data.open import open_conversations, open_texts
from tandem.training.inputs import Inputs, differences
from tandem.training.named.begin import base_model, beginning
from tandem.training.named.data import RunData
from tandem.training.named.weights import weights_of
from tandem.training.progress import Progress, Silence
from tandem.training.settings.config import StageConfig
from tandem.training.settings.run import Run
from tandem.training.stage import Stage, train

NO_RESULT = {"save_every", "keep_last", "guard", "micro_batch", "recompute"}
"""Settings of a step that do not change what it learns, or are decided while it is under way."""


def train_and_export(run: Run, data: RunData, progress: Progress, place: Place, device: DeviceName) -> None:
    """Train what is left, and export on rank 0.

    Args:
        run: What to do.
        data: What to learn from.
        progress: Is told by rank 0.
        place: This process among the ranks.
        device: What to train on.
    """
    batches = _open(run, data)
    config = run.stage_config(batches.samples)
    inputs = _inputs(run, data, config)
    told = progress if place.rank == 0 else Silence()
    if _is_done(run, inputs):
        told.reuse(run.stage)
        return
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    decoder = base_model(run)
    if run.lora is not None:
        apply_lora(decoder, run.lora, run.seed)
    run.paths.logs.mkdir(parents=True, exist_ok=True)
    with joined(place, choose_device(device)) as world:
        stage = Stage(
            name=run.stage, title=f"{run.model}: {run.stage}", config=config, folder=run.paths.logs, inputs=inputs,
            checkpoints=run.paths.checkpoints, begins_from=beginning(run), process_logs=run.paths.process_logs,
            world=world, nodes=run.launch.nodes, data=(data.prefix,),
        )  # fmt: skip
        trained = train(stage, decoder, batches, told)
        if trained is not None and run.export:
            _export(run, data, trained, inputs)
        told.end(run.stage)


def _open(run: Run, data: RunData) -> TokenBatches | ConversationBatches:
    length = run.training.seq_length
    if run.reads == "pretrain":
        return open_texts(data.prefix, seq_length=length, seed=run.seed, apart=run.data.documents_apart)
    ends = read_generation_defaults(run.paths.weights).eos_token_ids
    pad = (ends or (0,))[0]  # behind a row's end: never looked at, never learnt
    return open_conversations(data.prefix, seq_length=length, seed=run.seed, pad=pad, pack=run.data.pack)


def _inputs(run: Run, data: RunData, config: StageConfig) -> Inputs:
    return {
        "model": fingerprint(weights_of(run)) if run.resume.load else run.model,
        "data": data.key,
        "seed": run.seed,
        "pack": run.data.pack,
        "documents_apart": run.data.documents_apart,
        "stage": config.model_dump(mode="json", exclude=NO_RESULT),
        "lora": None if run.lora is None else run.lora.model_dump(mode="json"),
    }


def _is_done(run: Run, inputs: Inputs) -> bool:
    if not run.export or not run.exported.is_dir() or not run.mark.exists():
        return False
    if different := differences(read_json_object(run.mark, CheckpointError), inputs):
        raise CheckpointError(
            f"{run.exported}: was trained from other inputs: {different}; set another CKPT_SAVE_PATH, or train anew "
            "with --fresh"
        )
    return True


def _export(run: Run, data: RunData, decoder: Decoder, inputs: Inputs) -> None:
    """In the dtype the weights came in, with the tokenizer's files; of LoRA the adapter, and the merged model."""
    # There already only if a run was killed between exporting and being marked as finished.
    shutil.rmtree(run.exported, ignore_errors=True)
    if run.lora is not None:
        shutil.rmtree(run.adapter, ignore_errors=True)
        save_adapter(decoder, run.adapter, str(weights_of(run)))
        merge(decoder)
    decoder.to(own_dtype(weights_of(run)))
    generation = read_generation_defaults(run.paths.weights)
    save(decoder, run.exported, generation, _tokenizer_files(run.paths.tokenizer, data.chat_template))
    write_whole(run.mark, json_bytes(inputs))


def _tokenizer_files(folder: Path, chat_template: str | None) -> dict[str, bytes]:
    Tokenizer.from_folder(folder)  # an export that cannot be served is none
    files = tokenizer_files(folder)
    if chat_template is not None:
        path = folder / "tokenizer_config.json"
        own = read_json_object(path, DataError) if path.exists() else {}
        files[path.name] = json_bytes(own | {"chat_template": chat_template})
    return files
