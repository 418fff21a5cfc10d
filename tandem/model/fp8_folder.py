"""A model folder as DeepSeek publishes: matrices in fp8, one scale for each block (DeepSeek-V3, 2024, section 3.3).

Embedding, head, norms and the routers' gates stay as they are. Each quantised `X.weight` has its scales beside it under
`X.weight_scale_inv`, in fp32, which a number is multiplied with.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from tandem.errors import ModelFolderError
from tandem.files import json_bytes, read_json_object, whole_folder
from tandem.model.families.deepseek_v3 import BLOCK, QUANTISED
from tandem.model.weights.files import weight_files
from tandem.model.weights.fit import SCALE, Block
from tandem.model.weights.shards import Outgoing, write_file

LARGEST = torch.finfo(torch.float8_e4m3fn).max
WIDE = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight")
"""Ends of the names of matrices that are not quantised."""


def write_quantised(source: Path, target: Path) -> None:
    """Copy a DeepSeek folder of safetensors, its matrices quantised.

    Args:
        source: A whole folder; stays as it is.
        target: Must not exist.
    """
    shards = {path.name: path for path in weight_files(source).paths}
    held: dict[str, str] = {}
    size = 0
    with whole_folder(target) as part:
        for path in source.iterdir():
            if path.name not in shards:
                shutil.copy(path, part)
        _edit_json(
            part / "config.json", {"quantization_config": {name: values[0] for name, values in QUANTISED.items()}}
        )
        for name, path in shards.items():
            tensors = quantise_all(load_file(path), BLOCK)
            write_file(part / name, [_outgoing(key, tensor) for key, tensor in tensors.items()])
            held |= dict.fromkeys(tensors, name)
            size += sum(tensor.nbytes for tensor in tensors.values())
        if len(shards) > 1:
            index = {"metadata": {"total_size": size}, "weight_map": held}
            _edit_json(part / "model.safetensors.index.json", index)


def _outgoing(name: str, tensor: Tensor) -> Outgoing:
    return Outgoing(name, tuple(tensor.shape), tensor.dtype, (tensor,))


def quantise_all(tensors: dict[str, Tensor], block: Block) -> dict[str, Tensor]:
    """A shard's tensors and the scales of those that were quantised."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and not name.endswith(WIDE):
            out[name], out[name + SCALE] = quantise(tensor, block)
        else:
            out[name] = tensor
    return out


def quantise(weight: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    """A matrix [R, C] -> fp8 [R, C] and fp32 scales [ceil(R / block rows), ceil(C / block columns)]."""
    (rows, columns), (height, width) = weight.shape, block
    padded = F.pad(weight.float(), (0, -columns % width, 0, -rows % height))
    tiles = padded.view(padded.shape[0] // height, height, padded.shape[1] // width, width)
    scales = tiles.abs().amax(dim=(1, 3)).clamp(min=torch.finfo(torch.float32).tiny) / LARGEST
    small = (tiles / scales[:, None, :, None]).view_as(padded)[:rows, :columns]
    return small.to(torch.float8_e4m3fn).contiguous(), scales


def _edit_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_bytes(json_bytes(read_json_object(path, ModelFolderError) | fields))
