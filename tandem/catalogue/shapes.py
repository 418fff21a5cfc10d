"""Every parameter of a decoder by name and shape, from its configuration alone.

The names are those of `model/decoder.py`, which a test holds against this table. Matrices are `[out, in]`; a
mixture's experts are stacked.
"""

from __future__ import annotations

from tandem.catalogue.config import GQA, MLA, GroupedSigmoidRouter, ModelConfig, MoE, SwiGLU

Shape = tuple[int, ...]


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Parameter name -> shape, in the decoder's order; a tied head has none of its own."""
    shapes: dict[str, Shape] = {"embedding.weight": (config.vocab_size, config.hidden_size)}
    for layer in range(config.layers):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in layer_shapes(config, layer).items()}
    shapes["norm.weight"] = (config.hidden_size,)
    if not config.tied_embeddings:
        shapes["head.weight"] = (config.vocab_size, config.hidden_size)
    return shapes


def layer_shapes(config: ModelConfig, layer: int) -> dict[str, Shape]:
    """The parameters of one layer, without its number."""
    hidden, attention, feed_forward = config.hidden_size, config.attention, config.feed_forward_of(layer)
    inner = _gqa(attention, hidden) if isinstance(attention, GQA) else _mla(attention, hidden)
    outer = _swiglu(feed_forward.size, hidden) if isinstance(feed_forward, SwiGLU) else _moe(feed_forward, hidden)
    return (
        {"attention_norm.weight": (hidden,)}
        | {f"attention.{name}": shape for name, shape in inner.items()}
        | {"feed_forward_norm.weight": (hidden,)}
        | {f"feed_forward.{name}": shape for name, shape in outer.items()}
    )


def _gqa(attention: GQA, hidden: int) -> dict[str, Shape]:
    query, key = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    shapes: dict[str, Shape] = {}
    for name, size in {"q": query, "k": key, "v": key}.items():
        shapes[f"{name}.weight"] = (size, hidden)
        if attention.qkv_bias:
            shapes[f"{name}.bias"] = (size,)
    return shapes | {"o.weight": (hidden, query)}


def _mla(attention: MLA, hidden: int) -> dict[str, Shape]:
    query = attention.heads * (attention.nope_dim + attention.rope_dim)
    queries: dict[str, Shape] = {"q.weight": (query, hidden)}
    if attention.q_rank is not None:
        queries = {
            "q_down.weight": (attention.q_rank, hidden),
            "q_norm.weight": (attention.q_rank,),
            "q_up.weight": (query, attention.q_rank),
        }
    return queries | {
        "kv_down.weight": (attention.kv_rank + attention.rope_dim, hidden),
        "kv_norm.weight": (attention.kv_rank,),
        "kv_up.weight": (attention.heads * (attention.nope_dim + attention.value_dim), attention.kv_rank),
        "o.weight": (hidden, attention.heads * attention.value_dim),
    }


def _swiglu(size: int, hidden: int) -> dict[str, Shape]:
    return {"gate.weight": (size, hidden), "up.weight": (size, hidden), "down.weight": (hidden, size)}


def _moe(mixture: MoE, hidden: int) -> dict[str, Shape]:
    experts, size = mixture.experts, mixture.size
    shapes: dict[str, Shape] = {"router.weight": (experts, hidden)}
    if isinstance(mixture.router, GroupedSigmoidRouter):
        shapes["router.bias"] = (experts,)
    shapes |= {
        "experts.gate": (experts, size, hidden),
        "experts.up": (experts, size, hidden),
        "experts.down": (experts, hidden, size),
    }
    if mixture.shared_size:
        shapes |= {f"shared.{name}": shape for name, shape in _swiglu(mixture.shared_size, hidden).items()}
    return shapes
