"""What breaks inside a tokenizer library is found when the folder is opened, or refuses the one request it is about."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tandem.errors import ModelFolderError, RequestError
from tandem.text.library import mapped, refused
from tandem.text.tokenizer import Tokenizer

Edit = Callable[[dict[str, Any]], None]


class PanicException(BaseException):
    """As pyo3's, which is no `Exception` either."""


def test_panics_become_one_line_and_interrupts_stay() -> None:
    with (
        pytest.raises(RequestError, match=r"cannot encode this text \(two lines\); shorten or change it"),
        mapped(refused),
    ):
        raise PanicException("two\nlines")
    with pytest.raises(KeyboardInterrupt), mapped(refused):
        raise KeyboardInterrupt
    with pytest.raises(ModelFolderError, match="as it is"), mapped(refused):
        raise ModelFolderError("as it is")


def refusal(folder: Path) -> str:
    with pytest.raises(ModelFolderError) as caught:
        Tokenizer.from_folder(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


@pytest.mark.parametrize("kind", ["llama2", "mistral", "yi", "chatglm3", "baichuan2"])
def test_a_piece_that_is_no_text_is_found_at_once(made, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(made[kind][0], tmp_path / "broken")
    path, piece = folder / "tokenizer.model", "▁the".encode()
    whole = path.read_bytes()
    assert piece in whole
    path.write_bytes(whole.replace(piece, b"\xff" + piece[1:], 1))
    assert "tokenizer.model: has a piece that is no text" in refusal(folder)
    path.write_bytes(whole[:2000] + b"\xff\xfe\xfd" + whole[2000:])
    assert "tokenizer.model: " in refusal(folder)


@pytest.mark.parametrize("kind", ["llama3", "llama2", "chatglm3", "baichuan2", "qwen2", "glm4"])
def test_a_token_without_characters_is_refused(made, tmp_path: Path, kind: str) -> None:
    for at, declared in enumerate((
        {"added_tokens_decoder": {"1023": {"content": "", "special": True}}},
        {"pad_token": {"content": ""}},
        {"additional_special_tokens": ["<x>", ""]},
    )):  # fmt: skip
        folder = shutil.copytree(made[kind][0], tmp_path / str(at))
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | declared))
        assert "declares a token without characters; remove it from tokenizer_config.json" in refusal(folder)
    folder = shutil.copytree(made[kind][0], tmp_path / "added")
    (folder / "added_tokens.json").write_text('{"": 1023}')
    assert "declares a token without characters; remove it from added_tokens.json" in refusal(folder)


@pytest.mark.parametrize("kind", ["llama2", "qwen2", "glm4"])
def test_ids_beyond_any_vocabulary_are_refused(made, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(made[kind][0], tmp_path / "far")
    path = folder / "tokenizer_config.json"
    far = {"added_tokens_decoder": {"99999999999": {"content": "<far>", "special": True}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | far))
    if kind == "qwen2":
        assert Tokenizer.from_folder(folder).id_of("<far>") is None, "not added, as its id would not come out"
    else:
        assert "its tokenizer cannot be used (it has the id 99999999999" in refusal(folder)


@pytest.mark.parametrize("name", ["qwen.tiktoken", "tokenizer.model"])
@pytest.mark.parametrize(
    ("rank", "fault"),
    [
        (5, "two tokens of one rank"),
        (-1, "not in 0..4294967294"),
        (2**32 - 1, "not in 0..4294967294"),
    ],
)
def test_ranks_are_distinct_and_in_range(tmp_path: Path, name: str, rank: int, fault: str) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": rank}
    (tmp_path / name).write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), at) for token, at in ranks.items()))
    (tmp_path / "config.json").write_text('{"model_type": "chatglm"}')
    assert fault in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["qwen", "glm4"])
def test_too_many_blanks_refuse_the_request_alone(made, kind: str) -> None:
    tokenizer = Tokenizer.from_folder(made[kind][0])
    for blank in (" ", "\t", "\u3000", "\xa0"):
        assert tokenizer.decode(tokenizer.encode(blank * 999_998)) == blank * 999_998
        for encode in (tokenizer.encode, tokenizer._backend.encode_plain):
            with pytest.raises(RequestError, match="at most 999998 blanks in a row; shorten them"):
                encode(blank * 1_000_000)
    assert len(tokenizer.encode("\n" * 1_000_000, special=False)) == 1_000_000


def _decoder(value: Any) -> Edit:
    return lambda fields: fields.update(decoder=value)


def _unlisted(fields: dict[str, Any]) -> None:
    for step in fields["post_processor"]["processors"]:
        step.get("special_tokens", {}).clear()


def _beyond(fields: dict[str, Any]) -> None:
    for step in fields["post_processor"]["processors"]:
        for token in step.get("special_tokens", {}).values():
            token["ids"] = [5000]


def _prefixed(fields: dict[str, Any]) -> None:
    fields["model"]["continuing_subword_prefix"] = "("


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        *((_decoder(value), "is no object with a type") for value in ([], 5, "x", {"type": [1]})),
        (_decoder({"type": "Sequence", "decoders": [1]}), "is no object with a type"),
        (_decoder({"type": "Sequence", "decoders": 5}), "decoders is no list of stages"),
        (_decoder({"type": "ByteLevel" * 1000}), "ByteLevelByteLevel"),
        (_decoder({"type": "Strip", "content": " ", "start": "1", "stop": 0}), "neither byte-level nor"),
        (_unlisted, "puts <|begin_of_text|> around a text, and does not list it"),
        (_beyond, "encodes text to the id 5000, which is none of its own"),
        (_prefixed, "continuing_subword_prefix is set, which no supported family does"),
    ],
)  # fmt: skip
def test_tokenizer_json_says_in_one_line_what_is_wrong(made, tmp_path: Path, edit: Edit, fault: str) -> None:
    folder = shutil.copytree(made["llama3"][0], tmp_path / "broken")
    path = folder / "tokenizer.json"
    fields = json.loads(path.read_text())
    edit(fields)
    path.write_text(json.dumps(fields))
    assert fault in refusal(folder)
