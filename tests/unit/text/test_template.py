"""Chat templates run, in a sandbox, and fail in one line; answers are found in what they render."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tandem.errors import DataError, ModelFolderError, RequestError
from tandem.text.chat import Answers, ChatFormat
from tandem.text.folder import TokenizerFolder
from tandem.text.template import ChatTemplate, TemplateFormat, answer_spans
from tandem.text.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<s>"}, "here")


def of_folder(folder: Path) -> ChatTemplate | None:
    return ChatTemplate.from_folder(TokenizerFolder(folder))


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


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ range(1000000) }}", "OverflowError"),
        ("{{ 1 // (messages | length - 2) }}", "ZeroDivisionError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages[0].content.encode('none') }}", "LookupError unknown encoding: none"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "RecursionError"),
        ("{{ raise_exception('two\nlines') }}", "two lines"),
    ],
)
def test_whatever_a_template_raises_is_one_line_for_the_client(source: str, reason: str) -> None:
    with pytest.raises(RequestError, match=f"chat template refuses them: {reason}") as caught:
        template(source).render(MESSAGES)
    assert (caught.value.status, caught.value.param) == (400, "messages")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["{% for %}", "{% for a in [1] %}" * 25 + "{% endfor %}" * 25])
def test_a_broken_template_is_said_at_load(source: str) -> None:
    with pytest.raises(ModelFolderError, match="here: the chat template is broken"):
        template(source)


def test_found_in_its_own_file_before_the_settings(tmp_path: Path) -> None:
    assert of_folder(tmp_path) is None
    settings = {"chat_template": "settings", "bos_token": {"content": "<s>"}}
    for name, content, expected in [
        ("tokenizer_config.json", json.dumps(settings), "settings"),
        ("chat_template.json", json.dumps({"chat_template": "{{ bos_token }}json"}), "<s>json"),
        ("chat_template.jinja", "{{ bos_token }}file", "<s>file"),
    ]:
        (tmp_path / name).write_text(content)
        found = of_folder(tmp_path)
        assert found is not None
        assert found.render(MESSAGES) == expected


def test_of_several_named_templates_the_default_is_taken(tmp_path: Path) -> None:
    named = {"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    found = of_folder(tmp_path)
    assert found is not None
    assert found.render(MESSAGES) == "d"
    for wrong in (3, [{"name": [1], "template": "x"}], [{"template": "x"}], [{"name": "default", "template": 3}]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": wrong}))
        with pytest.raises(ModelFolderError, match=r"chat_template in tokenizer_config.json is no text"):
            of_folder(tmp_path)


def test_special_tokens_of_the_map_are_known_to_the_template(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<b>"}, "x_token": 3}))
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ x_token is defined }}")
    found = of_folder(tmp_path)
    assert found is not None
    assert found.render(MESSAGES) == "<b>False"


def test_a_folders_own_template_goes_before_the_built_in_format(made, tmp_path: Path) -> None:
    for kind in ("qwen", "chatglm3", "llama3"):
        folder = shutil.copytree(made[kind][0], tmp_path / kind)
        built_in = Tokenizer.from_folder(folder).chat
        (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
        chat = Tokenizer.from_folder(folder).chat
        assert isinstance(chat, TemplateFormat)
        assert chat.render(MESSAGES) == "hi"
        assert built_in is not None
        assert chat.end_token_ids == built_in.end_token_ids != ()


def test_templates_that_rewrite_history_are_refused() -> None:
    talk = [*MESSAGES, *MESSAGES]
    chat = template("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(DataError, match="turn 1"):
        answer_spans(chat, talk, chat.render(talk, add_generation_prompt=False))


TALKS = [
    [MESSAGES[0], {"role": "assistant", "content": "  def f():\n        return '你好🙂'"}],
    [{"role": "user", "content": "e\u0301 ﬁ 东\u00a0京"},
     {"role": "assistant", "content": "\u1100\u1161🏽 x\u0301\n\n"}],
    [{"role": "user", "content": "q <s> </s> <|im_end|>"}, MESSAGES[1],
     {"role": "user", "content": "\t"}, {"role": "assistant", "content": "<|im_end|> <unk> 12"}],
]  # fmt: skip


@pytest.mark.parametrize("kind", ["llama3", "qwen2", "deepseek", "mistral", "yi", "llama2"])
def test_many_at_once_are_marked_as_by_their_offsets(made, kind: str) -> None:
    chat = Tokenizer.from_folder(made[kind][0]).chat
    assert isinstance(chat, TemplateFormat)
    refused = [{"role": "nobody", "content": "x"}]
    found = chat.encode_answers([TALKS[0], refused, *TALKS[1:]])
    assert isinstance(found.pop(1), RequestError)
    for talk, answers in zip(TALKS, found, strict=True):
        text = chat.render(talk, add_generation_prompt=False)
        ids, offsets = chat._backend.encode_with_offsets(text, special=False)
        spans = answer_spans(chat._template, talk, text)
        inside = [begin < end and any(first <= begin < last for first, last in spans) for begin, end in offsets]
        assert answers == (ids, inside)


def answers_of(chat: ChatFormat, talk: list[dict[str, str]]) -> Answers:
    (found,) = chat.encode_answers([talk])
    assert isinstance(found, tuple), found
    return found


@pytest.mark.parametrize("kind", ["llama3", "qwen2", "deepseek", "mistral", "yi"])
def test_answers_and_their_ends_are_marked(made, kind: str) -> None:
    tokenizer = Tokenizer.from_folder(made[kind][0])
    assert tokenizer.chat is not None
    answer = "  def f():\n        return '你好🙂'"
    talk = [MESSAGES[0], {"role": "assistant", "content": answer}]
    ids, mask = answers_of(tokenizer.chat, talk)
    assert ids == tokenizer.chat.encode(talk, add_generation_prompt=False)
    learnt = [token for token, marked in zip(ids, mask, strict=True) if marked]
    said = tokenizer.decode(learnt)
    # Llama 3's template trims, ChatML writes a newline after the end mark.
    assert said.strip() == answer.strip()
    assert tokenizer.chat.end_token_ids[0] in learnt
    if kind in ("qwen2", "deepseek"):
        assert said.startswith("  def"), "indentation is part of the answer"
