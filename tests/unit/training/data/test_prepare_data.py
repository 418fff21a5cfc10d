"""From files to `.bin/.idx`: what is learnt, what is skipped, what is used again, and kills."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from recording import Recording

from tandem.cli import run
from tandem.errors import DataError, ModelFolderError, ProcessError, UsageError
from tandem.text.tokenizer import Tokenizer
from tandem.text.trainer import train_tokenizer
from tandem.training.alone import alone_at
from tandem.training.data import workers
from tandem.training.data.encoding import Encoder, Encoding
from tandem.training.data.indexed import IndexedTokens
from tandem.training.data.open import open_conversations
from tandem.training.data.output import packed_prefix, text_prefix
from tandem.training.data.prepare import Prepared, prepare
from tandem.training.data.readers.blocks import Block
from tandem.training.data.spec import PrepareSpec
from tandem.training.progress import Silence

ROWS = [{"instruction": "hello", "input": "naïve" * (n % 3), "output": f"bye {n}", "text": f"hello {n}"}
        for n in range(40)]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare") / "tokenizer"
    train_tokenizer(["hello bye naïve 東京 hello bye"] * 9, 280, folder, 128)
    return folder


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


def made(path: Path, folder: Path, progress: Any = None, **options: Any) -> Prepared:
    prefix = path.parent / "out" / "d"
    return prepare(PrepareSpec(input=path, tokenizer=folder, prefix=prefix, **options), progress or Silence())


def documents(prefix: Path) -> list[list[int]]:
    tokens = IndexedTokens(prefix)
    return [tokens[number].tolist() for number in range(len(tokens))]


def test_only_answers_and_their_ends_are_learnt(parquet: Path, folder: Path) -> None:
    prepared = made(parquet, folder, kind="GeneralInstructionHandler")
    assert (prepared.stage, prepared.kind, prepared.rows, prepared.documents) == ("sft", "alpaca", 40, 40)
    tokenizer = Tokenizer.from_folder(folder)
    ids, labels, mask = (documents(packed_prefix(prepared.prefix, field))
                         for field in ("input_ids", "labels", "attention_mask"))  # fmt: skip
    text = [tokenizer.decode(document, skip_special=False) for document in ids]
    assert text[1] == "<s><|user|>hello\nnaïve<|end|><|assistant|>bye 1<|end|>"
    learnt = [[label for label in document if label != -100] for document in labels]
    assert [tokenizer.decode(one, skip_special=False) for one in learnt] == [f"bye {n}<|end|>" for n in range(40)]
    for one_ids, one_labels in zip(ids, labels, strict=True):
        assert all(label in (-100, token) for token, label in zip(one_ids, one_labels, strict=True))
    assert mask == [[1] * len(document) for document in ids]
    assert prepared.learnt == sum(map(len, learnt))


def test_the_same_file_is_texts_for_pretraining(parquet: Path, folder: Path) -> None:
    prepared = made(parquet, folder, kind="GeneralPretrainHandler")
    tokenizer = Tokenizer.from_folder(folder)
    assert IndexedTokens(text_prefix(prepared.prefix)).tokens.dtype == np.uint16
    found = [tokenizer.decode(document, skip_special=False) for document in documents(text_prefix(prepared.prefix))]
    assert found == [f"<s>hello {n}</s>" for n in range(40)]
    assert prepared.tokens == prepared.learnt == len(IndexedTokens(text_prefix(prepared.prefix)).tokens)


def test_the_documents_template_for_tokenizers_without_one(parquet: Path, folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in folder.iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    settings.pop("chat_template")
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match="has no chat template"):
        made(parquet, bare, template="own")
    progress = Recording()
    prepared = made(parquet, bare, progress)
    assert "worded by the template alpaca" in progress.notes[-2]
    tokenizer = Tokenizer.from_folder(bare)
    ids, labels = (documents(packed_prefix(prepared.prefix, field))[1] for field in ("input_ids", "labels"))
    text = tokenizer.decode(ids, skip_special=False)
    assert text.startswith("<s>\nBelow is an instruction that describes")
    assert text.endswith("step by step.\n### Instruction:\nhello\nnaïve\n### Response:\nbye 1</s>")
    assert tokenizer.decode([label for label in labels if label != -100], skip_special=False) == "bye 1</s>"
    assert prepared.chat_template is not None
    settings["chat_template"] = prepared.chat_template
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    chatting = Tokenizer.from_folder(bare).chat
    assert chatting is not None
    question = [{"role": "user", "content": "hello\nnaïve"}]
    assert ids[: len(prompt := chatting.encode(question))] == prompt


def test_rows_that_cannot_be_trained_on_are_kept_aside(folder: Path, tmp_path: Path) -> None:
    good, long = json.dumps(ROWS[0]), json.dumps({"instruction": "x", "output": "y" * 99})
    rows = [good, "{broken", long, '{"instruction": "x"}', "", '{"instruction": "\\ud800", "output": "x"}', good]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    progress = Recording()
    prepared = made(tmp_path / "rows.jsonl", folder, progress, seq_length=40)
    assert (prepared.rows, prepared.documents, prepared.skipped) == (6, 2, 4)
    assert prepared.skipped_file is not None
    kept = [json.loads(line) for line in prepared.skipped_file.read_text().splitlines()]
    assert [(row["file"], row["row"]) for row in kept] == [("rows.jsonl", place) for place in (1, 2, 3, 5)]
    for row, reason in zip(
        kept, ["is no JSON", "more than seq_length 40", "no text `output`", "cannot encode"], strict=True
    ):
        assert reason in row["reason"]
    assert kept[0]["content"] == "{broken"
    assert kept[1]["content"] == json.loads(long)
    assert progress.notes[-2] == f"sft: 2 conversations (alpaca), {prepared.tokens} tokens, {prepared.learnt} learnt"
    assert progress.notes[-1].startswith(f"4 skipped, see {prepared.skipped_file}: 1 times: is no JSON")
    again = Recording()
    assert made(tmp_path / "rows.jsonl", folder, again, seq_length=40).reused
    assert again.notes == progress.notes[-2:], "who comes later is told the same"


def test_texts_that_cannot_be_tokenised_do_not_take_others_along(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "hello"}\n{"text": "\\ud800"}\n{"text": " "}\n{"text": "bye"}\n')
    prepared = made(tmp_path / "t.jsonl", folder)
    assert (prepared.documents, prepared.skipped) == (2, 2)


@pytest.mark.parametrize(("stage", "row"), [("pretrain", {"text": "é" * 500_001}),
                                            ("sft", {"instruction": "hello", "output": "é" * 500_000})])  # fmt: skip
def test_rows_that_would_take_all_memory_are_kept_aside(folder: Path, tmp_path: Path, stage: Any, row: Any) -> None:
    (tmp_path / "d.json").write_text(json.dumps([*ROWS, row]))
    done = made(tmp_path / "d.json", folder, stage=stage, row_megabytes=1)
    assert (done.documents, done.skipped) == (40, 1)
    assert done.skipped_file is not None
    reason = json.loads(done.skipped_file.read_text())["reason"]
    assert reason.startswith("1.0 MB of text are more than row_megabytes 1; divide them into several rows")
    with pytest.raises(UsageError, match="row_megabytes 0: leaves no room"):
        made(tmp_path / "d.json", folder, row_megabytes=0)


def test_data_with_no_good_row_is_refused_with_the_reasons(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "x", "output": ""}\n' * 3 + '{"instruction": 1, "output": "x"}\n')
    with pytest.raises(
        DataError, match=r"none of 4 alpaca rows .* 3 times: no turn of the assistant .*row 0\); 1 times"
    ):
        made(path, folder)
    path.write_text('{"instruction": "x", "output": "y"}\n')
    with pytest.raises(DataError, match=r"1 times: .* more than seq_length 2 .*; mend the data, raise seq_length"):
        made(path, folder, seq_length=2)
    with pytest.raises(ModelFolderError, match="nowhere: is not there; give a folder with a model's tokenizer files"):
        made(path, tmp_path / "nowhere")
    path.write_text("")
    for kind in ("auto", "text"):
        with pytest.raises(DataError, match="holds no row"):
            made(path, folder, kind=kind)
    assert not list((tmp_path / "out").glob("d*"))


class Meddling(Recording):
    """Writes more rows behind those that are being read."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def advance(self, done: int, numbers: str) -> None:
        with self._path.open("a") as file:
            file.write('{"text": "late"}\n')


