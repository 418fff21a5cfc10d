"""Named models and configurations drawn for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.table import Table

from tandem.catalogue.config import GQA, MLA, GroupedSigmoidRouter, ModelConfig, MoE, SwiGLU
from tandem.catalogue.costs import Costs, costs_of
from tandem.catalogue.layout import MinimumCards, ParallelLayout
from tandem.catalogue.named import NamedModel
from tandem.catalogue.position import Alibi, Llama3Scaling, Rope

Line = tuple[str, str]
"""What is said, and what is said about it."""


def draw_models(models: Iterable[NamedModel]) -> Table:
    """One row for each model."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name")
    for heading in ("params B", "layers", "hidden", "heads/kv", "context", "bf16 GiB", "KV KiB/token"):
        table.add_column(heading, justify="right")
    table.add_column("TP×PP / cards")
    table.add_column("repository")
    for model in models:
        table.add_row(*_row(model))
    return table


def _row(model: NamedModel) -> Iterator[str]:
    config, costs = model.config, costs_of(model.config)
    yield model.name
    yield f"{costs.parameters / 1e9:.2f}"
    yield str(config.layers)
    yield str(config.hidden_size)
    kv = config.attention.kv_heads if isinstance(config.attention, GQA) else "latent"
    yield f"{config.attention.heads}/{kv}"
    yield str(config.max_position)
    yield f"{costs.weight_bytes['bfloat16'] / 2**30:.1f}"
    yield f"{costs.kv_bytes_per_token / 2**10:.1f}"
    yield short_layout(model.layouts[0]) if model.layouts else "-"
    yield model.repository


def short_layout(layout: ParallelLayout) -> str:
    """`8×4 / 32`, with `CP2` where sequences are split and `*` where the documents do not state it."""
    context = f" CP{layout.cp}" if layout.cp > 1 else ""
    return f"{layout.tp}×{layout.pp}{context} / {layout.cards}" + ("*" if layout.source == "derived" else "")


def draw_lines(lines: Iterable[Line]) -> Table:
    """What, and what about it, in two columns."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table


def model_lines(model: NamedModel, context: int | None = None) -> Iterator[Line]:
    """Everything about a named model."""
    yield "name", f"{model.name} ({model.series})"
    yield "repository", model.repository + (f" at revision {model.revision}" if model.revision else "")
    if model.also:
        yield "also", ", ".join(model.also)
    yield from config_lines(model.config, context)
    yield "published in", model.dtype
    yield "tokenizer", f"{model.tokenizer}'s, chats as {model.chat}"
    for layout in model.layouts:
        yield "training", layout_text(layout)
    for least in model.minimum_cards:
        yield "fewest cards", minimum_text(least)
    yield "download", f"tandem model fetch {model.name}"
    yield "or", model.download
    if model.note:
        yield "note", model.note


def config_lines(config: ModelConfig, context: int | None = None) -> Iterator[Line]:
    """What a configuration is, and what it costs at `context` tokens."""
    tied = ", tied" if config.tied_embeddings else ", rows of the head scaled to length 1" * config.normalised_head
    yield "family", config.family
    yield "shape", f"{config.layers} layers, hidden size {config.hidden_size}, vocabulary {config.vocab_size}{tied}"
    yield "attention", attention_text(config.attention)
    yield "positions", position_text(config.position)
    yield "feed-forward", feed_forward_text(config.feed_forward)
    yield "made for", f"{config.max_position} tokens"
    costs = costs_of(config, context)
    active = f", of which a token passes {costs.active_parameters:,} beside its embedding"
    active *= isinstance(config.feed_forward, MoE)
    yield "parameters", f"{costs.parameters:,}{active}"
    yield from cost_lines(costs)


def cost_lines(costs: Costs) -> Iterator[Line]:
    """Bytes, cache and operations."""
    yield "weights", ", ".join(f"{dtype} {size_text(size)}" for dtype, size in costs.weight_bytes.items())
    yield (
        "KV cache",
        f"{costs.kv_bytes_per_token:,} bytes per token, {size_text(costs.kv_bytes)} at {costs.context} tokens",
    )
    yield "operations", f"{operations_text(costs.flops_per_token)} per token at {costs.context} tokens"


def attention_text(attention: GQA | MLA) -> str:
    """One line."""
    if isinstance(attention, MLA):
        queries = f"queries through rank {attention.q_rank}" if attention.q_rank else "queries direct"
        parts = f"{attention.nope_dim} + {attention.rope_dim} rotated, values of {attention.value_dim}"
        return f"{attention.heads} heads of {parts}; keys and values from a latent of {attention.kv_rank}, {queries}"
    text = f"{attention.heads} heads of {attention.head_dim}, {attention.kv_heads} for keys and values"
    text += ", biases on q, k and v" * attention.qkv_bias
    if attention.window:
        text += f", {len(attention.window.layers)} layers see {attention.window.size} tokens"
    return text + (f", log-n scaling beyond {attention.logn} tokens" if attention.logn else "")


def position_text(position: Rope | Alibi) -> str:
    """One line."""
    if isinstance(position, Alibi):
        return "ALiBi"
    pairs = "neighbouring pairs" if position.interleaved else "halves"
    text = f"rotary over {position.dims} dimensions in {pairs}, base {position.theta:,.0f}"
    if (scaling := position.scaling) is None:
        return text
    factor = f" by {scaling.factor:g}" if hasattr(scaling, "factor") else ""
    trained = f", trained on {scaling.trained} tokens" if hasattr(scaling, "trained") else ""
    name = "Llama 3" if isinstance(scaling, Llama3Scaling) else type(scaling).__name__
    return f"{text}, {name} scaling{factor}{trained}"


def feed_forward_text(part: SwiGLU | MoE) -> str:
    """One line."""
    if isinstance(part, SwiGLU):
        return f"SwiGLU of {part.size}"
    text = f"{part.top_k} of {part.experts} experts of {part.size}"
    if isinstance(router := part.router, GroupedSigmoidRouter):
        text += f" from {router.chosen_groups} of {router.groups} groups"
    text += f", and one of {part.shared_size} for every token" if part.shared_size else ""
    return text + (
        f"; the first {part.dense_layers} layers are plain, of {part.dense_size}" if part.dense_layers else ""
    )


def layout_text(layout: ParallelLayout) -> str:
    """One line."""
    context = f", CP {layout.cp}" if layout.cp > 1 else ""
    spread = f"TP {layout.tp}, PP {layout.pp}{context} on {layout.cards} cards"
    source = "derived: " * (layout.source == "derived")
    return f"up to {layout.seq_length} tokens: {spread} ({source}{layout.basis})"


def minimum_text(least: MinimumCards) -> str:
    """One line."""
    length = f", sequences of {least.seq_length}" if least.seq_length else ""
    tuning = {"any": "any training", "full": "full training", "lora": "LoRA"}[least.tuning]
    return f"{least.cards} for {tuning}{length}"


def size_text(size: int) -> str:
    """Bytes in the largest binary unit that leaves at least one."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 2**power:
            return f"{size / 2**power:,.2f} {unit}"
    return f"{size} bytes"


def operations_text(operations: int) -> str:
    """Floating-point operations in the largest decimal unit that leaves at least one."""
    for unit, power in (("T", 12), ("G", 9), ("M", 6)):
        if operations >= 10**power:
            return f"{operations / 10**power:,.2f} {unit}FLOP"
    return f"{operations} FLOP"
