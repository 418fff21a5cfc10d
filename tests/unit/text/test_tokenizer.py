"""Every family's folder is opened by its files, runs nothing, and says in one line what is wrong with it."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.errors import ModelFolderError
from tandem.text.detokenizer import HALF, Detokenizer
from tandem.text.folder import TokenizerFolder
from tandem.text.making.writer import KINDS
from tandem.text.rank_file import RankFile, is_rank_file, read_ranks
from tandem.text.sentence_piece import SentencePieceModel, SentencePieceRules
from tandem.text.tokenizer import TOKENIZER_FILES, Tokenizer, tokenizer_files
from tandem.text.tokenizer_json import TokenizerJson

BACKENDS = dict.fromkeys(("llama3", "qwen2", "deepseek", "glm"), TokenizerJson)
BACKENDS |= dict.fromkeys(("llama2", "mistral", "yi", "chatglm3", "baichuan2"), SentencePieceModel)
BACKENDS |= dict.fromkeys(("qwen", "glm4"), RankFile)

pieces = st.sampled_from(
    [" ", "  ", "\n", "\r\n", "\t", "e\u0301", "é", "가", "\u1100\u1161", "你好", "🙂", "👩‍👩‍👧", "ﬁ", "\u00a0",
     "▁", "12345", "<0x41>", "def f(x):", "'s", "\x00", "\u0301", "<|im_end|>", "</s>", "sop"]
)  # fmt: skip
texts = st.lists(pieces | st.text(max_size=6), max_size=12).map("".join)


@pytest.fixture(scope="session")
def tokenizers(made) -> dict[str, Tokenizer]:
    return {kind: Tokenizer.from_folder(folder) for kind, (folder, _) in made.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_decide_the_backend(made, tokenizers, kind: str) -> None:
    tokenizer, ids = tokenizers[kind], made[kind][1]
    assert type(tokenizer._backend) is BACKENDS[kind]
    assert tokenizer.vocab_size == ids.size == 1024
    for token in (ids.bos, *ids.eos, ids.pad):
        assert token is None or tokenizer.bytes_of(token) == b"", "special tokens are no text"
        assert token is None or tokenizer.decode([token], skip_special=False) != ""


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_encoded_comes_back(tokenizers, kind: str) -> None:
    tokenizer = tokenizers[kind]
    composed = kind in ("qwen", "qwen2")

    @given(texts)
    @settings(max_examples=150, deadline=None)
    def check(text: str) -> None:
        ids, spans = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text) == tokenizer.encode_many(["x", text])[1]
        assert len(ids) == len(spans)
        assert spans == sorted(spans)
        assert all(0 <= begin <= end <= len(text) for begin, end in spans)
        plain = tokenizer._backend.encode_plain(text)
        expected = text.replace("▁", " ") if BACKENDS[kind] is SentencePieceModel else text
        if composed:
            expected = unicodedata.normalize("NFC", expected)
        if kind != "qwen2" or expected == text:
            covered = {at for begin, end in spans for at in range(begin, end)}
            assert covered == set(range(len(text))), "every character belongs to a token"
        assert tokenizer.decode(plain, skip_special=False) == expected

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_text_comes_in_pieces_as_it_does_at_once(tokenizers, kind: str) -> None:
    """Any ids: special ones, those a model has and its tokenizer has not, halves of characters."""
    tokenizer = tokenizers[kind]

    @given(st.lists(st.integers(0, 1100) | st.integers(0, 300), max_size=30))
    @settings(max_examples=300, deadline=None)
    def check(ids: list[int]) -> None:
        detokenizer = Detokenizer(tokenizer)
        parts = [detokenizer.push(token) for token in ids]
        assert "".join(parts) + detokenizer.flush() == tokenizer.decode(ids)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_character_never_comes_out(tokenizers, kind: str) -> None:
    tokenizer = tokenizers[kind]
    text = "🙂你好e\u0301 👩‍👩‍👧"
    detokenizer = Detokenizer(tokenizer)
    shown = ""
    for token in tokenizer._backend.encode_plain(text):
        shown += detokenizer.push(token)
        assert HALF not in shown
        assert tokenizer.decode(tokenizer._backend.encode_plain(text)).startswith(shown)
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("kind", KINDS)
def test_each_byte_of_a_character_has_its_span(tokenizers, kind: str) -> None:
    text = "aกb"
    _, spans = tokenizers[kind].encode_with_offsets(text, special=False)
    assert spans.count((1, 2)) == 3, "three byte tokens make the one character"
    assert spans[-1] == (2, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_beyond_the_tokenizer_are_no_text(tokenizers, kind: str) -> None:
    for skip in (True, False):
        assert tokenizers[kind].decode([1024, 65000, 151935], skip_special=skip) == ""


def test_python_that_a_folder_names_is_not_run(made, tmp_path: Path) -> None:
    evil = "import pathlib\npathlib.Path(__file__).with_name('ran').write_text('')\nclass Evil: pass\n"
    for kind in ("qwen", "chatglm3", "baichuan2", "glm4", "llama3"):
        folder = shutil.copytree(made[kind][0], tmp_path / kind)
        settings_path = folder / "tokenizer_config.json"
        fields = json.loads(settings_path.read_text())
        fields["auto_map"] = {"AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"]}
        settings_path.write_text(json.dumps(fields))
        for name in ("tokenization_evil.py", "tokenization_qwen.py", "tokenization_chatglm.py", "__init__.py"):
            (folder / name).write_text(evil)
        tokenizer = Tokenizer.from_folder(folder)
        assert tokenizer.chat is not None
        tokenizer.chat.encode([{"role": "user", "content": "hi"}])
        assert not (folder / "ran").exists()
        assert "tokenization_evil" not in sys.modules
        kept = tokenizer_files(folder)
        assert not any(name.endswith(".py") for name in kept)
        assert b"auto_map" in kept["tokenizer_config.json"]


@pytest.mark.parametrize("kind", KINDS)
def test_exported_files_make_the_same_tokenizer(made, tokenizers, kind: str, tmp_path: Path) -> None:
    folder, _ = made[kind]
    for name, content in tokenizer_files(folder).items():
        (tmp_path / name).write_bytes(content)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in folder.iterdir()} - {"config.json"}
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    again, talk = Tokenizer.from_folder(tmp_path), [{"role": "user", "content": "hi"}]
    assert again.chat is not None
    assert again.chat.encode(talk) == tokenizers[kind].chat.encode(talk)
    assert all(not name.endswith(".py") for name in TOKENIZER_FILES)


def test_a_file_that_lost_tokens_yields_to_the_model_beside_it(made, tmp_path: Path) -> None:
    """Yi's `tokenizer.json` of 63992 tokens, and its SentencePiece model of 64000."""
    folder = shutil.copytree(made["yi"][0], tmp_path / "yi")
    (folder / "tokenizer.json").write_bytes(_like_yi(folder, lost=8))
    tokenizer = Tokenizer.from_folder(folder)
    assert type(tokenizer._backend) is SentencePieceModel
    assert tokenizer.vocab_size == 1024
    (folder / "tokenizer.json").write_bytes(_like_yi(folder, lost=0))
    assert type(Tokenizer.from_folder(folder)._backend) is TokenizerJson
    (folder / "tokenizer.model").unlink()
    assert Tokenizer.from_folder(folder).vocab_size == 1024


