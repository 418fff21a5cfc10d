"""Dequantising block-scaled rows against the formula, element by element."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.model.weights.block_scaled import dequantise


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    block=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_any_rows_equal_the_formula(
    rows: int, columns: int, block: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    height, width = block
    generator = torch.Generator().manual_seed(seed)
    weight = (100 * torch.randn(rows, columns, generator=generator)).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-rows // height), -(-columns // width), generator=generator)
    direct = weight.float() * scales[torch.arange(rows) // height][:, torch.arange(columns) // width]
    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start + 1, rows))
    top, bottom = start // height, -(-stop // height)
    part = dequantise(weight[start:stop], scales[top:bottom], start - top * height, block)
    assert part.dtype == torch.float32
    assert torch.equal(part, direct[start:stop])