def test_what_changes_while_it_is_read_is_not_taken(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "hello"}\n')
    with pytest.raises(DataError, match=r"t\.jsonl: changed while it was read; prepare again"):
        made(path, folder, Meddling(path))
    assert not list((tmp_path / "out").glob("d*"))
    assert made(path, folder).documents > 1


def test_a_full_disk_is_told_with_its_place(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "hello"}\n' * 9000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a file that grows too large is an error
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(DataError, match=r"out/d: cannot be written \(File too large\); free disk space"):
            made(tmp_path / "t.jsonl", folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name != ".d.lock"]


def test_names_need_not_be_utf_8(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"t\xff.jsonl")
    path.write_text('{"text": "hello"}\n')
    assert not made(path, folder).reused
    assert made(path, folder).reused


def test_what_is_done_is_used_again_and_what_changed_is_made_anew(parquet: Path, folder: Path) -> None:
    progress = Recording()
    first = made(parquet, folder, progress)
    os.utime(parquet)
    second = made(parquet, folder, progress)
    assert (first.reused, second.reused) == (False, True)
    assert second.documents == first.documents
    assert progress.reused == ["prepare data"]
    third = made(parquet, folder, progress, seq_length=128)
    assert not third.reused
    assert "seq_length was None, now 128" in progress.notes[-2]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[:9]), parquet)
    assert made(parquet, folder, seq_length=128).documents == 9
    (packed_prefix(third.prefix, "labels").with_suffix(".bin")).write_bytes(b"")
    assert not made(parquet, folder, seq_length=128).reused
    assert made(parquet, folder, kind="text").stage == "pretrain"
    assert not list(third.prefix.parent.glob("*packed*"))


