"""What a step makes and when: the real code of a step, run over fake tensors on a model of a few layers.

Layers of one kind cost the same, so a whole model's numbers follow from those of a few layers and of one more of each
kind. So the plan follows the code: no formula for activations has to be kept in step with it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tandem.catalogue.config import GQA, ModelConfig, MoE
from tandem.model.decoder import Decoder
from tandem.training.adapters.lora import put_on, strength_of
from tandem.training.adapters.targets import resolved
from tandem.training.compute.balance import Balance
from tandem.training.compute.batch_loss import backward
from tandem.training.compute.loss import LossModel, rows_at_once
from tandem.training.compute.recompute import apply_recompute
from tandem.training.data.batch import Batch
from tandem.training.plan.footing import Footing
from tandem.training.plan.live import LiveBytes, Snapshot

LOSS, LAST, FIRST, UPDATE = "the loss", "the last layer's backward", "the first layer's backward", "the update"
"""When memory can be highest: layers of one kind change it by equal steps, so never between the last and the first."""
KEPT, TRAINED, BETWEEN = "kept", "trained", "between"
"""Not moments: what the forward pass has kept for the backward when the loss begins; weights that are trained, in fp32;
what is left out."""

Kind = tuple[bool, bool]
"""Of a layer: whether it is a mixture, and whether it has a sliding window."""


def moments_of(config: ModelConfig, footing: Footing) -> dict[str, Snapshot]:
    """The highest points of one rank's step by their names, and `KEPT`; weights are taken to be whole and alone."""
    kinds = Counter(kind_of(config, layer) for layer in range(config.layers))
    if config.layers <= 2 * len(kinds) + 1:
        return _traced(config, footing)
    base = [kind for kind in kinds for _ in range(min(kinds[kind], 2))]
    few = _traced(with_layers(config, base), footing)
    whole = few
    for kind, count in kinds.items():
        more = _traced(with_layers(config, sorted([*base, kind], key=list(kinds).index)), footing)
        times = count - base.count(kind)
        whole = {name: moment.plus(more[name].plus(few[name], -1), times) for name, moment in whole.items()}
    return whole


def kind_of(config: ModelConfig, layer: int) -> Kind:
    """What distinguishes a layer from others of its model."""
    window = config.attention.window if isinstance(config.attention, GQA) else None
    return isinstance(config.feed_forward_of(layer), MoE), window is not None and layer in window.layers


def with_layers(config: ModelConfig, kinds: list[Kind]) -> ModelConfig:
    """The model with layers of these kinds; plain ones stand before mixtures."""
    attention, part = config.attention, config.feed_forward
    if isinstance(attention, GQA) and attention.window is not None:
        sliding = tuple(layer for layer, (_, slides) in enumerate(kinds) if slides)
        attention = replace(attention, window=replace(attention.window, layers=sliding) if sliding else None)
    if isinstance(part, MoE):
        part = replace(part, dense_layers=sum(not mixes for mixes, _ in kinds))
    return replace(config, layers=len(kinds), attention=attention, feed_forward=part)


def _traced(config: ModelConfig, footing: Footing) -> dict[str, Snapshot]:
    with FakeTensorMode():
        model = _model(config, footing)
        dtype = getattr(torch, footing.precision)
        live = LiveBytes(list(model.parameters()))
        _announce(model, live)
        # Every micro-batch after the first has the same highest points.
        batch = _batch(config, footing, min(footing.micro_batches, 2))
        for tensor in (batch.tokens, batch.targets, batch.segments, batch.samples):
            if tensor is not None:
                live.leave_out(tensor)
        with live:
            loss = LossModel(model, _rows(config, footing))
            backward(loss, list(batch.split(footing.micro_batch)), 1, dtype, Balance(model, footing.balance))
            live.begin(UPDATE)
        live.most[TRAINED] = Snapshot(other=sum(4 * one.numel() for one in model.parameters() if one.requires_grad))
        return {name: most for name, most in live.most.items() if name != BETWEEN}


def _model(config: ModelConfig, footing: Footing) -> Decoder:
    model = Decoder(config).unfreeze().train()
    if footing.lora is not None:
        put_on(model, dict.fromkeys(resolved(config, footing.lora), strength_of(footing.lora)))
        model.train()
    if footing.ranks > 1:  # FSDP itself gathers the parameters in the type that is computed in
        _round(model, getattr(torch, footing.precision))
    apply_recompute(model, footing.recompute)
    return model


def _round(model: Decoder, dtype: torch.dtype) -> None:
    """What `model.to(dtype)` does, which fake tensors do not take."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(weight.detach().to(dtype), weight.requires_grad)


def _rows(config: ModelConfig, footing: Footing) -> int:
    """As many logits at once as there will be, but in few pieces, each of which takes time here."""
    tokens = footing.micro_batch * footing.seq_length
    return max(rows_at_once(config.vocab_size, footing.device), tokens // 32)


def _batch(config: ModelConfig, footing: Footing, micro_batches: int) -> Batch:
    shape = (footing.micro_batch * micro_batches, footing.seq_length)
    tokens = torch.zeros(shape, dtype=torch.int64)
    batch = Batch(tokens=tokens, targets=tokens.clone(), segments=tokens.clone() if footing.packed else None)
    return batch.numbered(0)


def _announce(model: Decoder, live: LiveBytes) -> None:
    """Have the model tell when the step comes to which part of it."""
    live.begin(LOSS)
    model.embedding.register_forward_pre_hook(lambda module, inputs: live.begin(LOSS))
    model.norm.register_forward_hook(lambda module, inputs, output: live.mark(KEPT))
    last = len(model.layers) - 1
    for number, block in enumerate(model.layers):
        phase = FIRST if number == 0 else LAST if number == last else BETWEEN
        block.register_forward_hook(partial(_announce_backward, live, phase))


def _announce_backward(live: LiveBytes, phase: str, module: nn.Module, inputs: object, output: Tensor) -> None:
    if output.requires_grad:
        output.register_hook(lambda gradient: live.begin(phase))  # type: ignore[no-untyped-call]
