"""How many tokens each expert gets, counted once however a batch is cut; and the biases that go by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rank_suite
import torch
from marred_batches import POISON, Marred, Without
from recording import Recording
from safetensors.torch import load_file
from torch import Tensor

from tandem.catalogue.generation import GenerationDefaults
from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import SmallShape, shrink
from tandem.errors import RecipeError
from tandem.model.context import CausalContext
from tandem.model.decoder import Decoder
from tandem.model.experts import Router
from tandem.model.random_weights import random_decoder
from tandem.parallel.world import World
from tandem.training.adapters.lora import apply_lora
from tandem.training.checkpoints.store import CheckpointStore
from tandem.training.compute.gathering import Gathering
from tandem.training.compute.loss import LossModel
from tandem.training.data.batch import Batch, Batches
from tandem.training.loop import Trainer
from tandem.training.settings.config import LoraConfig, StageConfig
from tandem.training.stage import Stage, train

CPU = torch.device("cpu")


def small(name: str, vocab: int = rank_suite.VOCABULARY) -> Decoder:
    config = shrink(MODELS[name].config, SmallShape(layers=2, vocab=vocab))
    return random_decoder(config, torch.float32, 0).unfreeze()


def routers_of(decoder: Decoder) -> list[Router]:
    return [module for module in decoder.modules() if isinstance(module, Router)]


def chosen_alone(decoder: Decoder, sequences: list[Tensor]) -> list[list[int]]:
    """Of each layer, how often its experts are chosen when every sequence comes by itself."""
    found = [[0] * router.mixture.experts for router in routers_of(decoder)]

    def count(loads: list[int], chosen: Tensor) -> None:
        for expert in chosen.flatten().tolist():
            loads[expert] += 1

    for loads, router in zip(found, routers_of(decoder), strict=True):
        router.register_forward_hook(lambda module, rows, given, loads=loads: count(loads, given[1]))
    with torch.no_grad():
        for tokens in sequences:
            decoder(tokens[None], CausalContext(1, len(tokens), CPU))
    return found


@pytest.mark.parametrize("name", [pytest.param("mixtral-8x7b", marks=pytest.mark.full), "deepseek-v3"])
def test_tokens_are_counted_once_however_a_batch_is_cut_and_biases_follow(name: str) -> None:
    expected = chosen_alone(small(name), [rank_suite.conversation(place) for place in range(rank_suite.GLOBAL_BATCH)])
    means = [sum(loads) / len(loads) for loads in expected]
    for case in (*rank_suite.CASES, rank_suite.Case(8)):
        trainer = rank_suite.trainer_of(name, case, World())
        report, _ = trainer.step()
        assert report is not None
        assert trainer._balance.loads.counts.tolist() == expected, case
        assert report.load_max == pytest.approx(max(max(own) / mean for own, mean in zip(expected, means, strict=True)))
        if name == "deepseek-v3":
            for after, before, own, mean in zip(
                routers_of(trainer.model.decoder), routers_of(small(name)), expected, means, strict=True
            ):
                signs = torch.tensor([float((mean > load) - (mean < load)) for load in own])
                assert {-1.0, 1.0} <= set(signs.tolist())
                assert torch.equal(after.bias, before.bias + rank_suite.SPEED * signs)


class Given:
    """One batch for ever."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def at(self, position: int, count: int) -> Batch:
        return next(self._batch.split(count))


def test_what_ranks_count_adds_up() -> None:
    batch = rank_suite.Conversations(packed=False).at(0, rank_suite.GLOBAL_BATCH)
    counts = []
    for share in (batch, *batch.split(3), batch.blank()):
        rows = len(share.tokens)
        trainer = trainer_of(small("deepseek-v3"), Path("unused"), Given(share), global_batch=rows, micro_batch=rows)
        trainer.step()
        counts.append(trainer._balance.loads.counts)
    whole, *shares = counts
    assert torch.equal(sum(shares), whole)
    assert not shares[-1].any()


def trainer_of(decoder: Decoder, folder: Path, batches: Batches, **settings: Any) -> Trainer:
    usual = {"steps": 8, "seq_length": 24, "global_batch": 4, "micro_batch": 2, "lr": 1e-3, "min_lr": 1e-4,
             "warmup_steps": 1, "save_every": 4, "balance_bias": 0.01}  # fmt: skip
    config = StageConfig(**usual | settings)
    return Trainer(LossModel(decoder), batches, config, CheckpointStore(folder, {}, 2))


