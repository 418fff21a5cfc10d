"""The library's serialised answer, read here, against the same answer read by the library."""

from __future__ import annotations

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.text.piece_spans import read_pieces


@pytest.mark.parametrize("kind", ["llama2", "yi"])
def test_ids_and_characters_are_the_librarys(made, kind: str) -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(made[kind][0] / "tokenizer.model"))
    if not hasattr(model, "encode_as_offset_mapping"):
        pytest.skip("this version of the library has no offsets of its own to compare with")

    @given(st.text(max_size=200) | st.text("ab 你🙂é\n", max_size=200))
    @settings(max_examples=200, deadline=None)
    def check(text: str) -> None:
        theirs = model.encode_as_offset_mapping(text)
        assert read_pieces(model.encode(text, out_type="serialized_proto"), text) == (theirs["ids"], theirs["offsets"])

    check()
