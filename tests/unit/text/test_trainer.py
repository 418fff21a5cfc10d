from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tandem.errors import RequestError, UsageError
from tandem.text.tokenizer import Tokenizer
from tandem.text.trainer import SPECIAL_TOKENS, train_tokenizer

TEXTS = [f"def function_{n}(self, value):\n    return value + {n}  # naïve café 東京\n" for n in range(50)]
TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What does os do?\n<|end|> is no end here?"},
    {"role": "assistant", "content": "  It talks to the system. 東京 "},
    {"role": "user", "content": "And?"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "tokenizer"
    train_tokenizer(TEXTS, 320, folder, 128)
    return folder


def test_special_tokens_come_first_and_every_text_comes_back(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.vocab_size == 320
    assert [tokenizer.id_of(token) for token in SPECIAL_TOKENS] == list(range(7))
    text = "Ω unseen 🐍\t\r\n  text"
    ids = tokenizer.encode(text)
    assert ids[0] == 0
    assert tokenizer.decode(ids) == text


def test_offsets_are_characters_of_the_text(folder: Path) -> None:
    text = "def naïve(東京):"
    ids, offsets = Tokenizer.from_folder(folder).encode_with_offsets(text, special=False)
    assert len(ids) == len(offsets)
    assert offsets[0][0] == 0
    assert offsets[-1][1] == len(text)


def test_training_is_repeatable(folder: Path, tmp_path: Path) -> None:
    train_tokenizer(iter(TEXTS), 320, tmp_path / "again", 128)
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_transformers_reads_it_and_renders_the_same(folder: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_folder(folder)
    assert ours.chat is not None
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == ("<s>", "</s>", "<pad>")
    assert theirs(TEXTS[3])["input_ids"] == ours.encode(TEXTS[3])
    for opened in (True, False):
        text = ours.chat.render(TALK, add_generation_prompt=opened)
        assert theirs.apply_chat_template(TALK, tokenize=False, add_generation_prompt=opened) == text
        ids = theirs.apply_chat_template(TALK, add_generation_prompt=opened, return_dict=False)
        assert ids == ours.encode(text, special=False)


def test_template_is_compact_and_refuses_unknown_roles(folder: Path) -> None:
    chat = Tokenizer.from_folder(folder).chat
    assert chat is not None
    assert chat.render(TALK[3:]) == "<s><|user|>And?<|end|><|assistant|>"
    with pytest.raises(RequestError, match="role tool is unknown"):
        chat.render([{"role": "tool", "content": "x"}])


def test_vocabularies_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 263"):
        train_tokenizer(TEXTS, 100, tmp_path / "small", 128)
    with pytest.raises(UsageError, match="hold only"):
        train_tokenizer(["aaaa"], 5000, tmp_path / "large", 128)
    assert not list(tmp_path.iterdir())
