"""What a run begins from and what it exports, by as many ranks as this is started with, beside the whole model's.

`python tests/start_suite.py BASES OUT FAMILY...` as each rank; BASES holds a model folder for each family. Alone in a
process, `check` does the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tandem.catalogue.generation import GenerationDefaults
from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import SmallShape, shrink
from tandem.model.decoder import Decoder
from tandem.model.folder import load, load_own, save, save_read
from tandem.model.random_weights import random_decoder
from tandem.model.skeleton import bare
from tandem.parallel.place import Place
from tandem.parallel.world import World, joined
from tandem.training.adapters.lora import apply_lora, fill_factors, initial_factors, merge
from tandem.training.adapters.peft_folder import fill_from, save_factors
from tandem.training.compute.gathering import Gathering, collected
from tandem.training.compute.loss import LossModel
from tandem.training.compute.parallelize import materialise, parallelize
from tandem.training.named.adapter import adapter_at
from tandem.training.settings.config import LoraConfig

CPU = torch.device("cpu")
LORA, SEED = LoraConfig(rank=3), 7
SHARD = 20_000
"""Bytes of a file of weights: several for each model."""


def write_bases(folder: Path, families: tuple[str, ...]) -> None:
    for family in families:
        config = shrink(MODELS[family].config, SmallShape(layers=2, vocab=101))
        save(random_decoder(config, torch.float32, 0), folder / family, GenerationDefaults(), {})


def check(base: Path, out: Path, world: World) -> None:
    """Compare bits; `out` gets the exports."""
    whole = load(base, CPU, torch.float32).unfreeze()
    require_same(shared(bare(whole.config), world, lambda one: load_own(one, base)), whole, world)
    drawn = Decoder(whole.config)
    drawn.initialise(SEED)
    require_same(shared(bare(whole.config), world, lambda one: one.initialise(SEED)), drawn, world)

    empty = bare(whole.config)
    apply_lora(whole, LORA, SEED)
    apply_lora(empty, LORA, SEED)
    parts = shared(empty, world, lambda one: fill_all(one, base))
    require_same(parts, whole, world)
    check_adapters(move_all(parts), move_all(whole), base, out, world)
    check_exports(parts, whole, out, world)


def shared(decoder: Decoder, world: World, fill: Callable[[Decoder], None]) -> Decoder:
    model = LossModel(decoder)
    parallelize(model, world, "float32")
    materialise(model, CPU, fill)
    return decoder


def fill_all(decoder: Decoder, base: Path) -> None:
    load_own(decoder, base)
    fill_factors(decoder, initial_factors(decoder, SEED))


def require_same(parts: Decoder, whole: Decoder, world: World) -> None:
    ours, theirs = dict(parts.named_parameters()), dict(whole.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, one in ours.items():
        assert one.requires_grad == theirs[name].requires_grad, name
        together = collected(one, range(len(one)), world)
        assert not world.leads or same_bits(together, theirs[name].detach()), name


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()


def move_all(decoder: Decoder) -> Decoder:
    """Let B add something."""
    drawn = torch.Generator().manual_seed(1)
    fill_factors(decoder, [(name, torch.randn(one.shape, generator=drawn) / 8)
                           for name, one in decoder.named_parameters() if one.requires_grad])  # fmt: skip
    return decoder


def check_adapters(parts: Decoder, whole: Decoder, base: Path, out: Path, world: World) -> None:
    """They are written the same, and a run that begins from them has the same."""
    factors, folder = Gathering(parts, world).factors(), out / "adapter"
    if world.leads:
        save_factors(whole.config, factors, folder)
        save_factors(whole.config, Gathering(whole, World()).factors(), out / "whole-adapter")
    world.decided(lambda: None)  # written, for all
    begun = bare(whole.config)
    apply_lora(begun, LORA, SEED)
    require_same(shared(begun, world, lambda one: fill_read(one, base, folder)), whole, world)


def fill_read(decoder: Decoder, base: Path, adapter: Path) -> None:
    load_own(decoder, base)
    fill_from(adapter_at(adapter, decoder.config, LORA), decoder, adapter)


def check_exports(parts: Decoder, whole: Decoder, out: Path, world: World) -> None:
    gathering = Gathering(parts, world)
    if world.leads:
        merge(whole)
        save(whole, out / "whole", GenerationDefaults(), {}, SHARD)
    target = out / "model" if world.leads else None
    save_read(parts.config, torch.float32, gathering.merged, target, GenerationDefaults(), {}, SHARD)
    if world.leads:
        for ours, theirs in (("adapter", "whole-adapter"), ("model", "whole")):
            files = sorted(path.name for path in (out / theirs).iterdir())
            assert sorted(path.name for path in (out / ours).iterdir()) == files
            assert len(files) > 3 or ours == "adapter", "several shards"
            for name in files:
                assert (out / ours / name).read_bytes() == (out / theirs / name).read_bytes(), name


def main() -> None:
    bases, out, *families = sys.argv[1:]
    torch.set_num_threads(1)
    place = Place.told(os.environ)
    assert place is not None, "run_ranks says where this process stands"
    with joined(place, CPU) as world:
        for family in families:
            check(Path(bases) / family, Path(out) / family, world)


if __name__ == "__main__":
    main()
