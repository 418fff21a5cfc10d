"""Norms and clipping over whole and sharded gradients, and precision's copies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tandem.training.compute.clipping import clip_gradients


def parameters() -> list[nn.Parameter]:
    found = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2,))]
    for number, parameter in enumerate(found[:2]):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    return found


def test_the_norm_is_torchs_and_large_gradients_are_scaled_to_it() -> None:
    expected, found = parameters(), parameters()
    norm = torch.nn.utils.clip_grad_norm_(expected, 0.5)
    assert clip_gradients(found, 0.5) == pytest.approx(float(norm))
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=0)
    assert found[2].grad is None


def test_small_gradients_and_those_that_are_no_number_stay() -> None:
    found = parameters()
    norm = clip_gradients(found, 100.0)
    assert norm == pytest.approx((12 * 1 + 5 * 4) ** 0.5)
    assert found[0].grad is not None
    assert torch.equal(found[0].grad, torch.ones(3, 4))
    found[0].grad[0, 0] = float("nan")
    assert clip_gradients(found, 0.5) != norm
    assert found[0].grad[1, 1] == 1.0
    assert clip_gradients([], 1.0) == 0.0


def test_sharded_and_whole_gradients_are_taken_together(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        sharded = nn.Linear(4, 3)
        whole = nn.Parameter(torch.zeros(2))
        expected = nn.Linear(4, 3)
        expected.load_state_dict(sharded.state_dict())
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        for module in (sharded, expected):
            module(torch.ones(1, 4)).square().sum().backward()
        whole.grad = torch.ones(2)
        copy = nn.Parameter(torch.zeros(2))
        copy.grad = torch.ones(2)
        norm = torch.nn.utils.clip_grad_norm_([*expected.parameters(), copy], 0.5)
        assert clip_gradients([*sharded.parameters(), whole], 0.5) == pytest.approx(float(norm))
        for one, other in zip(sharded.parameters(), expected.parameters(), strict=True):
            assert one.grad is not None
            torch.testing.assert_close(one.grad.full_tensor(), other.grad, rtol=1e-5, atol=0)
    finally:
        dist.destroy_process_group()