def _like_yi(folder: Path, lost: int) -> bytes:
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocabulary = {model.id_to_piece(number): number for number in range(model.vocab_size() - lost)}
    fields = {
        "version": "1.0", "padding": None,
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": vocabulary, "merges": []},
    }  # fmt: skip
    return json.dumps(fields).encode()


def test_a_files_own_cut_is_not_made(made, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(_like_yi(made["yi"][0], lost=0))
    assert len(Tokenizer.from_folder(tmp_path).encode("abcdefgh")) == 8


BROKEN = [
    ("llama3", "tokenizer.json", "{", "tokenizer.json: is no tokenizer"),
    ("llama3", "tokenizer.json", '{"model": 1}', "its decoder"),
    ("llama3", "tokenizer.json", "[]", "tokenizer.json: is no tokenizer"),
    ("llama3", "tokenizer_config.json", "[1", "tokenizer_config.json: cannot be read"),
    ("llama3", "config.json", "{", "config.json: cannot be read"),
    ("llama2", "tokenizer.model", "\nnonsense", "tokenizer.model: is no SentencePiece model"),
    ("llama2", "tokenizer.model", "", "tokenizer.model: is no SentencePiece model"),
    ("llama2", "tokenizer_config.json", '{"tokenizer_class": "T5Tokenizer"}', "of a T5Tokenizer is not read"),
    ("llama2", "tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "a"}}}', "has the id 'x'"),
    ("llama2", "tokenizer_config.json", '{"added_tokens_decoder": {"1": 5}}', "a declared token is 5"),
    ("llama2", "added_tokens.json", '{"a": -1}', "has the id -1"),
    ("qwen", "qwen.tiktoken", "IQ== 0\nI? 1\n", "is no file of tokens and ranks"),
    ("qwen", "qwen.tiktoken", "IQ== 0\n", "has no token for byte 0x00"),
    ("glm4", "config.json", '{"model_type": "llama"}', "of which only GLM-4's"),
]


@pytest.mark.parametrize(("kind", "name", "content", "message"), BROKEN, ids=[message for *_, message in BROKEN])
def test_what_is_wrong_is_one_line_with_the_file(made, tmp_path, kind, name, content, message) -> None:
    folder = shutil.copytree(made[kind][0], tmp_path / "folder")
    (folder / name).write_text(content)
    if kind == "glm4":
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ModelFolderError, match=message) as caught:
        Tokenizer.from_folder(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


UNREADABLE = [("llama3", "tokenizer.json"), ("llama2", "tokenizer.model"), ("qwen", "qwen.tiktoken"),
              ("glm4", "tokenizer.model"), ("llama2", "chat_template.jinja")]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), UNREADABLE)
