"""`sample`: what the first rows of data tell, before all of it is prepared. Free of torch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from tandem.training.data.encoding import Encoded, Encoder
from tandem.training.data.fingerprint import Fingerprints, read_mark
from tandem.training.data.readers.rows import read_blocks
from tandem.training.data.rows.kinds import Kind
from tandem.training.data.skipped import Reasons
from tandem.training.data.source import Source
from tandem.training.data.spec import PrepareSpec

SAMPLED = 8_000_000
"""Bytes of rows that are tokenised."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the first rows of every file tell of some data."""

    kind: Kind
    files: int
    size: int
    """Bytes of all files."""
    read: int
    """Bytes of them that the rows took."""
    whole: bool
    """Whether these are all rows."""
    rows: int
    documents: int
    """Texts, or conversations, that can be trained on."""
    tokens: int
    skipped: str
    """Why others cannot, the most frequent reasons first; empty where all can."""
    chat_template: str | None
    """As of `Prepared`."""
    prepared: bool
    """Whether all of it is prepared already, from the same inputs."""


def sample(spec: PrepareSpec) -> Sample:
    """Look at the first rows of every file, as `prepare` would take them; writes nothing.

    Raises:
        DataError: A file cannot be read, the kind is not recognised, or of all rows that were read none can be trained
            on.
        ModelFolderError: The tokenizer cannot be used.
    """
    source = Source(spec)
    encoder, reasons, done, read, whole = Encoder(source.encoding), Reasons(), list[Encoded](), 0, True
    for file in source.files.files:
        begin = list(itertools.islice(read_blocks(file), 2))  # the second tells whether there is more
        whole = whole and len(begin) < 2 and read < SAMPLED
        if begin and read < SAMPLED:
            done.append(encoder.encode(begin[0]))
            read += begin[0].size
    for row in itertools.chain.from_iterable(one.skipped for one in done):
        reasons.add(row)
    rows, documents = sum(one.rows for one in done), sum(len(one.lengths) for one in done)
    source.refuse_nothing(rows, documents, reasons)
    return Sample(
        kind=source.kind, files=len(source.files.files), size=source.files.size, read=read, whole=whole, rows=rows,
        documents=documents, tokens=sum(len(one.ids) for one in done), skipped=reasons.text(),
        chat_template=encoder.chat_template, prepared=_is_prepared(spec, source),
    )  # fmt: skip


def _is_prepared(spec: PrepareSpec, source: Source) -> bool:
    mark = read_mark(spec.prefix)
    return bool(mark) and source.is_prepared(mark, source.inputs(Fingerprints(mark["files"])))
