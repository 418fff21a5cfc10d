"""Rank files against tiktoken itself, with ids written by hand."""

from __future__ import annotations

import base64
import json
import shutil
import time
import unicodedata
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.text.rank_file import _composed, _nfc, is_rank_file
from tandem.text.tokenizer import Tokenizer

# Bytes have their own ids; then " a" 256, "12" 257, "ab" 258, "123" 259.
MERGES = [b" a", b"12", b"ab", b"123"]


def folder_of(path: Path, name: str, settings_: dict[str, object]) -> Path:
    path.mkdir()
    tokens = [bytes([byte]) for byte in range(256)] + MERGES
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    (path / name).write_text("".join(lines))
    (path / "tokenizer_config.json").write_text(json.dumps(settings_))
    return path


@pytest.fixture
def qwen(tmp_path: Path) -> Tokenizer:
    settings_ = {"tokenizer_class": "QWenTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_qwen.X", None]}}
    return Tokenizer.from_folder(folder_of(tmp_path / "qwen", "qwen.tiktoken", settings_))


@pytest.fixture
def glm(tmp_path: Path) -> Tokenizer:
    return Tokenizer.from_folder(
        folder_of(tmp_path / "glm", "tokenizer.model", {"tokenizer_class": "ChatGLM4Tokenizer"})
    )


def test_qwens_special_tokens_follow_the_last_rank(qwen: Tokenizer) -> None:
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>", "<|extra_204|>"]
    assert [qwen.id_of(name) for name in names] == [260, 261, 262, 263, 467]
    assert qwen.id_of("<|extra_205|>") is None
    assert qwen.vocab_size == 468


def test_qwen_finds_special_tokens_in_text_and_adds_none(qwen: Tokenizer) -> None:
    assert qwen.encode("ab<|im_end|> a") == [258, 262, 256]
    assert qwen._backend.encode_plain("<|im_end|>") == list(b"<|im_end|>")
    assert qwen.decode([258, 262, 256]) == "ab a"
    assert qwen.decode([258, 262, 256], skip_special=False) == "ab<|im_end|> a"


def test_qwen_takes_digits_one_by_one_and_glm_up_to_three(qwen: Tokenizer, glm: Tokenizer) -> None:
    assert qwen.encode("123") == [0x31, 0x32, 0x33]
    assert glm.encode("1234", special=False) == [259, 0x34]


def test_qwen_composes_and_spans_tell_from_what(qwen: Tokenizer) -> None:
    text = "xe\u0301y"
    ids, spans = qwen.encode_with_offsets(text)
    assert ids == [0x78, *"é".encode(), 0x79]
    assert spans == [(0, 1), (1, 3), (1, 3), (3, 4)]
    hangul = "\u1112\u1161\u11ab!"
    ids, spans = qwen.encode_with_offsets(hangul)
    assert bytes(ids).decode() == "한!"
    assert spans == [(0, 3)] * 3 + [(3, 4)]


ACCENTS = "ae\u0301\u0323\u1100\u1161\u11a8\u0327 가\u0344\u0316\u0340\u0f71\u0f73\u0f74\u0f81\u0dd9\u0dcf\u0dca\u2126Å"


@given(st.text(max_size=12) | st.text(ACCENTS, max_size=12))
@settings(max_examples=500, deadline=None)
def test_stretches_compose_to_what_the_text_does(text: str) -> None:
    pieces = list(_composed(text))
    assert "".join(piece for piece, _, _ in pieces) == _nfc(text) == unicodedata.normalize("NFC", text)
    assert [begin for _, begin, _ in pieces[1:]] == [end for _, _, end in pieces[:-1]]


@pytest.mark.parametrize("accents", ["\u0301", "\u0301\u0316", "\u0344\u0316", "\u0f73", "\u11a8", "\u2126", "\u0dcf"])
def test_many_accents_take_no_longer_than_other_text(accents: str) -> None:
    text = "a" + accents * (30_000 // len(accents))
    began = time.monotonic()
    assert "".join(piece for piece, _, _ in _composed(text)) == _nfc(text)
    assert time.monotonic() - began < 2  # 0.2 s on an idle machine


def test_glm_counts_its_own_list_and_puts_two_tokens_first(glm: Tokenizer) -> None:
    names = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>",
             "<|assistant|>", "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>",
             "<|end_of_video|>"]  # fmt: skip
    assert [glm.id_of(name) for name in names] == list(range(260, 274))
    assert glm.encode("ab") == [262, 264, 258]
    assert glm.encode("<|user|>", special=False) == list(b"<|user|>"), "not found in text unless declared"


def test_glm_goes_by_what_the_settings_declare(tmp_path: Path) -> None:
    declared = {"300": {"content": "<|user|>", "special": True}, "301": {"content": "[gMASK]", "special": True}}
    settings_ = {"tokenizer_class": "ChatGLM4Tokenizer", "added_tokens_decoder": declared}
    tokenizer = Tokenizer.from_folder(folder_of(tmp_path / "glm", "tokenizer.model", settings_))
    assert tokenizer.encode("<|user|>ab", special=False) == [300, 258]
    assert (tokenizer.vocab_size, tokenizer.id_of("<sop>")) == (302, None)
    assert tokenizer.decode([270, 258]) == "ab", "between the ranks and the declared ids there is nothing"


@pytest.mark.parametrize("kind", ["qwen", "glm4"])
def test_text_is_tiktokens(made, kind: str) -> None:
    folder = made[kind][0]
    lines = (folder / ("qwen.tiktoken" if kind == "qwen" else "tokenizer.model")).read_text().split("\n")
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines if line}
    digits = r"\p{N}" if kind == "qwen" else r"\p{N}{1,3}"
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )  # fmt: skip
    theirs = tiktoken.Encoding("x", pat_str=words, mergeable_ranks=ranks, special_tokens={})
    ours = Tokenizer.from_folder(folder)

    @given(st.text(max_size=40), st.lists(st.integers(0, len(ranks) - 1), max_size=20))
    @settings(max_examples=200, deadline=None)
    def check(text: str, ids: list[int]) -> None:
        normal = unicodedata.normalize("NFC", text) if kind == "qwen" else text
        # Plain: the text may well spell a special token, of which `theirs` knows none.
        assert ours._backend.encode_plain(text) == theirs.encode_ordinary(normal)
        assert ours.decode(ids) == theirs.decode(ids, errors="replace")

    check()


def test_a_rank_file_is_told_from_a_sentencepiece_model_by_its_content(made) -> None:
    assert is_rank_file(made["glm4"][0] / "tokenizer.model")
    assert not is_rank_file(made["chatglm3"][0] / "tokenizer.model")


def test_libraries_are_loaded_for_their_own_folders_only(made) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from tandem.text.tokenizer import Tokenizer;"
        "t = Tokenizer.from_folder(Path(sys.argv[1])); t.encode('a');"
        "print(sorted({'sentencepiece', 'tiktoken', 'torch'} & set(sys.modules)))"
    )
    for kind, expected in (("llama3", "[]"), ("yi", "['sentencepiece']"), ("qwen", "['tiktoken']")):
        done = subprocess.run(
            [sys.executable, "-c", code, str(made[kind][0])], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected


def test_qwen_in_a_copied_folder_without_settings_is_still_read(made, tmp_path: Path) -> None:
    shutil.copy(made["qwen"][0] / "qwen.tiktoken", tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.id_of("<|im_start|>") == 817
