"""The plan against what PyTorch's allocator reports of real steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import TINY
from torch.profiler import ProfilerActivity, profile

from tandem.catalogue.config import GQA, ModelConfig, Window
from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import parse_shape, shrink
from tandem.errors import UsageError
from tandem.model.decoder import Decoder
from tandem.training.adapters.lora import apply_lora
from tandem.training.compute.balance import Balance
from tandem.training.compute.batch_loss import backward
from tandem.training.compute.clipping import clip_gradients
from tandem.training.compute.loss import LossModel
from tandem.training.compute.optimizer import build_optimizer
from tandem.training.compute.recompute import apply_recompute
from tandem.training.data.batch import Batch
from tandem.training.plan.drawing import advice, draw_plan
from tandem.training.plan.fit import changes, cheapest_fit
from tandem.training.plan.footing import Footing
from tandem.training.plan.memory import MemoryPlan, estimate, least, most
from tandem.training.plan.trace import UPDATE, kind_of, with_layers
from tandem.training.settings.config import LoraConfig, Recompute, StageConfig

SMALL = Footing(seq_length=128, micro_batch=2)
STAGE = StageConfig(steps=4, seq_length=16, global_batch=4, micro_batch=2, lr=0.01, min_lr=0.001, warmup_steps=1,
                    save_every=2)  # fmt: skip


def small(name: str, shape: str) -> ModelConfig:
    return shrink(MODELS[name].config, parse_shape(shape))


def tensors(plan: MemoryPlan) -> int:
    """The plan without what is not PyTorch's."""
    return plan.total - plan.process - plan.heap


def measured(config: ModelConfig, footing: Footing) -> int:
    """Most bytes that PyTorch's allocator had out in a real step after the first, the model's own included."""
    model = Decoder(config)
    model.initialise(0)
    model.unfreeze().train()
    if footing.lora is not None:
        apply_lora(model, footing.lora, 0)
    apply_recompute(model, footing.recompute)
    losses, optimizer = LossModel(model), build_optimizer(model, STAGE)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (footing.micro_batch * footing.micro_batches, footing.seq_length),
                           generator=generator)  # fmt: skip
    batch = Batch(tokens=tokens, targets=tokens.clone(), segments=torch.zeros_like(tokens) if footing.packed else None)
    batch = batch.numbered(0)

    def step() -> None:
        optimizer.zero_grad()
        parts, dtype = list(batch.split(footing.micro_batch)), getattr(torch, footing.precision)
        backward(losses, parts, batch.valid(), dtype, Balance(losses.decoder))
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()

    step()
    optimizer.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    there = sum((3 if one.requires_grad else 1) * one.nbytes for one in model.parameters())  # and exp_avg, exp_avg_sq
    return most + there + sum(part.nbytes for part in (batch.tokens, batch.targets, batch.segments) if part is not None)


@pytest.mark.filterwarnings("ignore:Profiler clears events")
@pytest.mark.parametrize(
    ("name", "shape", "footing"),
    [
        ("llama3-8b", "layers=4", SMALL),
        ("llama3-8b", "layers=4", replace(SMALL, recompute="full")),
        ("llama3-8b", "layers=4", replace(SMALL, lora=LoraConfig(rank=4))),
        ("llama3-8b", "layers=4", replace(SMALL, lora=LoraConfig(rank=4, dropout=0.1))),
        ("mixtral-8x7b", "layers=3", replace(SMALL, precision="bfloat16")),
    ],
)
def test_the_plan_is_what_a_real_step_takes(name: str, shape: str, footing: Footing) -> None:
    config = small(name, shape)
    assert tensors(estimate(config, footing)) == pytest.approx(measured(config, footing), rel=0.1)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:Profiler clears events")
@pytest.mark.parametrize(
    ("name", "shape", "footing"),
    [
        ("llama3-8b", "layers=6", replace(SMALL, recompute="selective", micro_batches=2)),
        ("llama3-8b", "layers=6", replace(SMALL, precision="bfloat16")),
        ("llama3-8b", "layers=9,hidden=192,vocab=256", Footing(seq_length=256)),
        ("qwen2-0.5b", "layers=2,hidden=96,vocab=40000", Footing(seq_length=64, micro_batch=4, micro_batches=2)),
        ("baichuan2-13b", "layers=6", replace(SMALL, packed=True)),
        ("mistral-7b", "layers=7", SMALL),
    ],
)
def test_so_it_is_in_other_shapes(name: str, shape: str, footing: Footing) -> None:
    config = small(name, shape)
    assert tensors(estimate(config, footing)) == pytest.approx(measured(config, footing), rel=0.1)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:Profiler clears events")
@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_so_it_is_for_every_model(name: str, recompute: Recompute) -> None:
    config = small(name, "layers=5")
    footing = Footing(seq_length=96, micro_batch=2, micro_batches=2, recompute=recompute)
    plan = estimate(config, footing)
    assert tensors(plan) == pytest.approx(measured(config, footing), rel=0.15)
    assert least(config, footing) <= plan.total <= most(config, footing)


