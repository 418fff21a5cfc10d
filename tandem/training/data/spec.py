"""`PrepareSpec`: what data to prepare, and how. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tandem.errors import UsageError
from tandem.training.data.encoding import Template
from tandem.training.data.rows.kinds import AUTO, Stage

ROW_MEGABYTES = 8
"""More than the longest books have; tokenising one of them takes 1 GB."""
MOST_WORKERS = 1024
"""More than machines have cores; as the setting `data.workers` says."""


@dataclass(frozen=True, kw_only=True)
class PrepareSpec:
    """What to prepare, and how.

    Raises:
        UsageError: A number is out of its bounds, or the prefix a folder.
    """

    input: Path
    """A file or a folder."""
    tokenizer: Path
    """A model's folder, or one with its tokenizer files."""
    prefix: Path
    """Where the files go: a folder and the beginning of their names."""
    stage: Stage | None = None
    """What the data is for; None where the kind tells."""
    kind: str = AUTO
    """One of `KINDS`, a handler name of the documents, or `auto`."""
    text_key: str = "text"
    """Key of the text to pretrain on."""
    seq_length: int | None = None
    """Longest conversation, in tokens; longer ones are skipped by name. Texts are cut anywhere and need none."""
    template: Template = "auto"
    """How conversations are worded."""
    row_megabytes: int = ROW_MEGABYTES
    """Longest text or conversation, in MB; longer ones are skipped by name. Each worker takes 120 times as much memory
    for one."""
    workers: int | None = None
    """Processes; None chooses. Does not change the result."""
    wait: bool = True
    """Whether to wait while another process prepares the same files, or refuse."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers {self.workers}: at least one must do the work; raise it")
        if self.workers is not None and self.workers > MOST_WORKERS:
            raise UsageError(f"workers {self.workers}: is more than a machine has cores; give at most {MOST_WORKERS}")
        if self.row_megabytes < 1:
            raise UsageError(f"row_megabytes {self.row_megabytes}: leaves no room for a row; raise it")
        if self.seq_length is not None and self.seq_length < 2:
            raise UsageError(f"seq_length {self.seq_length}: is too short to learn from; raise it")
        if not self.prefix.name or self.prefix.is_dir():
            raise UsageError(
                f"{self.prefix}: is a folder; add how the files' names shall begin: {self.prefix / 'data'}"
            )
