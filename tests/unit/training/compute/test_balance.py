"""The loss that evens a mixture's experts: against transformers', against its formula, and however a batch is cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import rank_suite
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from tandem.catalogue.config import GroupedSigmoidRouter, MoE, SoftmaxRouter
from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import SmallShape, shrink
from tandem.model.decoder import Decoder
from tandem.model.experts import Router
from tandem.model.random_weights import random_decoder
from tandem.parallel.world import World
from tandem.training.compute.balance import Balance, factor_of, imbalance
from tandem.training.compute.batch_loss import backward
from tandem.training.compute.loss import LossModel
from tandem.training.compute.recompute import apply_recompute
from tandem.training.data.batch import Batch
from tandem.training.data.labels import IGNORED

LENGTHS = (5, 9, 2)


def router_of(mixture: MoE) -> tuple[Router, Tensor]:
    router = Router(6, mixture)
    torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(1))
    return router, torch.randn(sum(LENGTHS), 6, generator=torch.Generator().manual_seed(2))


def test_one_layer_and_sequence_is_what_transformers_computes() -> None:
    mixture = MoE(experts=4, top_k=2, size=3, router=SoftmaxRouter(), balance=0.02)
    router, rows = router_of(mixture)
    logits = rows @ router.weight.T
    numbers = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    found = imbalance(router.scores(rows), router(rows)[1], numbers, torch.tensor(LENGTHS))
    theirs = [load_balancing_loss_func((one,), 4, 2) for one in logits.split(LENGTHS)]
    expected = sum(length * one for length, one in zip(LENGTHS, theirs, strict=True))
    torch.testing.assert_close(found, expected)
    (ours,) = torch.autograd.grad(found, router.weight, retain_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, router.weight)[0])
    assert factor_of(mixture, layers=5, coefficient=None) == 0.02 / 5


def test_sigmoid_scores_are_balanced_by_the_papers_formula() -> None:
    router = GroupedSigmoidRouter(groups=2, chosen_groups=1, scale=2.5, normalise=True)
    mixture = MoE(experts=6, top_k=2, size=3, router=router, balance=0.001)
    ours, rows = router_of(mixture)
    chosen = ours(rows)[1]
    expected = 0.0
    begin = 0
    for length in LENGTHS:
        affinity = (rows[begin : begin + length] @ ours.weight.detach().T).sigmoid()
        for expert in range(6):
            f = 6 / (2 * length) * sum(expert in token for token in chosen[begin : begin + length].tolist())
            p = sum(float(one[expert] / one.sum()) for one in affinity) / length
            expected += length * 0.001 * f * p
        begin += length
    numbers = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    found = imbalance(ours.scores(rows), chosen, numbers, torch.tensor(LENGTHS)) * factor_of(mixture, 3, None)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def gradients(name: str, packed: bool, micro_batch: int, recompute: Any, coefficient: float) -> tuple[Tensor, float]:
    """Of the balance alone: a batch whose words count for nothing."""
    config = shrink(MODELS[name].config, SmallShape(layers=3, vocab=rank_suite.VOCABULARY))
    decoder = random_decoder(config, torch.float32, 0).unfreeze()
    apply_recompute(decoder, recompute)
    model = LossModel(decoder).train()
    batch = rank_suite.Conversations(packed=packed).at(0, 2 if packed else 4)
    balance = Balance(decoder, coefficient)
    balance.begin(29, torch.device("cpu"))
    backward(model, list(batch.split(micro_batch)), 10**9, torch.float32, balance)
    moved = [one.grad.flatten() for one in decoder.parameters() if one.grad is not None]
    return torch.cat(moved), float(balance.total)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3"])
def test_cuts_packing_and_recomputation_change_nothing(name: str) -> None:
    expected, total = gradients(name, False, 1, "none", 1.0)
    assert total > 0.5
    assert float(expected.norm()) > 1e-4
    for packed, micro_batch, recompute in ((False, 4, "none"), (True, 2, "none"), (True, 1, "full"),
                                           (False, 2, "selective")):  # fmt: skip
        found, same = gradients(name, packed, micro_batch, recompute, 1.0)
        assert float((found - expected).norm() / expected.norm()) < 1e-5, (packed, micro_batch, recompute)
        assert same == pytest.approx(total, rel=1e-5)


def test_what_is_published_is_taken_unless_a_setting_says_otherwise() -> None:
    def reported(coefficient: float | None) -> float | None:
        trainer = rank_suite.trainer_of("mixtral-8x7b", rank_suite.Case(2), World(), balance=coefficient)
        report, _ = trainer.step()
        assert report is not None
        return report.balance

    published, twice = reported(None), reported(0.04)
    assert published is not None
    assert twice == pytest.approx(2 * published)
    assert reported(0.0) is None


def test_without_a_coefficient_nothing_happens() -> None:
    config = shrink(MODELS["mixtral-8x7b"].config, SmallShape(layers=1, vocab=9))
    assert isinstance(config.feed_forward, MoE)
    config = replace(config, feed_forward=replace(config.feed_forward, balance=0.0))
    assert not Balance(Decoder(config)).acts
    assert not Balance(Decoder(shrink(MODELS["yi-6b"].config, SmallShape(layers=1, vocab=9))), 1.0).acts


def test_padding_chooses_no_expert() -> None:
    config = shrink(MODELS["mixtral-8x7b"].config, SmallShape(layers=1, vocab=9))
    decoder = random_decoder(config, torch.float32, 0).unfreeze()
    tokens = torch.tensor([[1, 2, 3, 4]])
    totals = []
    for padding in (0, 5):
        batch = Batch(
            tokens=torch.cat((tokens, torch.full((1, 3), padding)), dim=1),
            targets=torch.tensor([[2, 3, 4, *[IGNORED] * 4]]),
        )
        balance = Balance(decoder, 1.0)
        balance.begin(4, torch.device("cpu"))
        backward(LossModel(decoder), [batch], 3, torch.float32, balance)
        totals.append(float(balance.total))
    assert totals[0] == pytest.approx(totals[1])
    assert 0.9 < totals[0] < 4
