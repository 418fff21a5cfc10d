"""Built-in templates: whole texts by hand, refusals with their turn, and the same text from transformers' renderer."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from tandem.errors import RequestError
from tandem.text import built_in_templates as templates
from tandem.text.template import ChatTemplate, TemplateFormat
from tandem.text.tokenizer import Tokenizer

SYSTEM = {"role": "system", "content": " Be short. "}
TALK = [
    {"role": "user", "content": " Hi "},
    {"role": "assistant", "content": " Ho "},
    {"role": "user", "content": "And?"},
]

EXPECTED = {
    "llama2": (
        "<s>[INST] <<SYS>>\n Be short. \n<</SYS>>\n\n Hi [/INST] Ho </s><s>[INST] And? [/INST]",
        "<s>[INST] Hi [/INST] Ho </s><s>[INST] And? [/INST]",
    ),
    "mistral": (
        "<s>[INST]  Be short. \n\n Hi  [/INST] Ho </s>[INST] And? [/INST]",
        "<s>[INST]  Hi  [/INST] Ho </s>[INST] And? [/INST]",
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHo<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHo<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "qwen2": (
        "<|im_start|>system\n Be short. <|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
        "<|im_start|>assistant\n Ho <|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
        "<|im_start|>assistant\n Ho <|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "yi": (
        "<|im_start|>system\n Be short. <|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
        "<|im_start|>assistant\n Ho <|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\n Hi <|im_end|>\n"
        "<|im_start|>assistant\n Ho <|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "deepseek": (
        "<｜begin▁of▁sentence｜> Be short. <｜User｜> Hi <｜Assistant｜> Ho <｜end▁of▁sentence｜>"
        "<｜User｜>And?<｜Assistant｜>",
        "<｜begin▁of▁sentence｜><｜User｜> Hi <｜Assistant｜> Ho <｜end▁of▁sentence｜><｜User｜>And?<｜Assistant｜>",
    ),
}


def chat_of(made, kind: str) -> TemplateFormat:
    chat = Tokenizer.from_folder(made[kind][0]).chat
    assert isinstance(chat, TemplateFormat)
    return chat


@pytest.mark.parametrize("kind", EXPECTED)
def test_texts(made, kind: str) -> None:
    chat = chat_of(made, kind)
    assert chat.render([SYSTEM, *TALK]) == EXPECTED[kind][0]
    assert chat.render(TALK) == EXPECTED[kind][1]


@pytest.mark.parametrize("kind", ["llama3", "qwen2", "deepseek"])
def test_ids_are_those_of_transformers(made, kind: str) -> None:
    chat, theirs = chat_of(made, kind), AutoTokenizer.from_pretrained(made[kind][0])
    assert chat.encode(TALK) == theirs(EXPECTED[kind][1], add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("kind", "end"), [("llama2", "</s>"), ("mistral", "</s>"), ("llama3", "<|eot_id|>"), ("qwen2", "<|im_end|>"),
                      ("yi", "<|im_end|>"), ("deepseek", "<｜end▁of▁sentence｜>")],
)  # fmt: skip
def test_the_end_of_a_turn_is_said(made, kind: str, end: str) -> None:
    tokenizer = Tokenizer.from_folder(made[kind][0])
    assert tokenizer.chat is not None
    assert tokenizer.chat.end_token_ids == (tokenizer.id_of(end),)


@pytest.mark.parametrize("kind", EXPECTED)
def test_refusals_name_the_turn(made, kind: str) -> None:
    with pytest.raises(RequestError, match="turn 2: role tool"):
        chat_of(made, kind).encode([*TALK[:2], {"role": "tool", "content": "x"}])


@pytest.mark.parametrize("kind", ["llama2", "mistral"])
def test_turns_must_alternate(made, kind: str) -> None:
    chat = chat_of(made, kind)
    with pytest.raises(RequestError, match="turn 1: role user where assistant must be"):
        chat.encode([TALK[0], TALK[0]])
    with pytest.raises(RequestError, match="turn 2: role system where assistant must be"):
        chat.encode([SYSTEM, TALK[0], SYSTEM])
    with pytest.raises(RequestError, match="messages"):
        chat.encode([])


@pytest.mark.parametrize("name", ["CHATML", "QWEN2", "LLAMA2", "LLAMA3", "MISTRAL", "DEEPSEEK"])
def test_every_template_says_all_turns_and_opens_the_next(name: str) -> None:
    chat = ChatTemplate(getattr(templates, name), {"bos_token": "<s>", "eos_token": "</s>"}, "here")
    messages = [{"role": role, "content": f"{role} says"} for role in ("user", "assistant")]
    closed = chat.render(messages, add_generation_prompt=False)
    assert closed.index("user says") < closed.index("assistant says")
    assert chat.render([*messages, messages[0]]).startswith(closed)
