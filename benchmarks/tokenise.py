"""`tandem data prepare` beside the `tokenizers` library alone, in one run, with the same processes and texts.

    python benchmarks/tokenise.py --processes 2 --megabytes 32

The texts are Python's standard library, again and again, as JSON Lines; the tokenizer is one of 8,192 tokens trained on
it. The library alone: so many spawned processes, each of which parses its share of the lines and gives them to
`encode_batch_fast` with threads off; ids are thrown away, nothing is written. Ours reads, hashes, tokenises, ends each
document, orders and writes. Both are timed from before their processes are spawned until they have ended (`whole`).
The library is timed once more without spawning and parsing, as its slowest process counts (`encoding`). Runs alternate;
medians are printed, and their ratios.

`--conversations` takes questions and answers from docstrings instead (some 38 tokens each), with the mask of answers;
the library alone then encodes the same words as they are rendered.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

from tandem.text.template import TemplateFormat
from tandem.text.tokenizer import Tokenizer
from tandem.text.trainer import train_tokenizer
from tandem.training.data.corpus import STANDARD_LIBRARY, gather
from tandem.training.data.docstrings import questions_and_answers
from tandem.training.data.prepare import prepare
from tandem.training.data.spec import PrepareSpec
from tandem.training.progress import Silence

BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--megabytes", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--conversations", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options)


def compare(folder: Path, options: argparse.Namespace) -> None:
    tokenizer = folder / "tokenizer"
    files = gather(STANDARD_LIBRARY).files
    train_tokenizer([file.text for file in files], 8192, tokenizer, 4096)
    if options.conversations:
        rows = [row for file in files for row in questions_and_answers(file.path, file.text)]
        chat = Tokenizer.from_folder(tokenizer).chat
        assert isinstance(chat, TemplateFormat)
        texts = [chat.render(row["messages"], add_generation_prompt=False) for row in rows]
    else:
        rows = [{"text": file.text} for file in files]
        texts = [file.text for file in files]
    size = sum(len(text.encode()) for text in texts)
    repeats = max(1, options.megabytes * 1_000_000 // size)
    ours_file, theirs_file = folder / "ours.jsonl", folder / "theirs.jsonl"
    write(ours_file, rows, repeats)
    write(theirs_file, [{"text": text} for text in texts], repeats)
    megabytes = size * repeats / 1e6
    print(
        f"{len(rows) * repeats:,} rows, {megabytes:.0f} MB of text, {options.processes} processes, "
        f"{os.cpu_count()} cores"
    )
    ours, whole, encoding = [], [], []
    for number in range(options.runs):
        ours.append(time_ours(ours_file, tokenizer, folder / f"out{number}" / "d", options.processes))
        taken, slowest = time_theirs(theirs_file, tokenizer, options.processes)
        whole.append(taken)
        encoding.append(slowest)
        print(
            f"run {number + 1}: ours {ours[-1]:.2f} s, library {taken:.2f} s whole, {slowest:.2f} s encoding",
            flush=True,
        )
    our, their, alone = (megabytes / statistics.median(times) for times in (ours, whole, encoding))
    print(f"ours               {our:6.2f} MB/s")
    print(f"library, whole     {their:6.2f} MB/s   ours is {our / their:.2f} of it")
    print(f"library, encoding  {alone:6.2f} MB/s   ours is {our / alone:.2f} of it")


def write(path: Path, rows: list[dict[str, object]], repeats: int) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    with path.open("w") as file:
        for _ in range(repeats):
            file.write(lines)


def time_ours(data: Path, tokenizer: Path, prefix: Path, processes: int) -> float:
    began = time.perf_counter()
    prepare(PrepareSpec(input=data, tokenizer=tokenizer, prefix=prefix, workers=processes), Silence())
    return time.perf_counter() - began


def time_theirs(data: Path, tokenizer: Path, processes: int) -> tuple[float, float]:
    began = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        parts = [(data, tokenizer / "tokenizer.json", part, processes) for part in range(processes)]
        times = pool.starmap(encode_alone, parts)
    return time.perf_counter() - began, max(times)


def encode_alone(data: Path, file: Path, part: int, parts: int) -> float:
    """Seconds of encoding alone."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    with data.open() as lines:
        texts = [json.loads(line)["text"] for number, line in enumerate(lines) if number % parts == part]
    began = time.perf_counter()
    for begin in range(0, len(texts), BATCH):
        for encoding in tokenizer.encode_batch_fast(texts[begin : begin + BATCH]):
            encoding.ids  # noqa: B018 - what one is after
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
