"""A small LoRA run on as many ranks as the environment says.

`python tests/adapter_run.py BASE FOLDER STEPS SETTINGS`
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from tandem.model.folder import fingerprint, load
from tandem.parallel.place import Place
from tandem.parallel.world import World, joined
from tandem.training.adapters.lora import apply_lora
from tandem.training.adapters.peft_folder import save_factors
from tandem.training.compute.gathering import Gathering
from tandem.training.data.batch import Batch
from tandem.training.data.labels import IGNORED
from tandem.training.progress import Silence
from tandem.training.settings.config import LoraConfig, StageConfig
from tandem.training.stage import Stage, train

CPU = torch.device("cpu")


def stage_of(**fields: object) -> StageConfig:
    usual = {"seq_length": 12, "global_batch": 4, "micro_batch": 2, "lr": 0.02, "min_lr": 0.02, "warmup_steps": 0}
    return StageConfig.model_validate({"steps": 6, "save_every": 3, "keep_last": 9, **usual, **fields})


class Questions:
    """Four rows, each of two packed sequences of which the second half counts."""

    def at(self, position: int, count: int) -> Batch:
        rows = torch.randint(0, 97, (4, 13), generator=torch.Generator().manual_seed(0))
        rows = rows[[place % 4 for place in range(position, position + count)]]
        targets = rows[:, 1:].clone()
        targets[:, :3] = targets[:, 6:9] = IGNORED
        segments = (torch.arange(12) // 6).expand(count, -1)
        return Batch(tokens=rows[:, :-1], targets=targets, segments=segments)


def run(base: Path, folder: Path, steps: int, world: World, **lora: object) -> None:
    """Train adapters on `base`; the adapter folder is FOLDER/adapter."""
    decoder = load(base, CPU)
    apply_lora(decoder, LoraConfig.model_validate({"rank": 4, **lora}), 3)
    inputs = {"base": fingerprint(base)}
    stage = Stage(name="lora", title="lora", config=stage_of(steps=steps), folder=folder, inputs=inputs, world=world)
    train(stage, decoder, Questions(), Silence())
    factors = Gathering(decoder, world).factors()
    if world.leads:
        save_factors(decoder.config, factors, folder / f"adapter-{steps}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Place.told(os.environ)
    assert place is not None
    with joined(place, CPU) as world:
        run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), world, **json.loads(sys.argv[4]))