def test_loads_even_out_in_thirty_steps() -> None:
    """Without the other loss; random biases send most tokens to a few experts at first."""
    first, late = {}, {}
    for speed in (0.0, 0.02):
        batches = rank_suite.Conversations(packed=True)
        trainer = trainer_of(small("deepseek-v3"), Path("unused"), batches, steps=30, global_batch=8, micro_batch=8,
                             balance=0.0, balance_bias=speed)  # fmt: skip
        found = [report.load_max for report, _ in (trainer.step() for _ in range(30)) if report and report.load_max]
        first[speed], late[speed] = found[0], sum(found[-5:]) / 5
    assert first[0.0] == first[0.02] > 3
    assert late[0.0] > 3
    assert late[0.02] < 1.9


def poisonous() -> Decoder:
    decoder = small("deepseek-v3", POISON + 1)
    with torch.no_grad():
        decoder.embedding.weight[POISON] = torch.inf
    return decoder


def course(folder: Path, batches: Batches, *steps: int, **settings: Any) -> dict[str, Tensor]:
    """Parameters and the optimizer's state in the last checkpoint, of a run that was stopped at each of `steps`."""
    for last in (*steps, 8):
        trainer = trainer_of(poisonous(), folder, batches, **settings)
        trainer._config = trainer._config.model_copy(update={"steps": last})
        trainer.resume()
        trainer.run(None, Recording())
    return load_file(folder / "iter_0000008" / "rank_00000.safetensors")


def test_biases_are_part_of_a_checkpoint_and_go_on_bit_for_bit(tmp_path: Path) -> None:
    whole, parts = course(tmp_path / "a", Without(0, 0)), course(tmp_path / "b", Without(0, 0), 4)
    assert [name for name in whole if "router.bias" in name] == ["model.layers.1.feed_forward.router.bias"]
    same(whole, parts)


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_a_batch_that_is_left_out_moves_no_bias(tmp_path: Path, action: str) -> None:
    begin = {"skip": 20, "rollback": 16}[action]  # of step 6, and of what came after the checkpoint before it
    found = course(tmp_path / "a", Marred(poisoned=[21]), guard={"on_nan": action})
    same(found, course(tmp_path / "b", Without(begin, 24)))


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def staged(name: str, decoder: Decoder, folder: Path, **settings: Any) -> Recording:
    config = StageConfig(steps=2, seq_length=24, global_batch=4, micro_batch=2, lr=1e-3, min_lr=1e-4, warmup_steps=1,
                         save_every=2, **settings)  # fmt: skip
    progress = Recording()
    stage = Stage(name=name, title="", config=config, folder=folder, inputs={})
    train(stage, decoder, rank_suite.Conversations(packed=True), progress)
    return progress


@pytest.mark.parametrize(("stage", "settings", "most"), [("pretrain", {}, 0.002), ("sft", {}, 0.0),
                                                         ("sft", {"balance_bias": 0.5}, 1.0)])  # fmt: skip
def test_only_pretraining_moves_biases_unasked_and_exports_them(
    tmp_path: Path, stage: str, settings: dict[str, float], most: float
) -> None:
    decoder, before = small("deepseek-v3"), small("deepseek-v3").get_parameter("layers.1.feed_forward.router.bias")
    notes = staged(stage, decoder, tmp_path / "run", **settings).notes
    Gathering(decoder, World()).save(torch.bfloat16, tmp_path / "model", GenerationDefaults(), {})
    after = load_file(tmp_path / "model" / "model.safetensors")["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert float((after - before).abs().max()) == pytest.approx(most, rel=1e-4)
    assert any("loss with coefficient 0.001 over each sequence by itself" in note for note in notes)
    assert any("biases move by" in note for note in notes) == bool(most)


def test_biases_that_cannot_move_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"balance_bias 0\.01: the model's routers have no biases"):
        staged("pretrain", small("mixtral-8x7b"), tmp_path, balance_bias=0.01)
    decoder = small("deepseek-v3")
    apply_lora(decoder, LoraConfig(rank=2), 0)
    with pytest.raises(RecipeError, match=r"balance_bias 0\.01: adapters leave the routers' biases as they are"):
        staged("lora", decoder, tmp_path, balance_bias=0.01)
    before = decoder.get_parameter("layers.1.feed_forward.router.bias").clone()
    assert staged("lora", decoder, tmp_path).reports[-1].load_max is not None
    assert torch.equal(decoder.get_parameter("layers.1.feed_forward.router.bias"), before)
