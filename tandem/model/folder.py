"""Hugging Face model folders: reading one into a `Decoder`, writing one from it.

Which files hold what, and whether it fits, is settled before the first number is read (`weights/`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.generation import GenerationDefaults
from tandem.catalogue.shapes import parameter_shapes
from tandem.errors import ConfigurationError, ModelFolderError
from tandem.files import json_bytes, whole_folder
from tandem.model.decoder import Decoder
from tandem.model.families import FAMILIES, translate
from tandem.model.families.family import TensorMap
from tandem.model.sharding import RankDecoder, cuts, narrowed
from tandem.model.skeleton import assembled
from tandem.model.weights.cut import Cut, cut
from tandem.model.weights.files import stored_tensors
from tandem.model.weights.fill import fill
from tandem.model.weights.fit import Piece, dtype_of, fit, require_fit
from tandem.model.weights.memory import fresh
from tandem.model.weights.shards import Outgoing, Read, outgoing, read_through, taken, write_shards
from tandem.model.weights.stored import StoredTensor
from tandem.parallel.collectives import Group, Solo
from tandem.parallel.rows import own_part

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_SHARD_BYTES = 5_000_000_000
ALWAYS_FLOAT32 = "router.bias"
"""The end of the names of parameters that keep this dtype in every model."""
SAMPLED = 1024
"""Bytes of each sample that a fingerprint reads."""


def load(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype | None = None,
    group: Group | None = None,
    check: Callable[[], object] = lambda: None,
) -> Decoder:
    """Load a model folder; peak memory is the model, or this rank's part of it, and some megabytes.

    Args:
        folder: Holds `config.json` and the weights, as `*.safetensors` or `*.bin`, in one file or several.
        device: Where the parameters go.
        dtype: What they become; None keeps the folder's own. Block-quantised weights are dequantised.
        group: The ranks that share the model; this one's part is loaded. None for the whole model.
        check: Called now and then by any thread; what it raises ends the loading.

    Raises:
        ModelFolderError: A file is missing or broken, or tensors are missing, surplus or misshapen; all are named.
        UsageError: The model cannot be shared out among so many ranks.
    """
    group = group or Solo()
    config, fields, stored, pieces = _looked_at(folder)
    dtype = dtype or _own_dtype(fields, dtype_of(stored), folder)
    parameters = _allocate(narrowed(config, group.rank, group.size), device, dtype, folder)
    fill(parameters, list(cut(pieces, cuts(config, group.rank, group.size))), check)
    return assembled(config, parameters, Decoder if group.size == 1 else partial(RankDecoder, group=group))


def load_own(decoder: Decoder, folder: Path) -> None:
    """Fill a decoder's parameters, or this rank's rows of them where they are sharded; no others are read.

    Memory holds nothing but the decoder and some megabytes. Adapters stay as they are.

    Args:
        decoder: Of the folder's configuration, on any device, in any floating dtype.
        folder: As for `load`.

    Raises:
        ModelFolderError: As `load`.
    """
    config, _, _, pieces = _looked_at(folder)
    own = {name: own_part(decoder.get_parameter(name)) for name in parameter_shapes(config)}
    rows = {name: Cut(0, part.rows) for name, part in own.items()}
    fill({name: part.tensor for name, part in own.items()}, list(cut(pieces, rows)))


def own_dtype(folder: Path) -> torch.dtype:
    """What the weights of a folder become where no dtype is asked for; there need be none if config.json says it.

    Raises:
        ModelFolderError: A file is missing or broken, or the dtype is none that can be computed in.
    """
    _, _, fields = translate(folder)
    said = fields.get("dtype") or fields.get("torch_dtype")
    return _own_dtype(fields, said or dtype_of(stored_tensors(folder)), folder)


def save(
    decoder: Decoder,
    folder: Path,
    generation: GenerationDefaults,
    tokenizer_files: Mapping[str, bytes],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a complete model folder in its family's own layout: configuration, weights, generation defaults, tokenizer.

    Args:
        decoder: Its parameters are written as they are, in their own dtype.
        folder: Must not exist.
        generation: Content of `generation_config.json`.
        tokenizer_files: File name -> content.
        max_shard_bytes: Weights larger than this are split into several files with an index.

    Raises:
        ModelFolderError: Something of that name exists, the family's `config.json` cannot say what the model is, it
            has adapters that are not merged, or the system does not let it be written.
    """
    parameters = {name: parameter.detach() for name, parameter in decoder.named_parameters()}
    if surplus := sorted(parameters.keys() - parameter_shapes(decoder.config).keys()):
        raise ModelFolderError(f"{folder}: a model folder cannot hold {surplus[0]}; merge the adapters first")
    tensors = outgoing(_layout(decoder.config), parameters, partial(taken, parameters))
    fields = _hf_config(decoder.config, decoder.embedding.weight.dtype, generation, folder)
    _write(folder, fields, generation, tokenizer_files, tensors, max_shard_bytes)