def test_layers_are_sorted_by_kind() -> None:
    window = Window(size=4, layers=(1, 3))
    config = replace(TINY, layers=4, attention=GQA(heads=4, kv_heads=2, head_dim=16, window=window))
    assert [kind_of(config, layer) for layer in range(4)] == [(False, False), (False, True)] * 2
    fewer = with_layers(config, [(False, False), (False, True)])
    assert [kind_of(fewer, layer) for layer in range(2)] == [(False, False), (False, True)]
    deepseek = MODELS["deepseek-v3"].config
    assert [kind_of(deepseek, layer)[0] for layer in range(5)] == [False, False, False, True, True]
    assert with_layers(deepseek, [(False, False), (True, False)]).feed_forward.dense_layers == 1


def test_ranks_share_and_gather() -> None:
    config = MODELS["llama2-7b"].config
    one, eight = (estimate(config, Footing(seq_length=512, ranks=ranks, device="cuda")) for ranks in (1, 8))
    assert eight.weights == one.weights // 8
    assert eight.optimizer == 2 * eight.weights
    assert one.gathered == 0
    layer = (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) * 4
    root = (2 * 32000 * 4096 + 4096) * 4
    assert eight.gathered == root + 3 * layer
    assert one.process == one.heap == 0


def test_ranks_have_the_gradients_of_embedding_and_head_twice_when_they_are_summed() -> None:
    config = small("llama2-7b", "layers=4,hidden=1024,vocab=32000")
    plan = estimate(config, Footing(seq_length=256, ranks=3, device="cuda"))
    assert plan.moment == UPDATE
    assert plan.gathered == 3 * (2 * 32000 * 1024 + 1024) * 4


def test_ranks_compute_with_what_they_gather_rounded() -> None:
    footing = Footing(seq_length=64, precision="bfloat16", device="cuda")
    one, two = (estimate(TINY, replace(footing, ranks=ranks)) for ranks in (1, 2))
    assert two.copies == 0
    assert two.activations == pytest.approx(one.activations, rel=0.02)
    assert two.buffers < 1.2 * one.buffers


def test_more_tokens_take_more_and_recomputation_less() -> None:
    config = replace(TINY, layers=6)
    plain = estimate(config, SMALL)
    assert estimate(config, replace(SMALL, micro_batch=4)).activations > 1.9 * plain.activations
    assert estimate(config, replace(SMALL, recompute="selective")).activations < plain.activations
    assert estimate(config, replace(SMALL, recompute="full")).activations < plain.activations / 3


def test_changes_come_by_their_cost() -> None:
    footing = Footing(seq_length=8, micro_batch=4, recompute="selective", device="cuda")
    names = [what for what, _ in changes(footing)]
    assert names[:5] == [
        "micro-batch 2",
        "micro-batch 1",
        "recompute full",
        "micro-batch 2 and recompute full",
        "micro-batch 1 and recompute full",
    ]
    assert names[5] == "2 ranks, micro-batch 1, recompute full"
    on_cpus = [what for what, _ in changes(replace(footing, device="cpu", ranks=2))]
    assert on_cpus[5] == "2 times as many hosts, micro-batch 1, recompute full", "ranks of a host share its memory"
    for _, changed in changes(Footing(seq_length=8, micro_batch=6, micro_batches=2)):
        assert changed.micro_batch * changed.micro_batches == 12


def test_the_cheapest_change_that_fits() -> None:
    config, footing = TINY, replace(SMALL, device="cuda")
    wanted = estimate(config, replace(footing, micro_batch=1, micro_batches=2))
    change = cheapest_fit(config, footing, wanted.total)
    assert change is not None
    assert (change.what, change.plan) == ("micro-batch 1", wanted)
    assert cheapest_fit(config, footing, 1000) is None
    assert advice(change).startswith("would fit: micro-batch 1 (")
    assert "lora" in advice(None)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
@pytest.mark.parametrize("ranks", [1, 2])
def test_no_plan_is_below_the_least(ranks: int, lora: LoraConfig | None) -> None:
    footing = Footing(seq_length=16, recompute="full", ranks=ranks, lora=lora, device="cuda")
    config = replace(TINY, layers=3)
    plan = estimate(config, footing)
    assert 0.5 * (plan.total - plan.gathered) < least(config, footing) <= plan.total <= most(config, footing)


def test_what_cannot_fit_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Footing] = []

    def noted(config: ModelConfig, footing: Footing) -> MemoryPlan:
        asked.append(footing)
        return estimate(config, footing)

    monkeypatch.setattr("tandem.training.plan.fit.estimate", noted)
    footing = Footing(seq_length=64, micro_batch=4, device="cuda")
    change = cheapest_fit(TINY, footing, least(TINY, footing) - 1)
    assert change is not None
    assert change.footing.ranks > 1
    assert all(one.ranks > 1 for one in asked), "weights and averages alone are too much"


def test_balance_takes_memory_where_it_acts() -> None:
    config = small("mixtral-8x7b", "layers=3")
    off, on = (estimate(config, replace(SMALL, balance=balance)) for balance in (0.0, 0.02))
    assert off.activations < on.activations


def test_the_table_says_whether_it_fits() -> None:
    from rich.console import Console

    plan = estimate(TINY, SMALL)
    console = Console(width=120)
    with console.capture() as drawn:
        console.print(draw_plan(plan, plan.total))
        console.print(draw_plan(plan, plan.total - 2**30))
    text = drawn.get()
    assert "highest in the loss" in text
    assert "fits" in text
    assert "does not fit, 1.00 GiB too much" in text
    assert sum(value for name, value in plan.as_json().items() if name not in ("moment", "total")) == plan.total


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="micro_batch 0"):
        Footing(seq_length=4, micro_batch=0)
