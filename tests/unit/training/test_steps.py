"""Schedule, optimizer groups and gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.position import Rope
from tandem.errors import DataError, UsageError
from tandem.model.decoder import Decoder
from tandem.training.checkpoints.store import CheckpointStore
from tandem.training.compute.batch_loss import backward
from tandem.training.compute.loss import LossModel
from tandem.training.compute.optimizer import STATE, build_optimizer, optimizer_tensors
from tandem.training.compute.schedule import Schedule, set_learning_rate
from tandem.training.data.batch import Batch
from tandem.training.data.batches import TokenBatches
from tandem.training.data.labels import IGNORED
from tandem.training.loop import Trainer
from tandem.training.progress import Silence
from tandem.training.settings.config import StageConfig
from tandem.training.stage import Stage, train

STAGE = StageConfig(steps=4, seq_length=16, global_batch=4, micro_batch=2, lr=0.01, min_lr=0.001, warmup_steps=1,
                    save_every=2, weight_decay=0.1)  # fmt: skip


@pytest.fixture
def model() -> Decoder:
    model = Decoder(ModelConfig(
        family="llama", vocab_size=64, hidden_size=16, layers=2, attention=GQA(heads=2, kv_heads=1, head_dim=8),
        position=Rope(theta=10000.0, dims=8), feed_forward=SwiGLU(size=24), norm_eps=1e-5,
        tied_embeddings=True, max_position=64,
    ))  # fmt: skip
    model.initialise(0, std=0.2)
    return model


def batch_of(rows: int, *, uneven: bool) -> Batch:
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 64, (rows, 13)))
    targets = tokens[:, 1:].clone()
    if uneven:
        for row in range(rows):
            targets[row, : 3 * row] = IGNORED
    return Batch(tokens=tokens[:, :-1], targets=targets)


def test_schedule_warms_up_and_ends_at_the_minimum() -> None:
    schedule = Schedule(peak=1.0, minimum=0.1, warmup=10, steps=110)
    assert schedule.at(1) == pytest.approx(0.1)
    assert schedule.at(10) == 1.0
    assert schedule.at(60) == pytest.approx(0.55)
    assert schedule.at(110) == pytest.approx(0.1)
    assert all(schedule.at(step) >= schedule.at(step + 1) for step in range(10, 110))
    assert Schedule(peak=1.0, minimum=0.0, warmup=0, steps=1).at(1) == 0.0


def test_only_matrices_decay(model: Decoder) -> None:
    optimizer = build_optimizer(model, STAGE)
    set_learning_rate(optimizer, 0.5)
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert decayed["lr"] == plain["lr"] == 0.5
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)].split(".")[-2] for p in plain["params"]} == {"norm", "attention_norm", "feed_forward_norm"}
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def mean_loss(model: Decoder, batch: Batch, micro_batch: int) -> torch.Tensor:
    return backward(LossModel(model), list(batch.split(micro_batch)), batch.valid())


@pytest.mark.parametrize("uneven", [False, True])
def test_micro_batches_give_the_same_gradient(model: Decoder, *, uneven: bool) -> None:
    batch = batch_of(4, uneven=uneven)
    found = []
    for micro_batch in (4, 2, 1):
        model.zero_grad()
        loss = mean_loss(model, batch, micro_batch)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((loss, torch.cat([gradient.flatten() for gradient in gradients])))
    for loss, gradient in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-5, atol=0)
        assert (gradient - found[0][1]).norm() / found[0][1].norm() < 1e-5


def test_ignored_targets_have_no_part_in_the_loss(model: Decoder) -> None:
    whole, cut = batch_of(1, uneven=False), batch_of(1, uneven=False)
    cut.targets[:, 1:] = IGNORED
    with torch.no_grad():
        logits = model(whole.tokens, whole.context())
    expected = torch.nn.functional.cross_entropy(logits[0, :1], whole.targets[0, :1])
    torch.testing.assert_close(mean_loss(model, cut, 1), expected)


def test_token_ids_of_another_tokenizer_are_refused_by_sample(model: Decoder, tmp_path: Path) -> None:
    texts = TokenBatches(np.arange(1, 67), STAGE.seq_length, 0)  # 64 and above are none of the model's
    trainer = Trainer(LossModel(model), texts, STAGE, CheckpointStore(tmp_path, {}, 1))
    with pytest.raises(DataError, match="samples 0 to 3 hold token id 64, and the model has 64 tokens; prepare them"):
        trainer.step()


def test_too_little_memory_is_said_with_what_takes_less(model: Decoder, tmp_path: Path) -> None:
    class Huge(TokenBatches):
        def at(self, position: int, count: int) -> Batch:
            torch.empty(2**50)  # more than any process can address
            return super().at(position, count)

    stage = Stage(name="sft", title="", config=STAGE, folder=tmp_path, inputs={})
    with pytest.raises(UsageError, match=r"^not enough memory \(.*\); lower the micro-batch, set recompute to full"):
        train(stage, model, Huge(np.arange(1, 60), STAGE.seq_length, 0), Silence())


def test_optimizer_state_goes_by_name_and_is_there_from_the_start(model: Decoder) -> None:
    begun, used = (optimizer_tensors(model, build_optimizer(model, STAGE)) for _ in range(2))
    assert set(begun) == {f"{name}.{part}" for name, _ in model.named_parameters() for part in STATE}
    optimizer = build_optimizer(model, STAGE)
    mean_loss(model, batch_of(2, uneven=False), 2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    plain = torch.optim.AdamW(
        [{key: group[key] for key in ("params", "weight_decay")} for group in optimizer.param_groups],
        lr=STAGE.lr, betas=(STAGE.beta1, STAGE.beta2), eps=STAGE.eps, fused=True,
    )  # fmt: skip
    after = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(before[name])
    plain.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, after[name]), name
    assert all(bool((tensor == 0).all()) for tensor in used.values())