def save_read(
    config: ModelConfig,
    dtype: torch.dtype,
    read: Read,
    folder: Path | None,
    generation: GenerationDefaults,
    tokenizer_files: Mapping[str, bytes],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """As `save`, of a model that is nowhere whole: every tensor is read when it is written, and then let go of.

    Args:
        config: Of the model.
        dtype: Of the folder; what is fp32 in every model stays so.
        read: Rows of a parameter -> their numbers, in any dtype; called in the same order wherever this is called with
            the same configuration, so that ranks can read together.
        folder: Must not exist. None for a rank that only takes part in the reading.
        generation: As for `save`.
        tokenizer_files: As for `save`.
        max_shard_bytes: As for `save`.

    Raises:
        ModelFolderError: As `save`.
    """
    dtypes = {name: torch.float32 if name.endswith(ALWAYS_FLOAT32) else dtype for name in parameter_shapes(config)}
    like = {
        name: torch.empty(shape, dtype=dtypes[name], device="meta") for name, shape in parameter_shapes(config).items()
    }
    tensors = outgoing(_layout(config), like, lambda rows: read(rows).to(dtypes[rows.name]))
    if folder is None:
        read_through(tensors, max_shard_bytes)
        return
    fields = _hf_config(config, dtype, generation, folder)
    _write(folder, fields, generation, tokenizer_files, tensors, max_shard_bytes)


def _write(
    folder: Path,
    fields: dict[str, Any],
    generation: GenerationDefaults,
    tokenizer_files: Mapping[str, bytes],
    tensors: list[Outgoing],
    max_shard_bytes: int,
) -> None:
    if folder.exists():
        raise ModelFolderError(f"{folder}: exists already; choose another folder or remove it")
    files = {"config.json": json_bytes(fields), "generation_config.json": json_bytes(generation.as_json())}
    try:
        with whole_folder(folder) as part:
            for name, content in (files | dict(tokenizer_files)).items():
                (part / name).write_bytes(content)
            write_shards(part, tensors, max_shard_bytes)
    except OSError as error:
        raise unwritable(folder, error) from None


def _layout(config: ModelConfig) -> TensorMap:
    return FAMILIES[config.family].tensors(config)


def _looked_at(folder: Path) -> tuple[ModelConfig, Mapping[str, Any], Mapping[str, StoredTensor], tuple[Piece, ...]]:
    """What a folder says it is, what lies in it, and what of that fills which parameter; none of it is read."""
    family, config, fields = translate(folder)
    stored = stored_tensors(folder)
    found = fit(stored, family, config, fields)
    require_fit(found, folder)
    return config, fields, stored, found.pieces


def unwritable(folder: Path, error: OSError) -> ModelFolderError:
    """The error for a folder that the system does not let be written."""
    advice = "free disk space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another folder"
    return ModelFolderError(f"{folder}: cannot be written ({error.strerror}); {advice}")


def fingerprint(folder: Path) -> str:
    """A cheap hash of a folder's weights: name, shape, dtype and four samples of every tensor, of 1 KiB at most.

    It tells two checkpoints of one shape apart without reading them whole: training moves every matrix. How the
    tensors are spread over files does not matter.

    Raises:
        ModelFolderError: A file is missing or broken.
    """
    digest = blake2b(digest_size=16)
    stored = stored_tensors(folder)
    handles: dict[Path, int] = {}
    try:
        for name in sorted(stored):
            tensor = stored[name]
            digest.update(f"{name!r} {list(tensor.shape)} {tensor.dtype}".encode())
            handle = handles.get(tensor.path) or handles.setdefault(tensor.path, os.open(tensor.path, os.O_RDONLY))
            for begin in range(0, tensor.size, max(tensor.size // 4, 1)):
                digest.update(os.pread(handle, min(tensor.size - begin, SAMPLED), tensor.offset + begin))
    except OSError as error:
        raise ModelFolderError(f"{folder}: cannot be read ({error.strerror}); copy it again") from None
    finally:
        for handle in handles.values():
            os.close(handle)
    return digest.hexdigest()


def _own_dtype(fields: Mapping[str, Any], otherwise: str, folder: Path) -> torch.dtype:
    name = fields.get("dtype") or fields.get("torch_dtype") or otherwise
    if not isinstance(name, str) or name not in DTYPES:
        known, path = ", ".join(DTYPES), folder / "config.json"
        raise ModelFolderError(f"{path}: dtype {name!r:.40} is not supported; supported: {known}; choose with --dtype")
    return DTYPES[name]


def _allocate(config: ModelConfig, device: torch.device, dtype: torch.dtype, folder: Path) -> dict[str, Tensor]:
    shapes = parameter_shapes(config)
    try:
        return {
            name: fresh(shape, torch.float32 if name.endswith(ALWAYS_FLOAT32) else dtype, device)
            for name, shape in shapes.items()
        }
    except (RuntimeError, OSError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise ModelFolderError(f"{folder}: does not fit into the memory of {device} ({reason}); free some") from None


def _hf_config(config: ModelConfig, dtype: torch.dtype, generation: GenerationDefaults, folder: Path) -> dict[str, Any]:
    family = FAMILIES[config.family]
    try:
        fields = family.write_config(config)
    except ConfigurationError as error:
        raise ModelFolderError(f"{folder}: cannot be written as {family.name}: {error}; change the model") from None
    defaults = generation.as_json()
    return {
        "architectures": [family.architectures[0]],
        "model_type": family.model_type,
        **fields,
        "bos_token_id": defaults["bos_token_id"],
        "eos_token_id": defaults["eos_token_id"],
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
