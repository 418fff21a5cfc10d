"""Which stored tensor fills which parameter, and what is said of those that do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tandem.catalogue.models import MODELS
from tandem.catalogue.shapes import parameter_shapes
from tandem.catalogue.shrink import shrink
from tandem.errors import ModelFolderError
from tandem.model.families import FAMILIES
from tandem.model.weights.fit import Fit, block_size, dtype_of, fit, require_fit
from tandem.model.weights.stored import ITEM_BYTES, StoredTensor

ONE_PER_FAMILY = [
    "llama3.2-1b", "qwen-7b", "qwen2-0.5b", "glm3-6b", "baichuan2-13b", "mistral-7b", "mixtral-8x7b", "deepseek-v3",
]  # fmt: skip
HEAD = "lm_head.weight"
GATE = "model.layers.1.mlp.gate_proj.weight"


def stored(shape: tuple[int, ...], dtype: str = "BF16") -> StoredTensor:
    size = ITEM_BYTES[dtype]
    for one in shape:
        size *= one
    return StoredTensor(Path("x"), dtype, shape, 0, size)


def checkpoint(name: str) -> dict[str, StoredTensor]:
    """A table with all tensors of a small model."""
    config = shrink(MODELS[name].config)
    shapes = parameter_shapes(config)
    table = {}
    for theirs, rows in FAMILIES[config.family].tensors(config).items():
        parts = [shapes[one.name] if one.expert is None else shapes[one.name][1:] for one in rows]
        table[theirs] = stored((sum(part[0] for part in parts), *parts[0][1:]))
    return table


IN_BLOCKS = {"quantization_config": {"weight_block_size": [128, 128]}}


def matched(table: dict[str, StoredTensor], name: str = "llama2-7b", fields: dict[str, Any] | None = None) -> Fit:
    config = shrink(MODELS[name].config)
    return fit(table, FAMILIES[config.family], config, fields or {})


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_every_parameter_is_filled_once(name: str) -> None:
    table, config = checkpoint(name), shrink(MODELS[name].config)
    result = matched(table, name)
    assert result.faults == ()
    filled: dict[str, int] = {}
    for piece in result.pieces:
        shape = parameter_shapes(config)[piece.rows.name]
        part = shape if piece.rows.expert is None else shape[1:]
        assert piece.first + part[0] <= piece.stored.shape[0]
        filled[piece.rows.name] = filled.get(piece.rows.name, 0) + part[0] * (1 if len(part) == 1 else part[1])
    assert filled == {ours: size(shape) for ours, shape in parameter_shapes(config).items()}


def size(shape: tuple[int, ...]) -> int:
    product = 1
    for one in shape:
        product *= one
    return product


def test_faults_are_named() -> None:
    table = checkpoint("llama2-7b")
    rows, columns = table[GATE].shape
    table |= {"extra": stored((1,)), "a\nb": stored((1,)), GATE: stored((rows, columns + 1))}
    del table[HEAD]
    assert matched(table).faults == (
        "extra is not part of the model",
        r"'a\nb' is not part of the model",
        f"{GATE} has shape {[rows, columns + 1]}, config.json asks for {[rows, columns]}",
        f"{HEAD} is missing",
    )


def test_the_first_faults_are_shown_and_the_others_counted() -> None:
    with pytest.raises(ModelFolderError, match=r"^x: weights do not fit config.json: a; b; c; d and 2 more; copy"):
        require_fit(Fit((), ("a", "b", "c", "d", "e", "f")), Path("x"))


@pytest.mark.parametrize("dtype", ["I64", "U8", "BOOL", "F8_E5M2", "F8_E4M3"])
def test_numbers_that_are_no_weights_are_named(dtype: str) -> None:
    table = checkpoint("llama2-7b")
    table[HEAD] = stored(table[HEAD].shape, dtype)
    assert matched(table).faults == (f"{HEAD} is of dtype {dtype}, which config.json does not announce",)


def quantised(**changes: StoredTensor | None) -> dict[str, StoredTensor]:
    table = checkpoint("llama2-7b")
    rows, columns = table[GATE].shape
    table[GATE] = stored((rows, columns), "F8_E4M3")
    table[GATE + "_scale_inv"] = stored((-(-rows // 128), -(-columns // 128)), "F32")
    return {name: one for name, one in (table | changes).items() if one is not None}


def test_scales_belong_to_their_matrix() -> None:
    table = quantised()
    result = matched(table, fields=IN_BLOCKS)
    assert result.faults == ()
    scales = {piece.rows.name: piece.scales for piece in result.pieces if piece.scales}
    assert scales.keys() == {"layers.1.feed_forward.gate.weight"}
    assert [one.stored for one in scales.values()] == [table[GATE + "_scale_inv"]]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({GATE + "_scale_inv": None}, "gate_proj.weight_scale_inv is missing"),
        ({GATE + "_scale_inv": stored((9, 9), "F32")}, r"gate_proj.weight_scale_inv has shape \[9, 9\], expected \["),
        ({HEAD + "_scale_inv": stored((1, 1), "F32")}, "lm_head.weight_scale_inv is not part of the model"),
    ],
)
def test_faulty_scales_are_named(changes: dict[str, StoredTensor | None], fault: str) -> None:
    faults = matched(quantised(**changes), fields=IN_BLOCKS).faults
    assert len(faults) == 1
    with pytest.raises(ModelFolderError, match=fault):
        require_fit(Fit((), faults), Path("x"))


def test_scales_that_are_no_numbers_are_named() -> None:
    table = quantised()
    table[GATE + "_scale_inv"] = stored(table[GATE + "_scale_inv"].shape, "I32")
    assert matched(table, fields=IN_BLOCKS).faults == (f"{GATE}_scale_inv is of dtype I32, expected F32",)


@pytest.mark.parametrize(
    ("fields", "block"),
    [
        ({}, None),
        ({"quantization_config": None}, None),
        ({"quantization_config": {"quant_method": "fp8"}}, None),
        ({"quantization_config": {"weight_block_size": [128, 64]}}, (128, 64)),
    ],
)
def test_the_block_is_read(fields: dict[str, object], block: tuple[int, int] | None) -> None:
    assert block_size(fields) == block


@pytest.mark.parametrize(
    ("dtypes", "own"),
    [
        ([], "float32"),
        (["F32", "BF16", "BF16", "BF16"], "bfloat16"),
        (["F32", "F16"], "float32"),
        (["F16", "I64"], "float16"),
        (["F64"], "float32"),
        (["F8_E4M3", "F8_E4M3", "F8_E4M3", "BF16"], "bfloat16"),
    ],
)
def test_most_bytes_decide_the_dtype(dtypes: list[str], own: str) -> None:
    assert dtype_of({str(number): stored((2,), dtype) for number, dtype in enumerate(dtypes)}) == own


def test_only_announced_drafting_layers_are_left_out() -> None:
    """A config.json that says fewer layers than there are does not give half of a model."""
    config = shrink(MODELS["deepseek-v3"].config)
    table = checkpoint("deepseek-v3") | {"model.layers.4.eh_proj.weight": stored((1,))}
    assert matched(table, "deepseek-v3").faults == ("model.layers.4.eh_proj.weight is not part of the model",)
    assert matched(table, "deepseek-v3", {"num_nextn_predict_layers": 1}).faults == ()
    fewer = fit(table, FAMILIES["deepseek_v3"], replace(config, layers=3), {"num_nextn_predict_layers": 1})
    assert fewer.faults == ("model.layers.4.eh_proj.weight is not part of the model",)
    halved = fit(table, FAMILIES["deepseek_v3"], replace(config, layers=2), {"num_nextn_predict_layers": 0})
    assert all(name in str(halved.faults) for name in ("model.layers.2.mlp", "model.layers.3.mlp"))
