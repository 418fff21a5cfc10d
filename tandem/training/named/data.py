"""The prepared data of a run: the user's own, or made from the raw data, once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tandem.errors import DataError
from tandem.training.data.fingerprint import read_mark, tokenizer_digests
from tandem.training.data.indexed import paths_of
from tandem.training.data.output import packed_prefix, text_prefix
from tandem.training.data.prepare import prepare
from tandem.training.data.sample import Sample, sample
from tandem.training.data.spec import PrepareSpec
from tandem.training.inputs import differences, digest
from tandem.training.progress import Progress
from tandem.training.settings.run import Run

NAME = "data"
"""How the files' names begin."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What there is to train on."""

    prefix: Path
    key: str
    """Digest of what it was made from; of its index where somebody else made it."""
    chat_template: str | None
    """Taken in place of the tokenizer's own; belongs beside an exported model."""


def prepared_data(run: Run, progress: Progress, require: Callable[[str], None] = lambda key: None) -> RunData:
    """The data of a run, prepared if it is not yet.

    Args:
        run: What to do.
        progress: Is told what happens.
        require: Is called with the key of data that is about to be prepared, and raises where it may not be.

    Raises:
        DataError: It cannot be read or recognised, or there is none.
        ModelFolderError: The tokenizer cannot be used.
    """
    if run.paths.prepared is not None:
        there = data_there(run)
        progress.note(f"data: {there.prefix} was prepared before; nothing is prepared")
        for note in _foreign(there.prefix, run.paths.tokenizer):
            progress.note(note)
        return there
    assert run.paths.data is not None, "a run without prepared data has raw data"
    done = prepare(_spec(run, run.paths.data), progress, lambda inputs: require(digest(inputs)))
    return RunData(prefix=done.prefix, key=_key(done.prefix, run), chat_template=done.chat_template)


def sampled_data(run: Run) -> Sample:
    """The first rows of a run's raw data, as they would be prepared; nothing is written. Raises as `sample`."""
    assert run.paths.data is not None, "a run without prepared data has raw data"
    return sample(_spec(run, run.paths.data))


def data_there(run: Run) -> RunData:
    """The prepared data of a run as it lies there, whatever it was made from.

    Raises:
        DataError: There is none.
    """
    prefix = _prefix(run.paths.prepared, run) if run.paths.prepared else prepared_prefix(run)
    template = read_mark(prefix).get("result", {}).get("chat_template")
    return RunData(prefix=prefix, key=_key(prefix, run), chat_template=template)


def prepared_prefix(run: Run) -> Path:
    """How the names of a run's prepared data begin, where nobody else prepared it."""
    folder = {"pretrain": "pretrain", "sft": "finetune"}[run.reads]
    return run.paths.processed / "data" / folder / NAME


def _spec(run: Run, raw: Path) -> PrepareSpec:
    return PrepareSpec(
        input=raw,
        tokenizer=run.paths.tokenizer,
        prefix=prepared_prefix(run),
        stage=run.reads,
        kind=run.data.kind,
        text_key=run.data.text_key,
        seq_length=run.training.seq_length,
        row_megabytes=run.data.row_megabytes,
        workers=run.data.workers,
    )


def _prefix(path: Path, run: Run) -> Path:
    """The prefix of files that lie in a folder, or that the path itself is; Megatron's name their whole pair.

    One file of the pair, as people complete names, means the pair.
    """
    ending = _index(Path("x"), run).name.removeprefix("x")
    pair = ending.removesuffix(".idx")
    if not path.is_dir():
        return path.with_name(path.name.removesuffix(ending).removesuffix(f"{pair}.bin").removesuffix(pair))
    found = sorted(path.glob(f"*{ending}"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise DataError(
            f"{path}: must hold one file *{ending} for {run.stage}, and has {names}; give the files' prefix"
        )
    return path / found[0].name.removesuffix(ending)


def _foreign(prefix: Path, tokenizer: Path) -> Iterator[str]:
    """That data was prepared with other tokenizer files than the model gets: a run would learn, and say nonsense."""
    mark = read_mark(prefix)
    if mark and (different := differences(mark["inputs"].get("tokenizer", {}), tokenizer_digests(tokenizer))):
        yield f"data: {prefix} was prepared with other tokenizer files than those in {tokenizer}: {different}"


def _key(prefix: Path, run: Run) -> str:
    mark = read_mark(prefix)
    if mark:
        return digest(mark["inputs"])
    index = _index(prefix, run)
    if not index.is_file():
        raise DataError(f"{index}: is missing; prepare the data for {run.stage}, or give another prefix")
    return hashlib.sha256(index.read_bytes()).hexdigest()


def _index(prefix: Path, run: Run) -> Path:
    """The file through which the data of a stage is found."""
    return paths_of(text_prefix(prefix) if run.reads == "pretrain" else packed_prefix(prefix, "input_ids"))[0]