def test_the_number_of_workers_changes_nothing(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(7):  # each is a block
        rows = [json.dumps({"instruction": f"{number} {n}", "output": "bye " * number or "x"}) for n in range(9)]
        deep = '{"instruction": 1, "output": ' + "[" * 900 + "]" * 900 + "}"  # too deep to be sent to a process
        (data / f"{number}.jsonl").write_text("\n".join([*rows, "broken" if number else deep]))
    found = []
    for count in (1, 2):
        prepared = made(data, folder, workers=count, seq_length=64 - count)  # another length, so that it is made anew
        assert (prepared.documents, prepared.skipped) == (63, 7)
        assert prepared.skipped_file is not None
        labels = packed_prefix(prepared.prefix, "labels").with_suffix(".bin").read_bytes()
        found.append((labels, prepared.skipped_file.read_bytes()))
    assert found[0] == found[1]


def test_a_worker_that_dies_is_told(folder: Path) -> None:
    encoding = Encoding(
        tokenizer=folder, kind="text", text_key="text", seq_length=None, template="auto", row_megabytes=1
    )
    block = Block("a", 0, ({"text": "hello"},), 1)

    def blocks() -> Iterator[Block]:
        yield from [block] * 7
        for child in multiprocessing.active_children():
            child.kill()
        yield from [block] * 9

    with pytest.raises(ProcessError, match="one of 2 tokenising processes died"):
        list(workers.encode_blocks(blocks(), encoding, Encoder(encoding), 2))


def test_a_kill_leaves_what_was_there_and_no_process(parquet: Path, folder: Path) -> None:
    """Killed between reading and writing, at a point that the child itself tells."""
    before = made(parquet, folder)
    tokens = packed_prefix(before.prefix, "input_ids").with_suffix(".bin").read_bytes()
    code = f"""
import sys, time, pathlib, multiprocessing
from tandem.training.data import prepare, output
from tandem.training.progress import Silence
class Slow(output.DocumentWriter):
    def add(self, encoded):
        super().add(encoded)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(60)
prepare.DocumentWriter = Slow
if __name__ == "__main__":
    prepare.prepare(prepare.PrepareSpec(input=pathlib.Path({str(parquet)!r}), tokenizer=pathlib.Path({str(folder)!r}),
                    prefix=pathlib.Path({str(before.prefix)!r}), seq_length=99, workers=2), Silence())
"""
    script = parquet.parent / "killed.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        pids = [int(pid) for pid in child.stdout.readline().split()]
        assert pids
        with pytest.raises(UsageError, match=f"another process .*pid {child.pid}"):
            made(parquet, folder, wait=False)
        child.kill()
    assert packed_prefix(before.prefix, "input_ids").with_suffix(".bin").read_bytes() == tokens
    assert made(parquet, folder).reused
    ended = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < ended:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not made(parquet, folder, seq_length=99).reused
    assert not list(before.prefix.parent.glob(".*preparing"))


def test_a_kill_at_any_point_leaves_the_old_or_the_new_or_nothing(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:7]))
    before = made(path, folder)
    before.prefix.parent.rename(tmp_path / "before")
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, "broken"]))
    program = Path(__file__).parents[3] / "killed_preparing.py"
    done = subprocess.run(
        [sys.executable, program, path, folder, tmp_path], capture_output=True, text=True, check=True,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    kills = int(done.stdout)
    found = [conversations_at(tmp_path / str(number) / "d") for number in range(kills + 1)]
    assert kills > 20
    assert [number for number, _ in groupby(found)] == [7, 0, 40]
    for number in (0, kills // 2, kills - 1):
        spec = PrepareSpec(input=path, tokenizer=folder, prefix=tmp_path / str(number) / "d")
        assert prepare(spec, Silence()).documents == 40


def conversations_at(prefix: Path) -> int:
    """How many there are, all of which can be read; none where the files are refused."""
    with suppress(DataError):
        batches = open_conversations(prefix, seq_length=64, seed=0, pad=0, pack=False)
        assert batches.at(0, batches.samples).valid() > 0
        return batches.samples
    return 0


def test_a_second_one_waits(parquet: Path, folder: Path) -> None:
    progress, holder = Recording(), ExitStack()
    holder.enter_context(alone_at(parquet.parent / "out" / "d", Silence(), work="prepares data", wait=False))
    progress.note = lambda text: (progress.notes.append(text), holder.close())  # type: ignore[method-assign]
    assert made(parquet, folder, progress).documents == 40
    assert f"pid {os.getpid()}) prepares data there; waiting" in progress.notes[0]


def test_ctrl_c_while_workers_start_is_answered_in_one_line(parquet: Path, folder: Path, tmp_path: Path) -> None:
    code = "import signal, tandem.cli; signal.signal(signal.SIGINT, signal.default_int_handler); tandem.cli.main()"
    words = ["data", "prepare", str(parquet), "--tokenizer", str(folder), "--out", str(tmp_path / "d"), "--workers"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words, "2"], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        while "spawn_main" not in commands_below(run.pid):
            assert run.poll() is None
            time.sleep(0.005)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does
        said = run.communicate(timeout=60)[1]
    assert run.returncode == 130, said
    assert said == "prepare data: begins\ntandem: stopped\n", said


def commands_below(process: int) -> str:
    """The command lines of its children."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return " ".join(Path(f"/proc/{child}/cmdline").read_text() for child in children)
    except OSError:  # one has ended meanwhile
        return ""


def test_command_line(parquet: Path, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["data", "prepare", str(parquet), "--tokenizer", str(folder), "--out", str(tmp_path / "o" / "d")]
    assert run([*words, "--json", "--seq-length", "64"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["documents"], said["kind"], said["prefix"]) == (40, "alpaca", str(tmp_path / "o" / "d"))
    assert run([*words[:-1], str(tmp_path), "--kind", "text"]) == 2
    assert "is a folder; add how" in capsys.readouterr().err
    assert run([*words, "--workers", "0"]) == 2
    assert run([*words, "--workers", "9" * 20]) == 2
    assert run([*words, "--seq-length", "1"]) == 2
