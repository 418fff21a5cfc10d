"""Chat templates run, in a sandbox, and fail in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tandem.errors import ModelFolderError, RequestError
from tandem.text.chat import ChatTemplate
from tandem.text.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<s>"}, "here")


def test_renders_as_hugging_face_does() -> None:
    turns = "{% for m in messages %}\n{{ m.role }}: {{ m['content'] }}\n{% endfor %}\n"
    source = "{{ bos_token }}" + turns + "{{ add_generation_prompt }}"
    assert template(source).render(MESSAGES) == "<s>user: hi\nassistant: ho\nTrue"


def test_json_is_not_escaped_for_html() -> None:
    assert template("{{ messages[0] | tojson }}").render([{"role": "user", "content": "<é>"}]).endswith('"<é>"}')


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('two user turns in a row') }}",
        "{{ undefined_name.attribute }}",
    ],
)
def test_escapes_and_refusals_are_request_errors(source: str) -> None:
    with pytest.raises(RequestError, match="chat template refuses"):
        print(template(source).render(MESSAGES))


def test_a_broken_template_is_said_at_load() -> None:
    with pytest.raises(ModelFolderError, match="here: the chat template is broken"):
        template("{% for %}")


def test_found_in_its_own_file_or_in_the_settings(tmp_path: Path) -> None:
    settings = {"chat_template": "settings", "bos_token": {"content": "<s>"}}
    found = ChatTemplate.from_folder(tmp_path, settings)
    assert found is not None
    assert found.render(MESSAGES) == "settings"
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}file")
    found = ChatTemplate.from_folder(tmp_path, settings)
    assert found is not None
    assert found.render(MESSAGES) == "<s>file"
    assert ChatTemplate.from_folder(tmp_path / "nowhere", {}) is None
    named = {"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]}
    found = ChatTemplate.from_folder(tmp_path / "nowhere", named)
    assert found is not None
    assert found.render(MESSAGES) == "d"
    with pytest.raises(ModelFolderError, match=r"chat_template in tokenizer_config.json is no text"):
        ChatTemplate.from_folder(tmp_path / "nowhere", {"chat_template": 3})


@pytest.mark.parametrize(("name", "content"), [("tokenizer.json", "{"), ("tokenizer_config.json", "[1")])
def test_broken_tokenizer_files_are_named(name: str, content: str, tmp_path: Path, tiny_model: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((tiny_model / file).read_bytes())
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelFolderError, match=name):
        Tokenizer.from_folder(tmp_path)


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({}))
    with pytest.raises(ModelFolderError, match=r"has no tokenizer.json"):
        Tokenizer.from_folder(tmp_path)
