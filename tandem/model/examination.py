"""Whether a model folder is whole: its configuration, every tensor by name and shape, and its tokenizer.

No torch, no weight is read.

Weights in torch's own files are the exception: their tables are torch's to open.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.costs import costs_of
from tandem.catalogue.description import config_fields
from tandem.errors import ModelFolderError
from tandem.model.families import translate
from tandem.model.weights.files import stored_tensors
from tandem.model.weights.fit import fit
from tandem.model.weights.stored import StoredTensor
from tandem.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizerFound:
    """What there is of a tokenizer."""

    file: str
    """Its name."""
    ids: int
    chat: bool
    """Whether conversations have a format."""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What a folder holds."""

    config: ModelConfig
    tensors: int
    dtypes: dict[str, int]
    """Bytes of the tensors as they lie in the files, by dtype as safetensors names it; most bytes first."""
    tokenizer: TokenizerFound | None
    """None where it cannot be used."""
    faults: tuple[str, ...]
    """One phrase each: which tensor is missing, surplus or misshapen, or why files or tokenizer cannot be read."""

    @property
    def stored_bytes(self) -> int:
        """Of all tensors, as they lie in the files."""
        return sum(self.dtypes.values())

    def as_json(self, context: int | None = None) -> dict[str, Any]:
        """All of it, with what the model costs at `context` tokens."""
        costs = asdict(costs_of(self.config, context))
        weights = {"tensors": self.tensors, "stored_bytes": self.stored_bytes, "stored": self.dtypes}
        tokenizer = None if self.tokenizer is None else asdict(self.tokenizer)
        found = weights | {"tokenizer": tokenizer, "faults": list(self.faults)}
        return {"config": config_fields(self.config), "costs": costs, **found}


def examine(folder: Path, tokenizer: Path | None = None) -> Examination:
    """Look at a model folder without loading it.

    Args:
        folder: Of the model.
        tokenizer: Folder of the tokenizer's files, where they lie apart.

    Raises:
        ModelFolderError: The configuration is missing, broken or not supported; faults of weights and tokenizer are
            returned.
    """
    family, config, fields = translate(folder)
    stored: dict[str, StoredTensor] = {}
    faults: tuple[str, ...] = ()
    try:
        stored = stored_tensors(folder)
        faults = fit(stored, family, config, fields).faults
    except ModelFolderError as error:
        faults = (str(error),)
    found = None
    try:
        found = find_tokenizer(tokenizer or folder, config)
    except ModelFolderError as error:
        faults = (*faults, str(error))
    return Examination(config=config, tensors=len(stored), dtypes=_dtypes(stored), tokenizer=found, faults=faults)


def find_tokenizer(folder: Path, config: ModelConfig) -> TokenizerFound:
    """What there is of a tokenizer for a model.

    Raises:
        ModelFolderError: It cannot be used, or has more ids than the model has rows.
    """
    tokenizer = Tokenizer.from_folder(folder)
    tokenizer.require_room(folder, config.vocab_size)
    return TokenizerFound(file=tokenizer.file, ids=tokenizer.vocab_size, chat=tokenizer.chat is not None)


def _dtypes(stored: dict[str, StoredTensor]) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for tensor in stored.values():
        sizes[tensor.dtype] += tensor.size
    return dict(sizes.most_common())


def require_whole(folder: Path) -> None:
    """Refuse a folder that cannot be served, before any process is started for it.

    Raises:
        ModelFolderError: Naming the first fault.
    """
    faults = examine(folder).faults
    if faults:
        more = f", and {len(faults) - 1} more faults; `tandem model show {folder}` lists them" if faults[1:] else ""
        place = "" if str(folder) in faults[0] else f"{folder}: "
        raise ModelFolderError(f"{place}{faults[0]}{more}")
