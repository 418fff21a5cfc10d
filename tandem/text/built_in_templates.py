"""Chat templates for folders that have none of their own, in tandem's words; the text is the reference's.

Each refuses the turns it cannot say through `raise_exception`, which becomes one line that names the turn.

Source: the templates of Qwen1.5-Chat, Yi-Chat, Llama-2-chat, Meta-Llama-3-Instruct, Mistral-7B-Instruct-v0.2 and
DeepSeek-V3, as published with the models.
"""

from __future__ import annotations

from dataclasses import dataclass

_REFUSE_UNKNOWN = """\
{%- for message in messages -%}
    {%- if message.role not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('turn ' ~ loop.index0 ~ ': role ' ~ message.role
            ~ ' is unknown; use system, user or assistant') -}}
    {%- endif -%}
{%- endfor -%}
"""

_REFUSE_UNLESS_IN_TURNS = """\
{%- set head = 1 if messages[0].role == 'system' else 0 -%}
{%- for message in messages[head:] -%}
    {%- set expected = ['user', 'assistant'][loop.index0 % 2] -%}
    {%- if message.role != expected -%}
        {{- raise_exception('turn ' ~ (loop.index0 + head) ~ ': role ' ~ message.role
            ~ ' where ' ~ expected ~ ' must be; let user and assistant alternate') -}}
    {%- endif -%}
{%- endfor -%}
"""

_CHATML = (
    _REFUSE_UNKNOWN
    + """\
DEFAULT_SYSTEM
{%- for message in messages -%}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
)

CHATML = _CHATML.replace("DEFAULT_SYSTEM\n", "")
"""Yi and others: no system message unless the conversation has one."""

QWEN2 = _CHATML.replace(
    "DEFAULT_SYSTEM",
    """\
{%- if messages[0].role != 'system' -%}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}""",
)
"""Qwen 1.5 and 2: a default system message."""

LLAMA3 = (
    _REFUSE_UNKNOWN
    + """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' ~ message.content | trim ~ '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""
)

LLAMA2 = (
    _REFUSE_UNLESS_IN_TURNS
    + """\
{%- for message in messages[head:] -%}
    {%- if message.role == 'assistant' -%}
        {{- ' ' ~ message.content.strip() ~ ' ' ~ eos_token -}}
    {%- elif loop.first and head -%}
        {%- set content = '<<SYS>>\\n' ~ messages[0].content ~ '\\n<</SYS>>\\n\\n' ~ message.content -%}
        {{- bos_token ~ '[INST] ' ~ content.strip() ~ ' [/INST]' -}}
    {%- else -%}
        {{- bos_token ~ '[INST] ' ~ message.content.strip() ~ ' [/INST]' -}}
    {%- endif -%}
{%- endfor -%}
"""
)

MISTRAL = (
    _REFUSE_UNLESS_IN_TURNS
    + """\
{{- bos_token -}}
{%- for message in messages[head:] -%}
    {%- if message.role == 'assistant' -%}
        {{- message.content ~ eos_token -}}
    {%- elif loop.first and head -%}
        {{- '[INST] ' ~ messages[0].content ~ '\\n\\n' ~ message.content ~ ' [/INST]' -}}
    {%- else -%}
        {{- '[INST] ' ~ message.content ~ ' [/INST]' -}}
    {%- endif -%}
{%- endfor -%}
"""
)

DEEPSEEK = (
    _REFUSE_UNKNOWN
    + """\
{{- bos_token -}}
{%- set said = namespace(system='') -%}
{%- for message in messages if message.role == 'system' -%}
    {%- set said.system = message.content -%}
{%- endfor -%}
{{- said.system -}}
{%- for message in messages if message.role != 'system' -%}
    {{- '<｜User｜>' ~ message.content if message.role == 'user' -}}
    {{- '<｜Assistant｜>' ~ message.content ~ '<｜end▁of▁sentence｜>' if message.role == 'assistant' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<｜Assistant｜>' -}}
{%- endif -%}
"""
)


@dataclass(frozen=True, kw_only=True)
class BuiltInTemplate:
    """A template, and the tokens a tokenizer must have for it."""

    source: str
    marks: tuple[str, ...]
    """Tokens that tell the format from others."""
    end: str | None = None
    """Token that ends an answer; None for `eos_token`."""
    bos: str = "<s>"
    eos: str = "</s>"
    """What `bos_token` and `eos_token` are where the folder does not say."""


BY_TOKENS = (
    BuiltInTemplate(
        source=DEEPSEEK,
        marks=("<｜User｜>", "<｜Assistant｜>"),
        end="<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
    ),
    BuiltInTemplate(
        source=LLAMA3,
        marks=("<|start_header_id|>", "<|end_header_id|>"),
        end="<|eot_id|>",
        bos="<|begin_of_text|>",
    ),
    BuiltInTemplate(source=CHATML, marks=("<|im_start|>",), end="<|im_end|>"),
)
"""Formats that a model's tokens tell."""

QWEN2_TEMPLATE = BuiltInTemplate(source=QWEN2, marks=("<|im_start|>",), end="<|im_end|>")

# These models have no chat tokens. A byte piece tells their SentencePiece vocabulary from later ones.
BY_MODEL = {
    "llama": BuiltInTemplate(source=LLAMA2, marks=("<0x0A>",)),
    "mistral": BuiltInTemplate(source=MISTRAL, marks=("<0x0A>",)),
    "mixtral": BuiltInTemplate(source=MISTRAL, marks=("<0x0A>",)),
}
"""Formats that only `model_type` tells."""
