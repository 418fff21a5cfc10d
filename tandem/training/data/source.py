"""`Source`: the files of some data, of what kind their rows are, and what was made of them before. Free of torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from tandem.errors import DataError
from tandem.training.data.encoding import Encoding
from tandem.training.data.fingerprint import Fingerprints, tokenizer_digests
from tandem.training.data.indexed import IndexedTokens
from tandem.training.data.output import pairs
from tandem.training.data.readers.blocks import Block
from tandem.training.data.readers.files import find_files
from tandem.training.data.readers.rows import parsed, read_blocks
from tandem.training.data.rows.kinds import detect, named_kind, stage_of
from tandem.training.data.skipped import Reasons
from tandem.training.data.spec import ROW_MEGABYTES, PrepareSpec
from tandem.training.inputs import Inputs

VERSION = 1
"""Rises when the same inputs would give other tokens."""
LOOKED_AT = 64
"""Rows in which the kind is looked for."""


class Source:
    """What a spec speaks of, found and recognised.

    Args:
        spec: What to prepare.

    Raises:
        DataError: The data cannot be read or recognised.
    """

    def __init__(self, spec: PrepareSpec) -> None:
        self._spec = spec
        self.files = find_files(spec.input)
        self.kind = named_kind(spec.kind, spec.stage) or detect(self._first_rows(), spec.stage, spec.text_key,
                                                                str(spec.input))  # fmt: skip
        self.stage = spec.stage or stage_of(self.kind)
        self.encoding = Encoding(
            tokenizer=spec.tokenizer,
            kind=self.kind,
            text_key=spec.text_key,
            seq_length=spec.seq_length if self.stage == "sft" else None,
            template=spec.template,
            row_megabytes=spec.row_megabytes,
        )

    def blocks(self) -> Iterator[Block]:
        """All rows."""
        return itertools.chain.from_iterable(map(read_blocks, self.files.files))

    def inputs(self, fingerprints: Fingerprints) -> Inputs:
        """All that the tokens depend on."""
        return {
            "version": VERSION,
            "data": {file.name: fingerprints.of(file.path) for file in self.files.files},
            "tokenizer": tokenizer_digests(self._spec.tokenizer),
            "kind": self.kind,
            "text_key": self._spec.text_key if self.kind == "text" else None,
            "seq_length": self.encoding.seq_length,
            "template": self._spec.template if self.kind != "text" else None,
        } | self._limit()

    def is_prepared(self, mark: dict[str, Any], inputs: Inputs) -> bool:
        """Whether a mark speaks of these inputs, and the files that it speaks of are there, and whole."""
        if not mark or mark["inputs"] != inputs:
            return False
        try:
            for pair in pairs(self._spec.prefix, self.stage):
                IndexedTokens(pair)
        except DataError:
            return False
        return True

    def refuse_nothing(self, rows: int, documents: int, reasons: Reasons) -> None:
        """Refuse rows of which nothing is left to learn from.

        Raises:
            DataError: There are no documents.
        """
        if not rows:
            raise DataError(f"{self._spec.input}: holds no row; check that it is the right file")
        if not documents:
            raise DataError(
                f"{self._spec.input}: none of {rows} {self.kind} rows can be trained on. {reasons.text()}; mend "
                "the data, raise seq_length, or name another kind"
            )

    def _limit(self) -> Inputs:
        """What was made when there was no limit is as good as with the usual one."""
        asked = self._spec.row_megabytes
        return {} if asked == ROW_MEGABYTES else {"row_megabytes": asked}

    def _first_rows(self) -> Iterator[Any]:
        rows = (parsed(row) for block in self.blocks() for row in block.rows)
        return itertools.islice((row for row in rows if row is not None), LOOKED_AT)
