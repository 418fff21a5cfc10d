"""Random checkpoints in the forms in which the originals come: safetensors or torch's own, in one file or several."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from reference.transformer import Config, Shapes

Form = Literal["safetensors", "sharded", "bin", "sharded-bin"]

FORMS: tuple[Form, ...] = ("safetensors", "sharded", "bin", "sharded-bin")


def random_tensors(shapes: Shapes, seed: int) -> dict[str, NDArray[np.float32]]:
    """Tensors that hide nothing: all of standard deviation 0.2, norms around 1, the rest, biases too, around 0.

    The weights with one axis are the norms.
    """
    generator = np.random.default_rng(seed)
    return {
        name: generator.normal(1.0 if _is_norm(name, shape) else 0.0, 0.2, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def _is_norm(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 1 and name.endswith(".weight")


def write_folder(
    folder: Path,
    config: Config,
    shapes: Shapes,
    seed: int,
    dtype: torch.dtype = torch.float32,
    form: Form = "safetensors",
    shards: int = 3,
) -> dict[str, NDArray[np.float32]]:
    """Write config.json and random weights into `folder`, and return the tensors as the files hold them.

    Args:
        folder: where to; made if it is not there.
        config: the content of config.json; `torch_dtype`, where it has one, is set to `dtype`.
        shapes: the tensors to make, in the order of the files.
        seed: of the random numbers.
        dtype: of the files. The tensors returned are rounded to it and float32, since NumPy has no bfloat16.
        form: one safetensors file, several with an index, one torch file, several with an index.
        shards: how many files several are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if "torch_dtype" in config:
        config = config | {"torch_dtype": str(dtype).removeprefix("torch.")}
    _write_json(folder / "config.json", config)

    stored = {name: torch.from_numpy(value).to(dtype) for name, value in random_tensors(shapes, seed).items()}
    stem, suffix, write = _FILES["bin" if form.endswith("bin") else "safetensors"]
    if form.startswith("sharded"):
        _write_shards(folder, stored, shards, stem, suffix, write)
    else:
        write(stored, folder / f"{stem}.{suffix}")
    return {name: tensor.to(torch.float32).numpy() for name, tensor in stored.items()}


_Write = Callable[[dict[str, torch.Tensor], Path], None]


def _write_safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(tensors, path, metadata={"format": "pt"})


def _write_bin(tensors: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(tensors, path)


_FILES: dict[str, tuple[str, str, _Write]] = {
    "safetensors": ("model", "safetensors", _write_safetensors),
    "bin": ("pytorch_model", "bin", _write_bin),
}


def _write_shards(
    folder: Path, tensors: dict[str, torch.Tensor], shards: int, stem: str, suffix: str, write: _Write
) -> None:
    """Equal runs of tensors in files numbered from 1, and an index of which is where."""
    weight_map: dict[str, str] = {}
    for number, names in enumerate(np.array_split(list(tensors), shards), start=1):
        file = f"{stem}-{number:05}-of-{shards:05}.{suffix}"
        write({str(name): tensors[name] for name in names}, folder / file)
        weight_map |= {str(name): file for name in names}
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    _write_json(folder / f"{stem}.{suffix}.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
