"""Hugging Face model folders: reading one into a `Decoder`, writing one from it.

Weights stream tensor by tensor between the files and the decoder's own parameters, so there is never a second copy of
the model in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tandem.catalogue.generation import GenerationDefaults
from tandem.errors import ModelFolderError
from tandem.files import json_bytes, read_json_object, whole_folder
from tandem.model.decoder import Decoder
from tandem.model.families import FAMILIES, translate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> Decoder:
    """Load a model folder.

    Args:
        folder: Holds `config.json` and safetensors files.
        device: Where the parameters go.
        dtype: What they become; None keeps the folder's own.

    Raises:
        ModelFolderError: A file is missing or broken, or tensors are missing, surplus or misshapen; all are named.
    """
    family, config, fields = translate(folder)
    dtype = dtype or _own_dtype(fields, folder)
    with torch.device("meta"):
        decoder = Decoder(config)
    wanted = {family.their_name(name): name for name, _ in decoder.named_parameters()}
    faults = []
    for theirs, tensor in _tensors(folder):
        ours = wanted.pop(theirs, None)
        if ours is None:
            faults += [] if family.ignored(theirs, config) else [f"{theirs} is not part of the model"]
        elif tensor.shape != (expected := decoder.get_parameter(ours).shape):
            faults.append(f"{theirs} has shape {list(tensor.shape)}, config.json asks for {list(expected)}")
        else:
            # A copy: a mapped file that somebody overwrites would change the model, or kill the process.
            _assign(decoder, ours, tensor.to(device=device, dtype=dtype, copy=True))
    faults += [f"{theirs} is missing" for theirs in wanted]
    if faults:
        raise ModelFolderError(f"{folder}: weights do not fit config.json: {_first(faults)}; copy the folder again")
    return decoder.eval()


def save(decoder: Decoder, folder: Path, generation: GenerationDefaults, tokenizer_files: dict[str, bytes]) -> None:
    """Write a complete model folder: configuration, weights, generation defaults, tokenizer.

    Args:
        decoder: Its parameters are written as they are, in their own dtype.
        folder: Must not exist.
        generation: Content of `generation_config.json`.
        tokenizer_files: File name -> content.

    Raises:
        ModelFolderError: Something of that name exists.
    """
    family = FAMILIES[decoder.config.family]
    tensors = {family.their_name(name): p.detach().contiguous() for name, p in decoder.named_parameters()}
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    ids = {"bos_token_id": generation.bos_token_id, "eos_token_id": generation.as_json()["eos_token_id"]}
    config = family.write_config(decoder.config) | ids | {"torch_dtype": dtype}
    files = {"config.json": json_bytes(config), "generation_config.json": json_bytes(generation.as_json())}
    if folder.exists():
        raise ModelFolderError(f"{folder}: exists already; choose another folder or remove it")
    with whole_folder(folder) as part:
        for name, content in (files | tokenizer_files).items():
            (part / name).write_bytes(content)
        try:
            save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise ModelFolderError(f"{folder}: cannot be written ({error}); free disk space") from None


def fingerprint(folder: Path) -> str:
    """A cheap hash of a folder's weights: name, shape, type and first row of every tensor.

    It tells two checkpoints of one shape apart without reading them whole: training moves every matrix.

    Raises:
        ModelFolderError: A file is missing or broken.
    """
    digest = blake2b(digest_size=16)
    for path in _weight_files(folder):
        with _opened(path) as file:
            for name in sorted(file.keys()):
                part = file.get_slice(name)
                digest.update(f"{name} {part.get_shape()} {part.get_dtype()}".encode())
                digest.update(part[:1].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _own_dtype(fields: dict[str, Any], folder: Path) -> torch.dtype:
    name = fields.get("dtype") or fields.get("torch_dtype") or "float32"
    if name not in DTYPES:
        known = ", ".join(DTYPES)
        raise ModelFolderError(f"{folder}: dtype {name!r} is not supported; supported: {known}; choose with --dtype")
    return DTYPES[name]


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json_object(index, ModelFolderError).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ModelFolderError(f"{index}: weight_map is no map from tensors to files; copy the file again")
        files = [folder / name for name in sorted(set(weight_map.values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelFolderError(f"{folder}: has no *.safetensors file; copy the weights too")
    for path in files:
        if path.parent != folder or not path.exists():
            raise ModelFolderError(f"{index}: names {path.name}, which is not there; copy that file too")
    return files


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor, mapped from its file only until the next one is asked for.

    Each opens the file anew: one mapping for all would keep the pages of all in memory.
    """
    for path in _weight_files(folder):
        with _opened(path) as file:
            names = list(file.keys())
        for name in names:
            with _opened(path) as file:
                yield name, file.get_tensor(name)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(f"{path}: is damaged or half-written ({error}); copy it again") from None


def _assign(decoder: Decoder, name: str, tensor: Tensor) -> None:
    module, _, attribute = name.rpartition(".")
    setattr(decoder.get_submodule(module), attribute, nn.Parameter(tensor, requires_grad=False))


def _first(faults: list[str], most: int = 4) -> str:
    more = f" and {len(faults) - most} more" if len(faults) > most else ""
    return "; ".join(faults[:most]) + more