def test_a_folder_in_a_files_place_is_one_line_with_its_name(made, tmp_path: Path, kind: str, name: str) -> None:
    folder = shutil.copytree(made[kind][0], tmp_path / "folder")
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    for read in (Tokenizer.from_folder, tokenizer_files):
        with pytest.raises(ModelFolderError, match=f"{name}: .*copy the file again") as caught:
            read(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "open_", [is_rank_file, read_ranks, lambda path: SentencePieceModel(path, SentencePieceRules())]
)
def test_readers_name_the_file_they_cannot_read(open_: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"gone: cannot be read \(No such file"):
        open_(tmp_path / "gone")


def test_the_models_type_is_read_once(made, tmp_path: Path) -> None:
    folder = TokenizerFolder(shutil.copytree(made["chatglm3"][0], tmp_path / "folder"))
    assert folder.model_type == "chatglm"
    (folder.path / "config.json").unlink()
    assert folder.model_type == "chatglm"


def test_a_folder_without_tokenizer_is_told_what_to_copy(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"has no tokenizer.json, tokenizer.model or qwen.tiktoken; copy"):
        Tokenizer.from_folder(tmp_path)


@given(text=st.text("ab \n😀", max_size=60).map(lambda some: some * 40), tokens=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_a_text_exceeds_a_number_of_tokens_only_if_it_does(
    tokenizers: dict[str, Tokenizer], text: str, tokens: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tandem.text.tokenizer.CUT", 4)
        for tokenizer in tokenizers.values():
            assert not (tokenizer.exceeds(text, tokens) and len(tokenizer.encode(text)) <= tokens)
            assert tokenizer.exceeds("你1b2 " * 9 * tokens + "x" * 99, tokens)
