"""`tokenizer.json` against transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tandem.errors import ModelFolderError
from tandem.text.tokenizer import Tokenizer

texts = st.lists(
    st.text(max_size=6) | st.sampled_from(["<|im_end|>", "<|eot_id|>", "<|user|>", "<｜User｜>", " ", "\n\n", "🙂"]),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("kind", ["llama3", "qwen2", "deepseek", "glm"])
def test_ids_and_text_are_those_of_transformers(made, kind: str) -> None:
    ours = Tokenizer.from_folder(made[kind][0])
    theirs = AutoTokenizer.from_pretrained(made[kind][0])
    # Of DeepSeek's settings this version of transformers leaves out add_bos_token, which earlier ones heeded.
    first = [0] if kind == "deepseek" else []

    @given(texts, st.lists(st.integers(0, 1023), max_size=20))
    @settings(max_examples=200, deadline=None)
    def check(text: str, ids: list[int]) -> None:
        assert ours.encode(text) == first + theirs(text)["input_ids"]
        assert ours.encode(text, special=False) == theirs(text, add_special_tokens=False)["input_ids"]
        for skip in (True, False):
            expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special=skip) == expected

    check()


def test_special_tokens_can_be_text(made) -> None:
    tokenizer = Tokenizer.from_folder(made["glm"][0])
    ids = tokenizer._backend.encode_plain("<|user|>é")
    assert tokenizer.id_of("<|user|>") not in ids
    assert tokenizer.decode(ids) == "<|user|>é"


def test_llama_classes_add_what_the_settings_say(made, tmp_path: Path) -> None:
    folder = shutil.copytree(made["deepseek"][0], tmp_path / "d")
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    for bos, eos, expected in [(True, True, [0, 1]), (False, True, [1]), (False, False, [])]:
        path.write_text(json.dumps(fields | {"add_bos_token": bos, "add_eos_token": eos}))
        assert Tokenizer.from_folder(folder).encode("") == expected
    del fields["add_bos_token"]
    path.write_text(json.dumps(fields))
    assert Tokenizer.from_folder(folder).encode("") == [], "as tokenizer.json says, which is nothing"
    fields = json.loads((made["llama3"][0] / "tokenizer_config.json").read_text()) | {"add_bos_token": False}
    other = shutil.copytree(made["llama3"][0], tmp_path / "l")
    (other / "tokenizer_config.json").write_text(json.dumps(fields))
    assert len(Tokenizer.from_folder(other).encode("")) == 1, "tokenizer.json decides for other classes"


def test_indentation_has_characters_even_where_the_file_trims(made, tmp_path: Path) -> None:
    folder = shutil.copytree(made["llama3"][0], tmp_path / "l")
    path = folder / "tokenizer.json"
    source = path.read_text()
    assert '"trim_offsets": false' in source
    path.write_text(source.replace('"trim_offsets": false', '"trim_offsets": true'))
    _, spans = Tokenizer.from_folder(folder).encode_with_offsets("        x", special=False)
    assert all(begin < end for begin, end in spans)


def test_declared_tokens_that_the_file_lacks_are_added(made, tmp_path: Path) -> None:
    folder = shutil.copytree(made["llama3"][0], tmp_path / "l")
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    fields["added_tokens_decoder"] |= {"1024": {"content": "<new>", "special": True}, "2000": {"content": "<far>"}}
    path.write_text(json.dumps(fields))
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.id_of("<new>"), tokenizer.id_of("<far>")) == (1024, None)
    assert tokenizer.encode("<new>", special=False) == [1024]
    assert tokenizer.decode([1024]) == ""


def test_a_sentencepiece_like_file_decodes_as_the_library_does(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "▁▁", "你"]
    library = Library(
        models.BPE({piece: at for at, piece in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>")
    )
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.save(str(tmp_path / "tokenizer.json"))
    ours, theirs = Tokenizer.from_folder(tmp_path), PreTrainedTokenizerFast(tokenizer_object=library)

    @given(st.lists(st.integers(257, 261), max_size=8), st.text("a 你🙂", max_size=8))
    @settings(max_examples=200, deadline=None)
    def check(ids: list[int], text: str) -> None:
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
        encoded = ours.encode(text)
        assert encoded == theirs(text)["input_ids"]
        assert ours.decode(encoded) == theirs.decode(encoded, clean_up_tokenization_spaces=False)

    check()


def test_other_decoders_are_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models

    library = Library(models.WordLevel({"a": 0}, unk_token="a"))
    library.decoder = decoders.WordPiece()
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelFolderError, match=r"its decoder \(WordPiece\) is neither byte-level nor SentencePiece's"):
        Tokenizer.from_folder(tmp_path)
