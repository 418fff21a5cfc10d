"""Fetching a model from the hub: configuration, weights in one form, tokenizer, and never any code.

Needs the extra `hub` (huggingface_hub), which knows endpoints, tokens, retries and resuming.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from tandem.catalogue.source import Source
from tandem.errors import ProcessError, UsageError

TEXTS = (".json", ".txt", ".model", ".tiktoken", ".jinja")
"""Configurations and tokenizers."""


def wanted(files: Iterable[str]) -> list[str]:
    """Of a repository's files those a model folder needs: those at its top, with weights in one form only."""
    top = [file for file in files if len(PurePosixPath(file).parts) == 1 and not file.startswith(".")]
    weights = [file for file in top if file.endswith(".safetensors") and not file.startswith("consolidated")]
    weights = weights or [file for file in top if file.endswith(".bin") and file.startswith("pytorch_model")]
    form = "safetensors" if weights and weights[0].endswith(".safetensors") else "bin"
    indices = [file for file in top if file.endswith(".index.json") and f".{form}." in file]
    texts = [file for file in top if file.endswith(TEXTS) and not file.endswith(".index.json")]
    # They become patterns, so a name with wildcards would stand for other names too.
    return sorted(file for file in {*weights, *indices, *texts} if not set(file) & set("*?["))


def fetch(source: Source, folder: Path | None) -> Path:
    """Download a model; what is there already is not fetched again.

    Args:
        source: What to fetch.
        folder: Where to put it; None for the Hugging Face cache.

    Returns:
        The model's folder.

    Raises:
        UsageError: The extra is not installed.
        ProcessError: The hub refuses or cannot be reached.
    """
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        raise UsageError(
            "tandem model fetch needs huggingface_hub; run `pip install -e '.[hub]'` in tandem's folder"
        ) from None
    try:
        listed = HfApi().model_info(source.repository, revision=source.revision)
        files = wanted(sibling.rfilename for sibling in listed.siblings or [])
        got = snapshot_download(source.repository, revision=source.revision, local_dir=folder, allow_patterns=files)
    except Exception as error:  # noqa: BLE001 - errors of the client, of its transport and of the disk, by version
        said = " ".join(str(error).split())[:300]
        raise ProcessError(
            f"{source.repository} at {source.revision} cannot be fetched ({said}); check the network, HF_ENDPOINT, "
            "and for gated models HF_TOKEN and the licence on the model's page"
        ) from None
    return Path(got)
