"""A model folder as its family publishes it, with random weights and a small working tokenizer.

For tests, and for whoever wants to try a pipeline without fetching 140 GB.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from tandem.catalogue.arithmetic import DTYPE_BYTES, weight_bytes
from tandem.catalogue.config import ModelConfig
from tandem.catalogue.generation import GenerationDefaults
from tandem.catalogue.named import NamedModel, TokenizerKind
from tandem.errors import UsageError
from tandem.model.folder import DTYPES, save
from tandem.model.random_weights import random_decoder
from tandem.text.making.ids import TokenizerIds
from tandem.text.making.writer import write_tokenizer

LARGEST_VOCABULARY = 4096
"""Ids that the texts at hand can fill; a model's table may be larger, as published ones are."""


def write_random_folder(config: ModelConfig, tokenizer: TokenizerKind, folder: Path, *, dtype: str, seed: int) -> None:
    """Write configuration, random weights, generation defaults and a tokenizer.

    Args:
        config: The model's shape.
        tokenizer: Which family's tokenizer files to write.
        folder: Must not exist.
        dtype: One of `DTYPES`, for the weights.
        seed: The same one gives the same folder.

    Raises:
        UsageError: The folder exists, or disk or memory are too small for the weights.
    """
    if folder.exists():
        raise UsageError(f"{folder}: exists already; choose another folder or remove it")
    _require_room(config, dtype, folder)
    files, ids = _tokenizer(tokenizer, min(config.vocab_size, LARGEST_VOCABULARY))
    decoder = random_decoder(config, DTYPES[dtype], seed)
    save(decoder, folder, _generation(ids), files)


def native_dtype(model: NamedModel) -> str:
    """What a random folder of this model is written in: as published, or 16 bits where that is quantised."""
    return model.dtype if model.dtype in DTYPES else "bfloat16"


def _tokenizer(kind: TokenizerKind, size: int) -> tuple[dict[str, bytes], TokenizerIds]:
    with TemporaryDirectory() as scratch:
        ids = write_tokenizer(kind, Path(scratch), size)
        return {path.name: path.read_bytes() for path in sorted(Path(scratch).iterdir())}, ids


def _generation(ids: TokenizerIds) -> GenerationDefaults:
    named = {"pad_token_id": ids.pad, "user_token_id": ids.user, "assistant_token_id": ids.assistant}
    extra = {name: number for name, number in named.items() if number is not None}
    return GenerationDefaults(eos_token_ids=ids.eos, bos_token_id=ids.bos, extra=extra)


def _require_room(config: ModelConfig, dtype: str, folder: Path) -> None:
    size = weight_bytes(config, dtype)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    # The largest tensor is drawn in 32 bits before it is rounded.
    largest = config.vocab_size * config.hidden_size * DTYPE_BYTES["float32"]
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for have, need, what in ((free, size, f"disk of {there}"), (memory, size + largest, "memory")):
        if have < need:
            raise UsageError(
                f"{folder}: random weights need {need / 2**30:.1f} GiB, the {what} has {have / 2**30:.1f} GiB free; "
                "use --tiny or --shape"
            )
