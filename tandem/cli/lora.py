"""`tandem lora`: adapters and the models they belong to."""

from __future__ import annotations

from pathlib import Path

import cyclopts

app = cyclopts.App(name="lora", help="Merge a LoRA adapter into its base model.")


@app.command
def merge(base: str, adapter: Path, out: Path, /) -> None:
    """Write the model folder that a base model with an adapter is, tokenizer files included.

    Args:
        base: A model folder, or a name that `tandem model fetch` has fetched.
        adapter: Folder with adapter_config.json and adapter_model.safetensors, PEFT's or tandem's.
        out: Folder to write; must not exist.
    """
    from tandem.catalogue.source import model_folder
    from tandem.training.adapters.merging import merge_folders

    merge_folders(model_folder(base), adapter, out)
    print(out)
