"""A whole run in one folder, from texts to a model that can be served; what is there already is used again.

    <directory>/corpus/       corpus.parquet, instructions.jsonl, corpus.json
    <directory>/tokenizer/    tokenizer.json, tokenizer_config.json, special_tokens_map.json
    <directory>/tokens/       corpus_text_document.bin and .idx, instructions_packed_*_document.bin and .idx
    <directory>/pretrain/     see run.py; its `model` is the base model
    <directory>/sft/          see run.py; its `model` is the result

Each folder's `stage.json` holds the inputs it was made from. With other inputs, the first three are made again, which
takes seconds, unless something was trained on them: what is trained is never thrown away unasked, and the run refuses
and says what changed, before anything. Only more steps are no other inputs: then it goes on.

Of several hosts that share the directory the first does all that takes seconds; the others lend their ranks, which come
together before they look at what there is. Then the first rank says for all whether a stage is finished: a host that
looked by itself might see a moment before or after, and wait for ranks that never come.

torch is imported only when there is something to train.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tandem.errors import CheckpointError, UsageError
from tandem.parallel.place import Place
from tandem.text.trainer import train_tokenizer
from tandem.training.alone import alone_at, require_unshared
from tandem.training.checkpoints.leftovers import sweep
from tandem.training.data.corpus import Sources, gather, read_texts, write_corpus
from tandem.training.data.prepare import prepare
from tandem.training.data.rows.kinds import Kind
from tandem.training.data.spec import PrepareSpec
from tandem.training.inputs import Inputs, digest, read_mark, write_mark
from tandem.training.job import CONVERSATIONS, TEXTS, Job, finished
from tandem.training.launch.work import carry_out, tell_runtime
from tandem.training.progress import Progress, Silence
from tandem.training.settings.config import Recipe

if TYPE_CHECKING:
    from tandem.parallel.device import DeviceName


def prepare_and_train(
    recipe: Recipe,
    directory: Path,
    progress: Progress,
    *,
    fresh: bool = False,
    resume: bool = True,
    device: DeviceName = "cpu",
) -> Path:
    """Run all stages that are not done yet; returns the folder of the fine-tuned model.

    Args:
        recipe: What to do.
        directory: Where the run lives; created where missing. One process at a time works in it.
        progress: Is told what happens.
        fresh: Make every stage anew.
        resume: Go on from checkpoints; else the fine-tuning stage begins anew.
        device: What to train on.

    Raises:
        CheckpointError: A trained stage was made from other inputs, or a checkpoint is damaged.
        DataError: A data file is broken, or there is too little data.
        DivergenceError: Training diverged.
        ProcessError: A rank failed.
        UsageError: Another process is at work in the directory, its path is no UTF-8, or several hosts are told to make
            anew what they share.
    """
    job = Job(recipe=recipe, directory=directory, stage="sft")
    with _prepared(job, progress, device, fresh=fresh, again=() if resume else ("sft",)) as run:
        if recipe.launch.node_rank == 0:
            require_base(job)
        run.train(job.base)
        return run.train(job)


def prepare_and_pretrain(
    recipe: Recipe,
    directory: Path,
    progress: Progress,
    *,
    fresh: bool = False,
    resume: bool = True,
    device: DeviceName = "cpu",
) -> Path:
    """As `prepare_and_train`, but stop before fine-tuning; returns the folder of the base model.

    Without `resume`, pretraining begins anew, and so will the fine-tuning that stood on it.
    """
    job = Job(recipe=recipe, directory=directory, stage="pretrain")
    with _prepared(job, progress, device, fresh=fresh, again=() if resume else ("pretrain", "sft")) as run:
        return run.train(job)


@contextmanager
def _prepared(
    job: Job, progress: Progress, device: DeviceName, *, fresh: bool, again: tuple[str, ...]
) -> Iterator[_Run]:
    """A pass whose cheap stages are done, and those to be made anew removed; of several hosts, the first does that."""
    launch, directory = job.recipe.launch, job.directory
    require_utf8(directory)
    if fresh or again:
        require_unshared(directory, launch.nodes)
    with alone_at(directory / f"host-{launch.node_rank}", progress, work="trains", wait=False):
        _clear(directory, fresh=fresh, stages=again)
        run = _Run(job.recipe, directory, progress, device)
        if launch.node_rank == 0:
            run.prepare()
        yield run


class _Run:
    """One pass over the stages: what each makes is keyed by what it is made from."""

    def __init__(self, recipe: Recipe, directory: Path, progress: Progress, device: DeviceName) -> None:
        self._recipe = recipe
        self._base = Job(recipe=recipe, directory=directory, stage="pretrain")
        self._corpus = directory / "corpus"
        self._tokenizer = directory / "tokenizer"
        self._tokens = directory / "tokens"
        self._progress = progress
        self._device = device

    def prepare(self) -> None:
        """What takes seconds: everything before training.

        Raises:
            CheckpointError: The base model was trained from other tokens than these.
        """
        sources = gather(self._recipe.data.source)
        require_tokens(self._base, sources)
        corpus, tokenizer, tokens = _inputs(self._recipe, sources)
        size, longest = self._recipe.tokenizer.vocab_size, self._recipe.model.max_position
        self._make(self._corpus, corpus, lambda: write_corpus(sources, self._corpus))
        self._make(
            self._tokenizer,
            tokenizer,
            lambda: train_tokenizer(read_texts(self._corpus), size, self._tokenizer, longest),
        )
        self._make(self._tokens, tokens, self._write_tokens)

    def _make(self, folder: Path, inputs: Inputs, make: Callable[[], None]) -> None:
        """Make a cheap stage, unless it is there, made from these inputs."""
        if folder.exists() and read_mark(folder) == inputs:
            self._progress.reuse(folder.name)
            return
        self._progress.begin(folder.name, None)
        shutil.rmtree(folder, ignore_errors=True)
        make()
        write_mark(folder, inputs)
        self._progress.end(folder.name)

    def train(self, job: Job) -> Path:
        """Train a stage, or finish it, unless it is finished; returns the exported folder."""
        if job.recipe.launch.node_rank == 0:
            sweep(job.folder / "checkpoints")
        if job.recipe.launch.nodes == 1 and _is_done(job):
            self._progress.reuse(job.stage)
            return job.model

        def alone(progress: Progress) -> None:
            from tandem.training.run import train_and_export

            train_and_export(job, progress, Place(), self._device)

        logs = job.folder / "plog"
        tell_runtime(logs)
        carry_out(job, job.recipe.launch, logs, self._progress, self._device, alone)
        return job.model

    def _write_tokens(self) -> None:
        self._prepare("corpus.parquet", TEXTS, "text")
        if (self._corpus / "instructions.jsonl").stat().st_size:  # files without docstrings can be pretrained on
            self._prepare("instructions.jsonl", CONVERSATIONS, "openai")

    def _prepare(self, name: str, prefix: str, kind: Kind) -> None:
        spec = PrepareSpec(input=self._corpus / name, tokenizer=self._tokenizer, prefix=self._tokens / prefix,
                           kind=kind, seq_length=self._recipe.sft.seq_length)  # fmt: skip
        prepared = prepare(spec, Silence())
        if prepared.skipped:
            self._progress.note(f"{prefix}: {prepared.skipped} of {prepared.rows} rows are not trained on; see "
                                f"{prepared.skipped_file}")  # fmt: skip


def _inputs(recipe: Recipe, sources: Sources) -> tuple[Inputs, Inputs, Inputs]:
    """What corpus, tokenizer and tokens are made from."""
    corpus = {"source": recipe.data.source, "digest": sources.digest}
    tokenizer = {"corpus": digest(corpus), "vocab_size": recipe.tokenizer.vocab_size,
                 "max_length": recipe.model.max_position}  # fmt: skip
    tokens = {"corpus": digest(corpus), "tokenizer": digest(tokenizer), "longest": recipe.sft.seq_length}
    return corpus, tokenizer, tokens


def require_utf8(directory: Path) -> None:
    """Refuse a folder that not all who write there can be told of.

    Raises:
        UsageError: Its path is no UTF-8.
    """
    try:
        str(directory).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{directory}: the path is no UTF-8, and tables and tokens need one; use another") from None


def require_tokens(job: Job, sources: Sources) -> None:
    """Refuse to make tokens in place of those that there is a base model, or a checkpoint of one, of.

    Raises:
        CheckpointError: It was trained from other tokens than these files make.
    """
    before = finished(job.base)
    if (made_from := before.made_from) is not None:
        before.require({"tokens": made_from["tokens"]}, {"tokens": tokens_key(job.recipe, sources)})


def tokens_key(recipe: Recipe, sources: Sources) -> str:
    """The key of the tokens that these files make, or would."""
    *_, tokens = _inputs(recipe, sources)
    return digest(tokens)


def require_base(job: Job, tokens: str | None = None) -> None:
    """Refuse to make a base model longer, or another in its place, under what was fine-tuned from it.

    Args:
        job: Fine-tuning.
        tokens: The key of pretraining's, where these may not be made yet.

    Raises:
        CheckpointError: It is fine-tuned already, and asked for with more steps than it has; or was made from other
            inputs.
    """
    before, base = finished(job), finished(job.base)
    if (made_from := before.made_from) is None:
        return
    if base.made_from is None:
        before.require({"base": made_from["base"]}, {"base": digest(job.base.inputs(tokens))})
    if base.exported_from is None or _is_done(job.base, tokens):
        return
    raise CheckpointError(
        f"{job.folder}: was fine-tuned from {job.base.folder} as it is, which is to be made longer; use another "
        "folder, or fine-tune anew what comes of it with --no-resume"
    )


def _is_done(job: Job, tokens: str | None = None) -> bool:
    """Whether there is nothing to train; refuses a stage that was made from other inputs."""
    before = finished(job)
    return before.exported_from is not None and before.is_it(job.inputs(tokens))


def _clear(directory: Path, *, fresh: bool, stages: tuple[str, ...]) -> None:
    """Remove stages by name; whatever else is in the directory stays."""
    for name in ("corpus", "tokenizer", "tokens", "pretrain", "sft") if fresh else stages:
        shutil.rmtree(directory / name, ignore_errors=True)
