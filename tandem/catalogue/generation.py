"""Generation defaults of a model folder: which tokens end an answer, and how to sample when the request does not say.

Source: Hugging Face `generation_config.json`; `config.json` where that file is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.errors import ModelFolderError
from tandem.files import read_json_object


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """What applies to a request that leaves the field out."""

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""

    def as_json(self) -> dict[str, Any]:
        """The content of `generation_config.json`."""
        sampled = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        eos = list(self.eos_token_ids)
        return {"bos_token_id": self.bos_token_id, "eos_token_id": eos[0] if len(eos) == 1 else eos, **sampled}


def read_generation_defaults(folder: Path) -> GenerationDefaults:
    """Read the defaults of one model folder.

    Raises:
        ModelFolderError: The file is not JSON.
    """
    there = [path for name in ("config.json", "generation_config.json") if (path := folder / name).exists()]
    fields: dict[str, Any] = {}
    for path in there:
        fields |= read_json_object(path, ModelFolderError)
    eos = fields.get("eos_token_id")
    # `do_sample: false` is how a folder asks for greedy answers.
    temperature = fields.get("temperature") if fields.get("do_sample", True) else 0.0
    return GenerationDefaults(
        eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
        bos_token_id=fields.get("bos_token_id"),
        temperature=1.0 if temperature is None else temperature,
        top_p=fields.get("top_p") or 1.0,
        top_k=fields.get("top_k") or 0,
    )
