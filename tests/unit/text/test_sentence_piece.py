"""SentencePiece folders against the library itself and against transformers' LlamaTokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaTokenizer
from transformers.convert_slow_tokenizer import generate_merges

from tandem.text.tokenizer import Tokenizer

KINDS = ("llama2", "mistral", "yi", "chatglm3", "baichuan2")
plain_texts = st.text(max_size=30) | st.text("ab 12\n你🙂é", max_size=30)


def library(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def with_settings(made, tmp_path: Path, kind: str, **changes: object) -> Tokenizer:
    folder = shutil.copytree(made[kind][0], tmp_path / "changed")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_text_without_declared_tokens_is_the_librarys(made, kind: str) -> None:
    ours, theirs = Tokenizer.from_folder(made[kind][0]), library(made[kind][0])

    @given(plain_texts.filter(lambda text: "<" not in text))
    @settings(max_examples=200, deadline=None)
    def check(text: str) -> None:
        ids = theirs.encode(text)
        assert ours.encode(text, special=False) == ours._backend.encode_plain(text) == ids
        assert ours.decode(ids) == theirs.decode(ids)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_is_the_librarys_for_any_whole_characters(made, kind: str) -> None:
    """Pieces in any order; bytes that make no character are shown otherwise, as the UTF-8 standard advises."""
    ours, theirs = Tokenizer.from_folder(made[kind][0]), library(made[kind][0])
    pieces = [n for n in range(theirs.vocab_size()) if not (theirs.is_byte(n) or theirs.is_control(n) or n == 0)]

    @given(st.lists(st.sampled_from(pieces), max_size=20))
    @settings(max_examples=200, deadline=None)
    def check(ids: list[int]) -> None:
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids)

    check()


def test_llama_folders_are_read_as_transformers_reads_them(made) -> None:
    folder = made["llama2"][0]
    model, ours = library(folder), Tokenizer.from_folder(folder)
    vocabulary = {model.id_to_piece(number): number for number in range(model.vocab_size())}
    scores = {piece: model.get_score(number) for piece, number in vocabulary.items()}
    theirs = LlamaTokenizer(vocab=vocabulary, merges=generate_merges(vocabulary, scores), legacy=False,
                            add_bos_token=True)  # fmt: skip

    @given(st.lists(st.sampled_from(["Hello", " world", "12", "你好🙂", "<s>", "</s>", "é\n", "  ", "x"]), max_size=9))
    @settings(max_examples=200, deadline=None)
    def check(parts: list[str]) -> None:
        text = "".join(["a", *parts])
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)

    check()


def test_bos_and_eos_are_added_as_the_settings_say(made, tmp_path: Path) -> None:
    body = library(made["mistral"][0]).encode("Hi")
    assert Tokenizer.from_folder(made["mistral"][0]).encode("Hi") == [1, *body]
    assert with_settings(made, tmp_path / "1", "mistral", add_eos_token=True).encode("Hi") == [1, *body, 2]
    assert with_settings(made, tmp_path / "2", "mistral", add_bos_token=False).encode("Hi") == body
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(made["mistral"][0] / "tokenizer.model", bare)
    assert Tokenizer.from_folder(bare).encode("Hi<s>") == [1, *body, 1], "LlamaTokenizer's defaults"
    assert Tokenizer.from_folder(made["yi"][0]).encode("Hi")[0] != 1
    assert Tokenizer.from_folder(made["baichuan2"][0]).encode("Hi")[0] != 1


def test_a_space_comes_before_each_text_or_the_first_alone(made, tmp_path: Path) -> None:
    model = library(made["mistral"][0])
    hi, ho = model.encode("Hi"), model.encode("ho")
    legacy = Tokenizer.from_folder(made["mistral"][0])
    assert legacy.encode("Hi</s>ho", special=False) == [*hi, 2, *ho]
    later = with_settings(made, tmp_path / "1", "mistral", legacy=False)
    bare = model.encode(" ho")[1:] if model.id_to_piece(model.encode(" ho")[0]) == "▁" else None
    pieces = [model.id_to_piece(token) for token in later.encode("Hi</s>ho", special=False)]
    assert "".join(pieces) == "▁Hi</s>ho", bare
    never = with_settings(made, tmp_path / "2", "mistral", legacy=False, add_prefix_space=False)
    assert "".join(model.id_to_piece(token) for token in never.encode("Hi", special=False)) == "Hi"
    assert never.decode(never.encode(" Hi")) == " Hi"
    assert later.decode(later.encode(" Hi")) == " Hi"
    assert later.decode(later.encode("Hi")) == "Hi"


def test_chatglm_counts_its_tokens_on_from_the_last_piece(made) -> None:
    folder = made["chatglm3"][0]
    pieces, tokenizer = library(folder).vocab_size(), Tokenizer.from_folder(folder)
    names = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
    assert [tokenizer.id_of(name) for name in names] == list(range(pieces, pieces + 9))
    assert tokenizer.encode("Hi") == [pieces + 1, pieces + 3, *library(folder).encode("Hi")]
    text = "sop<|user|>[gMASK]"
    assert tokenizer.encode(text, special=False) == library(folder).encode(text), "not found in text"
    assert tokenizer.decode([pieces + 6, pieces + 3]) == ""


def test_chatglm_finds_the_tokens_its_settings_declare(made, tmp_path: Path) -> None:
    pieces = library(made["chatglm3"][0]).vocab_size()
    declared = {str(pieces + 6): {"content": "<|user|>", "special": True}}
    tokenizer = with_settings(made, tmp_path, "chatglm3", added_tokens_decoder=declared)
    assert tokenizer.encode("<|user|>", special=False) == [pieces + 6]
    assert tokenizer.vocab_size == pieces + 9


def test_added_tokens_extend_the_vocabulary(made, tmp_path: Path) -> None:
    folder = shutil.copytree(made["mistral"][0], tmp_path / "more")
    (folder / "added_tokens.json").write_text('{"<|extra|>": 1024, "word": 1025}')
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.vocab_size == 1026
    ids = tokenizer.encode("a<|extra|>b word", special=False)
    assert ids.count(1024) == ids.count(1025) == 1
    assert tokenizer.decode([1024, 1025]) == "<|extra|>word", "added, but not special"


def test_offsets_go_through_the_models_normaliser(tmp_path: Path) -> None:
    import io

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["fix the file and the fish"] * 9), model_writer=model, model_type="bpe", vocab_size=290,
        byte_fallback=True, normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=False, minloglevel=2,
        num_threads=1,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer = Tokenizer.from_folder(tmp_path)
    text = "你 ﬁx ＡＢ"
    ids, spans = tokenizer.encode_with_offsets(text, special=False)
    assert tokenizer.decode(ids) == "你 fix AB"
    covered = {at for begin, end in spans for at in range(begin, end)}
    assert covered == set(range(len(text)))
    assert spans == sorted(spans)


def test_special_tokens_between_spans(made) -> None:
    tokenizer = Tokenizer.from_folder(made["mistral"][0])
    ids, spans = tokenizer.encode_with_offsets("ab</s>🦤 c")
    at = ids.index(2)
    assert (ids[0], spans[0]) == (1, (0, 0))
    assert spans[at] == (2, 6)
    assert spans[-1][1] == 9
    assert (6, 7) in spans[at + 1 :]
