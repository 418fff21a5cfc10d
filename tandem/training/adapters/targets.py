"""Which matrices an adapter's targets name, in our words or a checkpoint's.

    attention.q, layers.0.attention.q      ours, from any dot on
    q_proj, self_attn.q_proj               the family's Hugging Face layout, as PEFT takes them
    query_key_value                        one that a checkpoint fuses: all our matrices that lie in it
    w1, experts.gate_up_proj               of experts, as transformers 4 and 5 call them
    all-linear                             everything but embedding and head, as PEFT means it: routers too

A word that both could mean is the checkpoint's: Mixtral's `gate` is its router.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.shapes import parameter_shapes
from tandem.errors import RecipeError
from tandem.model.families import FAMILIES
from tandem.training.adapters.peft_config import short_names
from tandem.training.settings.config import LoraConfig

ALL_LINEAR = "all-linear"
LAYER = re.compile(r"^layers\.[0-9]+\.")
TABLES = ("embedding.weight", "head.weight")
STACKS = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}
"""The stacked experts of transformers 5 -> ours, one below the other."""


@dataclass(frozen=True)
class Place:
    """A matrix of a checkpoint, which holds one or several of ours, one below the other."""

    module: str
    """Its name without `.weight`."""
    ours: tuple[str, ...]
    expert: int | None = None
    """Which one of our stacks; None where they are no stacks, or whole ones."""


def places(config: ModelConfig) -> list[Place]:
    """Every matrix of a checkpoint in the family's published layout, each expert for itself."""
    shapes = parameter_shapes(config)
    return [
        Place(theirs.removesuffix(".weight"), tuple(one.name for one in rows), rows[0].expert)
        for theirs, rows in FAMILIES[config.family].tensors(config).items()
        if len(shapes[rows[0].name]) > 1
    ]


def stacked_places(config: ModelConfig) -> list[Place]:
    """Where transformers 5 has something else: stacks of experts, and a Mixtral's mixture under `mlp`."""
    found = []
    for place in places(config):
        module = place.module.replace(".block_sparse_moe.", ".mlp.")
        if place.expert is None and module != place.module:
            found.append(Place(module, place.ours))
        elif place.expert == 0 and place.ours[0].endswith(".gate"):
            experts, stem = module.partition(".experts.0.")[0] + ".experts", place.ours[0].removesuffix("gate")
            found += [
                Place(f"{experts}.{name}", tuple(stem + part for part in parts)) for name, parts in STACKS.items()
            ]
    return found


def resolved(config: ModelConfig, lora: LoraConfig) -> list[str]:
    """The parameters that are to be adapted, in the decoder's order.

    Raises:
        RecipeError: A target names nothing in this model, or what cannot be adapted, or have dropout; or the rank is
            above that of all.
    """
    targets = lora.targets
    known = [*places(config), *stacked_places(config)]
    matrices = {ours for place in known for ours in place.ours}
    wanted: set[str] = set()
    for target in [targets] if isinstance(targets, str) else targets:
        wanted |= matrices - set(TABLES) if target == ALL_LINEAR else _named(target, known, matrices)
    refuse_tables(config, wanted)
    names = [name for name in parameter_shapes(config) if name in wanted]
    _require_room(config, names, lora.rank)
    if lora.dropout:
        refuse_dropout(config, names)
    return names


def targets_for(config: ModelConfig, names: Collection[str]) -> list[str]:
    """Targets that name these parameters and no others, in the checkpoint's words where it has some for them."""
    wanted, known = set(names), places(config)
    modules = [place.module for place in known if wanted.issuperset(place.ours)]
    if wanted == {ours for place in known if place.module in modules for ours in place.ours}:
        return short_names(modules, [place.module for place in known])
    return sorted(name.removesuffix(".weight") for name in wanted)


def _named(target: str, known: Iterable[Place], matrices: Iterable[str]) -> set[str]:
    theirs = {ours for place in known if _ends(place.module, target) for ours in place.ours}
    found = theirs or {ours for ours in matrices if _ends(ours.removesuffix(".weight"), target)}
    if not found:
        words = sorted({place.module.rpartition(".")[2] for place in known})
        raise RecipeError(f"lora targets: {target} is no matrix of this model; it has {', '.join(words)}, {ALL_LINEAR}")
    return found


def _require_room(config: ModelConfig, names: Iterable[str], rank: int) -> None:
    """Small matrices among large ones, as routers are, may have more rank than they need: nothing can all the same."""
    ranks = {name: min(shape[-2:]) for name, shape in parameter_shapes(config).items()}
    largest = max(names, key=ranks.__getitem__)
    if rank > ranks[largest]:
        raise RecipeError(
            f"lora.rank {rank}: is above {ranks[largest]}, the rank of {largest}, and no target has more; lower it"
        )


def rank_to_spare(config: ModelConfig, lora: LoraConfig) -> str | None:
    """What is to be said of targets that are smaller than the rank, which PEFT takes too; None where none is.

    Raises:
        RecipeError: As `resolved`.
    """
    shapes = parameter_shapes(config)
    ranks = {LAYER.sub("", name).removesuffix(".weight"): min(shapes[name][-2:]) for name in resolved(config, lora)}
    small = [f"{name} {rank}" for name, rank in ranks.items() if rank < lora.rank]
    if not small:
        return None
    return (
        f"lora.rank {lora.rank}: is above the rank that some targets can have ({', '.join(small)}); what is above it "
        "takes memory and learns nothing more; lower it, or leave them out of lora.targets"
    )


def refuse_tables(config: ModelConfig, wanted: Collection[str]) -> None:
    """Refuse an embedding or a head whose adapter could not be merged, or not be said to PEFT.

    Raises:
        RecipeError: It is among the parameters.
    """
    if config.tied_embeddings and "embedding.weight" in wanted:
        raise RecipeError(
            "lora targets: the embedding is this model's head too, and PEFT adapts only the one of them, so it could "
            "not be merged; leave it out"
        )
    if config.normalised_head and "head.weight" in wanted:
        raise RecipeError("lora targets: PEFT cannot adapt a head whose rows are scaled to length one; leave it out")


def refuse_dropout(config: ModelConfig, names: Iterable[str]) -> None:
    """Refuse dropout on what is no linear layer of a block.

    Raises:
        RecipeError: It is among the parameters.
    """
    shapes = parameter_shapes(config)
    for name in names:
        if not LAYER.match(name) or len(shapes[name]) > 2 or name.endswith(".router.weight"):
            raise RecipeError(
                f"lora dropout: {name.removesuffix('.weight')} cannot have any (PEFT has none on stacked experts and "
                "embeddings, and a loss may need the head whole); set dropout to 0 or leave the target out"
            )


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
