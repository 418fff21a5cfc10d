"""The exported folder of a run: in the dtype the weights came in, with the tokenizer's files.

All ranks write it together, one tensor at a time; the leader alone holds one whole, and has the files. Of LoRA there is
the adapter as well, and the model is the merged one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tandem.catalogue.generation import read_generation_defaults
from tandem.errors import DataError
from tandem.files import json_bytes, read_json_object, write_whole
from tandem.model.decoder import Decoder
from tandem.model.folder import own_dtype
from tandem.parallel.world import World
from tandem.text.tokenizer import Tokenizer, tokenizer_files
from tandem.training.adapters.peft_folder import save_factors
from tandem.training.compute.gathering import Gathering
from tandem.training.inputs import Inputs
from tandem.training.named.begin import Base


def export(base: Base, decoder: Decoder, inputs: Inputs, chat_template: str | None, world: World) -> None:
    """Write what was trained, and what it was made from last; all ranks call this together.

    Args:
        base: What the run began from.
        decoder: This rank's part of it.
        inputs: All that the result depends on.
        chat_template: Taken in place of the tokenizer's own.
        world: The ranks.

    Raises:
        ModelFolderError: The system does not let it be written.
        ProcessError: A rank is gone.
    """
    run = base.run
    gathering, dtype = Gathering(decoder, world), own_dtype(base.folder)
    factors = gathering.factors()
    if world.leads:
        # There already only if a run was made longer, or killed between exporting and being marked as finished.
        run.mark.unlink(missing_ok=True)
        shutil.rmtree(run.exported, ignore_errors=True)
    if world.leads and factors:
        shutil.rmtree(run.adapter, ignore_errors=True)
        save_factors(base.config, factors, run.adapter, str(base.folder))
    tokenizer = _tokenizer_files(run.paths.tokenizer, chat_template)
    gathering.save(dtype, run.exported, read_generation_defaults(run.paths.weights), tokenizer)
    if world.leads:
        write_whole(run.mark, json_bytes(inputs))


def _tokenizer_files(folder: Path, chat_template: str | None) -> dict[str, bytes]:
    Tokenizer.from_folder(folder)  # an export that cannot be served is none
    files = tokenizer_files(folder)
    if chat_template is not None:
        path = folder / "tokenizer_config.json"
        own = read_json_object(path, DataError) if path.exists() else {}
        files[path.name] = json_bytes(own | {"chat_template": chat_template})
    return files
