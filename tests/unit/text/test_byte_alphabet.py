"""The alphabet of byte-level tokens is the library's."""

from __future__ import annotations

from tokenizers import decoders, pre_tokenizers

from tandem.text.byte_alphabet import BYTE_OF, token_bytes


def test_it_has_the_librarys_characters_in_the_librarys_meaning() -> None:
    assert set(BYTE_OF) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_OF.values()) == list(range(256))
    text = "".join(map(chr, range(0x180))) + "你好🙂"
    [(token, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert token_bytes(token).decode() == text == decoders.ByteLevel().decode([token])


def test_a_token_with_other_characters_is_its_own_text() -> None:
    assert token_bytes("<｜User｜>") == "<｜User｜>".encode()
