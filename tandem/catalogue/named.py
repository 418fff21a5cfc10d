"""`NamedModel`: a published model, by the name the documents give it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.layout import MinimumCards, ParallelLayout

TokenizerKind = Literal[
    "llama2", "llama3", "qwen", "qwen2", "yi", "chatglm3", "baichuan2", "glm4", "mistral", "deepseek"
]
"""Whose tokenizer files the repository holds; `text/making` writes small ones of each kind."""

ChatKind = Literal["chatml", "llama2", "llama3", "mistral", "chatglm3", "glm4", "baichuan2", "deepseek"]
"""How a conversation becomes text; `text/` has a format for each."""


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """One published model."""

    name: str
    """What commands call it, as in `qwen2.5-7b`."""
    series: str
    """The documents' heading for it."""
    repository: str
    """On huggingface.co."""
    revision: str | None = None
    """The commit that must be used; None where any does."""
    also: tuple[str, ...] = ()
    """Other repositories of the same shape that the documents name."""
    config: ModelConfig
    """Its full size."""
    dtype: str
    """What its weights are published in; a key of `arithmetic.DTYPE_BYTES`."""
    tokenizer: TokenizerKind
    chat: ChatKind
    layouts: tuple[ParallelLayout, ...] = ()
    """For training; the first is the recommended one. Empty where nothing is known."""
    minimum_cards: tuple[MinimumCards, ...] = ()
    note: str = ""
    """What else a user should know."""

    @property
    def link(self) -> str:
        """Where it can be looked at."""
        return f"https://huggingface.co/{self.repository}" + (f"/tree/{self.revision}" if self.revision else "")

    @property
    def download(self) -> str:
        """The command that fetches it."""
        revision = f" --revision {self.revision}" if self.revision else ""
        return f"hf download {self.repository}{revision} --local-dir models/{self.name}"
