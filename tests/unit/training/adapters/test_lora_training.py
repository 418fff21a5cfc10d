"""Training adapters: what moves, what is kept, and that what is dropped depends on the place in the data alone."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import adapter_run
import pytest
import torch
from adapter_run import Questions, run, stage_of
from adapters import FAMILIES, base_of, every_target, lora_parameters
from safetensors.torch import load_file
from torch import Tensor

from tandem.errors import CheckpointError
from tandem.model.decoder import Decoder
from tandem.model.folder import load
from tandem.parallel.world import World
from tandem.training.adapters.dropout import drop, key_of
from tandem.training.adapters.lora import apply_lora
from tandem.training.compute.batch_loss import backward
from tandem.training.compute.loss import LossModel
from tandem.training.compute.recompute import apply_recompute
from tandem.training.data.batch import Batch
from tandem.training.launch.ranks import Hosts, run_ranks
from tandem.training.progress import Silence
from tandem.training.settings.config import LoraConfig, Recompute
from tandem.training.stage import Stage, train


@pytest.mark.parametrize("family", FAMILIES)
def test_training_lowers_the_loss_and_moves_factors_alone(family: str, tmp_path: Path) -> None:
    decoder = base_of(family, tmp_path / "base")
    before = {name: parameter.detach().clone() for name, parameter in decoder.named_parameters()}
    apply_lora(decoder, LoraConfig(rank=4), 0)
    drawn = {name: factor.detach().clone() for name, factor in lora_parameters(decoder).items()}
    train(Stage(name="lora", title="", config=stage_of(), folder=tmp_path, inputs={}), decoder, Questions(), Silence())
    losses = losses_in(tmp_path)
    assert losses[-1] < 0.8 * losses[0]
    for name, parameter in decoder.named_parameters():
        assert torch.equal(parameter, before[name]) if name in before else not torch.equal(parameter, drawn[name])
    saved = load_file(next((tmp_path / "checkpoints" / "iter_0000006").glob("*.safetensors")))
    held = {re.sub(r"\.(step|exp_avg|exp_avg_sq)$", "", re.split(r"[@ ]", name)[0]) for name in saved}
    assert {name.partition(".")[2] for name in held} == drawn.keys()


def losses_in(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def saved_in(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_a_resumed_run_is_the_same_bit_for_bit_with_dropout(tmp_path: Path) -> None:
    base_of("llama", tmp_path / "base")
    check_resumes(tmp_path, dropout=0.3)
    base_of("qwen2", tmp_path / "other")
    with pytest.raises(CheckpointError, match="base was"):
        run(tmp_path / "other", tmp_path / "parts", 7, World())


@pytest.mark.full
@pytest.mark.parametrize("family", [*FAMILIES, "qwen2, tied"])
def test_a_resumed_run_is_the_same_with_adapters_on_everything(family: str, tmp_path: Path) -> None:
    check_resumes(tmp_path, targets=every_target(base_of(family, tmp_path / "base").config))


def check_resumes(folder: Path, **lora: object) -> None:
    run(folder / "base", folder / "whole", 6, World(), **lora)
    for steps in (3, 6):
        run(folder / "base", folder / "parts", steps, World(), **lora)
    ours, theirs = (saved_in(folder / name / "adapter-6") for name in ("whole", "parts"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert losses_in(folder / "whole") == losses_in(folder / "parts")


@pytest.mark.full
@pytest.mark.parametrize(
    ("family", "ranks", "lora"),
    [
        ("llama", 2, {"dropout": 0.3}),
        ("mixtral", 3, {}),
        ("deepseek_v3", 2, {}),
        ("qwen2", 3, {"targets": ("q_proj", "embed_tokens", "lm_head")}),
        ("baichuan2-13b", 3, {"dropout": 0.3}),
    ],
)
def test_several_ranks_train_what_one_does_and_go_on_from_it(
    family: str, ranks: int, lora: dict[str, object], tmp_path: Path
) -> None:
    base_of(family, tmp_path / "base")
    run(tmp_path / "base", tmp_path / "alone", 6, World(), **lora)
    run(tmp_path / "base", tmp_path / "together", 3, World(), **lora)
    words = [str(tmp_path / "base"), str(tmp_path / "together"), "6", json.dumps(lora)]
    run_ranks([sys.executable, adapter_run.__file__, *words], Hosts(ranks=ranks), tmp_path / "logs")
    assert losses_in(tmp_path / "together") == pytest.approx(losses_in(tmp_path / "alone"), rel=1e-5)
    ours, theirs = (saved_in(tmp_path / name / "adapter-6") for name in ("alone", "together"))
    distance = sum(float((tensor - theirs[name]).norm()) for name, tensor in ours.items())
    assert distance / sum(float(tensor.norm()) for tensor in ours.values()) < 1e-4


UNLIKE = ("mixtral", "qwen", "deepseek_v3", "baichuan2-13b")
"""Families that have all kinds of modules among them."""


@pytest.mark.parametrize(
    "family", [pytest.param(one, marks=[pytest.mark.full] * (one not in UNLIKE)) for one in FAMILIES]
)
def test_training_in_bfloat16_lowers_the_loss_too(family: str, tmp_path: Path) -> None:
    base_of(family, tmp_path / "base")
    decoder = load(tmp_path / "base", torch.device("cpu"), torch.bfloat16)
    apply_lora(decoder, LoraConfig(rank=4, targets=every_target(decoder.config)), 0)
    stage = Stage(name="lora", title="", config=stage_of(precision="bfloat16"), folder=tmp_path, inputs={})
    train(stage, decoder, Questions(), Silence())
    assert {factor.dtype for factor in lora_parameters(decoder).values()} == {torch.float32}
    losses = losses_in(tmp_path)
    assert losses[-1] < 0.8 * losses[0]


def gradients(decoder: Decoder, batch: Batch, micro_batch: int) -> torch.Tensor:
    decoder.zero_grad()
    backward(LossModel(decoder), list(batch.split(micro_batch)), batch.valid())
    return torch.cat([p.grad.flatten() for p in lora_parameters(decoder).values() if p.grad is not None])


@pytest.mark.parametrize("family", ["llama", "qwen2", "chatglm3", "baichuan2-13b"])
def test_what_is_dropped_does_not_depend_on_the_split(family: str, tmp_path: Path) -> None:
    decoder = base_of(family, tmp_path / "base").train()
    apply_lora(decoder, LoraConfig(rank=4, dropout=0.4), 3)
    for name, factor in lora_parameters(decoder).items():
        torch.nn.init.normal_(factor, std=0.1, generator=torch.Generator().manual_seed(key_of(0, name)))
    batch = Questions().at(8, 4).numbered(8)
    found = [gradients(decoder, batch, micro_batch) for micro_batch in (4, 2, 1)]
    for gradient in found[1:]:
        assert (gradient - found[0]).norm() / found[0].norm() < 1e-5
    elsewhere = gradients(decoder, batch.numbered(9), 4)
    assert (elsewhere - found[0]).norm() / found[0].norm() > 0.1
    decoder.eval()
    assert (gradients(decoder, batch, 4) - gradients(decoder, replace(batch, samples=None), 4)).abs().max() == 0


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_a_recomputed_block_drops_the_same_however_late(mode: Recompute, tmp_path: Path) -> None:
    decoder = base_of("llama", tmp_path / "base").train()
    apply_lora(decoder, LoraConfig(rank=4, dropout=0.4), 3)
    batch = Questions().at(0, 4).numbered(0)
    plain = gradients(decoder, batch, 2)
    apply_recompute(decoder, mode)
    assert torch.equal(gradients(decoder, batch, 2), plain)
    decoder.zero_grad()
    model = LossModel(decoder)
    # As a pipeline does: all forwards, then all backwards, the last one first.
    losses = [model(part.tokens, part.targets, part.context()) for part in batch.split(2)]
    for loss in reversed(losses):
        (loss / batch.valid()).backward()
    late = torch.cat([p.grad.flatten() for p in lora_parameters(decoder).values() if p.grad is not None])
    assert (late - plain).norm() / plain.norm() < 1e-5


def test_dropping_keeps_the_expected_value_and_differs_by_every_coordinate() -> None:
    x = torch.ones(4, 50, 70)
    samples = torch.tensor([0, 1, 2**40, 5])
    out = drop(x, 0.25, key_of(0, "q"), samples)
    assert (out == 0).float().mean() == pytest.approx(0.25, abs=0.01)
    assert out[out != 0].unique().tolist() == pytest.approx([4 / 3])
    zeros = (out == 0).float()
    for one, other in [
        (zeros[0], zeros[1]),
        (zeros[:, 0], zeros[:, 1]),
        (zeros[..., 0], zeros[..., 1]),
        (zeros[2], zeros[3]),
    ]:
        assert (one * other).mean() == pytest.approx(0.25**2, abs=0.035)
    assert torch.equal(drop(x[1:, :30], 0.25, key_of(0, "q"), samples[1:]), out[1:, :30])
    assert not torch.equal(drop(x, 0.25, key_of(0, "k"), samples), out)
    assert not torch.equal(drop(x, 0.25, key_of(1, "q"), samples), out)
    assert torch.equal(drop(x, 0.0, key_of(0, "q"), samples), x)
