"""A model folder as its family publishes it, with random weights and a small working tokenizer.

For tests, and for whoever wants to try a pipeline without fetching 140 GB.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from tandem.catalogue.arithmetic import DTYPE_BYTES, weight_bytes
from tandem.catalogue.config import ModelConfig
from tandem.catalogue.drawing import size_text
from tandem.catalogue.generation import GenerationDefaults
from tandem.catalogue.named import NamedModel, TokenizerKind
from tandem.catalogue.shapes import parameter_shapes
from tandem.errors import ModelFolderError, UsageError
from tandem.files import json_bytes, read_json_object
from tandem.model.folder import DTYPES, save, unwritable
from tandem.model.fp8_folder import write_quantised
from tandem.model.random_weights import random_decoder
from tandem.text.built_in_templates import CHATML, DEEPSEEK, LLAMA2, LLAMA3, MISTRAL, QWEN2
from tandem.text.making.ids import TokenizerIds
from tandem.text.making.writer import write_tokenizer

QUANTISED_FAMILY = "deepseek_v3"
LARGEST_VOCABULARY = 4096
"""Ids that the texts at hand can fill; a model's table may be larger, as published ones are."""
SMALL = 100 * 2**20
"""Bytes; tiny models are a hundredth of it."""
LARGEST_SEED = 2**64 - 1
TEMPLATES: dict[TokenizerKind, str] = {
    "llama2": LLAMA2, "llama3": LLAMA3, "qwen2": QWEN2, "yi": CHATML, "mistral": MISTRAL, "deepseek": DEEPSEEK,
}  # fmt: skip
"""The families that publish a chat template beside their tokenizer; the others have Python for it, or nothing."""


def write_random_folder(
    config: ModelConfig, tokenizer: TokenizerKind, folder: Path, *, dtype: str, seed: int, fp8: bool = False
) -> None:
    """Write configuration, random weights, generation defaults and a tokenizer.

    Args:
        config: The model's shape.
        tokenizer: Which family's tokenizer files to write.
        folder: Must not exist.
        dtype: One of `DTYPES`, for the weights.
        seed: The same one gives the same folder.
        fp8: Quantise the matrices as DeepSeek does; only for its family.

    Raises:
        UsageError: The folder exists or cannot be written, disk or memory are too small for the weights, the family
            has no fp8, or the seed is none.
    """
    if folder.exists():
        raise UsageError(f"{folder}: exists already; choose another folder or remove it")
    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"--seed {seed}: give a number from 0 to {LARGEST_SEED}")
    if fp8 and config.family != QUANTISED_FAMILY:
        raise UsageError(f"--fp8: {config.family} models are not published so; leave it out")
    _require_room(config, dtype, folder, fp8=fp8)
    files, ids = _tokenizer(tokenizer, config)
    decoder = random_decoder(config, DTYPES[dtype], seed)
    if not fp8:
        save(decoder, folder, _generation(ids), files)
        return
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.absolute().parent) as scratch:
            save(decoder, Path(scratch) / "wide", _generation(ids), files)
            write_quantised(Path(scratch) / "wide", folder)
    except OSError as error:
        raise unwritable(folder, error) from None


def native_dtype(model: NamedModel) -> str:
    """What a random folder of this model is written in: as published, or 16 bits where that is quantised."""
    return model.dtype if model.dtype in DTYPES else "bfloat16"


def _tokenizer(kind: TokenizerKind, config: ModelConfig) -> tuple[dict[str, bytes], TokenizerIds]:
    with TemporaryDirectory() as scratch:
        ids = write_tokenizer(kind, Path(scratch), min(config.vocab_size, LARGEST_VOCABULARY))
        if kind in TEMPLATES:
            path = Path(scratch) / "tokenizer_config.json"
            own = {"chat_template": TEMPLATES[kind], "model_max_length": config.max_position}
            path.write_bytes(json_bytes(read_json_object(path, ModelFolderError) | own))
        return {path.name: path.read_bytes() for path in sorted(Path(scratch).iterdir())}, ids


def _generation(ids: TokenizerIds) -> GenerationDefaults:
    named = {"pad_token_id": ids.pad, "user_token_id": ids.user, "assistant_token_id": ids.assistant}
    extra = {name: number for name, number in named.items() if number is not None}
    return GenerationDefaults(eos_token_ids=ids.eos, bos_token_id=ids.bos, extra=extra)


def _require_room(config: ModelConfig, dtype: str, folder: Path, *, fp8: bool) -> None:
    size = weight_bytes(config, dtype)
    written = size + (weight_bytes(config, "float8_e4m3fn") if fp8 else 0)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    memory = psutil.virtual_memory().available
    # The largest parameter, which may be a mixture's stacked experts, is drawn in 32 bits before it is rounded.
    largest = max(map(math.prod, parameter_shapes(config).values())) * DTYPE_BYTES["float32"]
    for have, need, what in ((free, written, f"disk of {there}"), (memory, size + largest, "memory")):
        if have < need:
            # Small ones were asked for as such; they can hardly be smaller.
            advice = "use --tiny or a smaller --shape" if need >= SMALL else "free some of it"
            raise UsageError(
                f"{folder}: random weights need {size_text(need)}, the {what} has {size_text(have)} free; {advice}"
            )
