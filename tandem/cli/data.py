"""`tandem data`: data to files to train on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts
from cyclopts import Parameter

if TYPE_CHECKING:
    from tandem.storage.copying import Synced
    from tandem.training.data.prepare import Prepared

app = cyclopts.App(name="data", help="Prepare data to train on; copy it from and to an object store.")


@app.command
def prepare(
    data: Path,
    /,
    *,
    tokenizer: Path,
    out: Path,
    stage: Literal["pretrain", "sft"] | None = None,
    kind: str = "auto",
    text_key: str = "text",
    seq_length: int | None = None,
    template: Literal["auto", "own", "alpaca"] = "auto",
    row_megabytes: int = 8,
    workers: int | None = None,
    wait: bool = True,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Tokenise texts or conversations into OUT_text_document or OUT_packed_..._document (.bin and .idx).

    What is there already, made from the same inputs, is used again. Rows that cannot be trained on are written to
    OUT_skipped.jsonl, with the reason. Prints where the files begin.

    Args:
        data: A .parquet, .arrow, .json, .jsonl, .csv or .txt file, or a folder of such.
        tokenizer: A model's folder, or one with its tokenizer files.
        out: Folder and beginning of the names of the files.
        stage: What the data is for; by default what its rows look like.
        kind: text, alpaca, sharegpt, openai, moss, moss-turns, a handler name of the documents, or auto.
        text_key: Key of the text to pretrain on.
        seq_length: Longest conversation, in tokens; longer ones are skipped.
        template: How conversations are worded: as the tokenizer says (own), as the documents' instruction template
            (alpaca), or by the first of these that there is.
        row_megabytes: Longest text or conversation, in MB; longer ones are skipped. A process takes 120 times as much
            memory for one.
        workers: Processes to tokenise with; by default as many as the data keeps busy.
        wait: Wait while another process prepares the same files; else it is refused.
        json: Print what was done as JSON.
    """
    from rich.console import Console

    from tandem.cli.training_bar import show_training
    from tandem.training.data.prepare import prepare as prepare_data
    from tandem.training.data.spec import PrepareSpec

    spec = PrepareSpec(
        input=data, tokenizer=tokenizer, prefix=out, stage=stage, kind=kind, text_key=text_key, seq_length=seq_length,
        template=template, row_megabytes=row_megabytes, workers=workers, wait=wait,
    )  # fmt: skip
    with show_training(Console(stderr=True)) as progress:
        prepared = prepare_data(spec, progress)
    print(_as_json(prepared) if json else prepared.prefix)


@app.command
def sync(
    source: str,
    target: str,
    /,
    *,
    delete: Annotated[bool, Parameter(negative="")] = False,
    workers: int = 8,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Copy a folder to an object store, or from one; only what differs is copied, and after a kill the same goes on.

    Addresses and credentials are those of AWS's tools: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ~/.aws/credentials.
    Prints how many files were copied.

    Args:
        source: A folder or file, or s3://BUCKET/KEY, or obs://BUCKET/KEY.
        target: The other side: all of the source is below it then.
        delete: Remove from the target what the source has not.
        workers: Files at once.
        json: Print what was done as JSON.
    """
    import os

    from rich.console import Console

    from tandem.cli.training_bar import show_training
    from tandem.storage.sync import sync as sync_both

    with show_training(Console(stderr=True)) as progress:
        done = sync_both(source, target, os.environ, progress, delete=delete, workers=workers)
    print(_as_json(done) if json else f"{done.copied} copied, {done.same} alike, {done.deleted} removed")


def _as_json(prepared: Prepared | Synced) -> str:
    import json

    return json.dumps(asdict(prepared), default=str)
