"""What a named model's run asks of each rank's memory."""

from __future__ import annotations

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.models import find_model
from tandem.parallel.device import DeviceName
from tandem.training.named.weights import config_of, weights_of
from tandem.training.plan.demand import Demand
from tandem.training.settings.run import Run


def memory_demand(run: Run, device: DeviceName) -> Demand:
    """The demand of a run on this machine's devices.

    Raises:
        ModelFolderError: The model folder is there and cannot be used for the run.
        RecipeError: Adapters are asked for that the model has no place for.
        UsageError: There is no such device.
    """
    packed = run.data.documents_apart if run.reads == "pretrain" else run.data.pack
    return Demand.of(_config(run), run.training, run.launch, device, packed=packed, lora=run.lora)


def _config(run: Run) -> ModelConfig:
    """The folder's own, or the named model's where it is not there yet."""
    if (run.paths.weights / "config.json").is_file():
        return config_of(run, weights_of(run))
    return find_model(run.model).config
