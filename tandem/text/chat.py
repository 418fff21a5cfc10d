"""A conversation as the text a model was trained on: the folder's own Jinja template, run in a sandbox.

Source: Hugging Face chat templating; the names a template may use (`messages`, `add_generation_prompt`, `bos_token`,
`eos_token`, `raise_exception`, `strftime_now`) are theirs.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tandem.errors import ModelFolderError, RequestError

Message = dict[str, str]
"""One turn: `role` and `content`."""


class ChatTemplate:
    """One compiled template.

    Args:
        source: The Jinja text.
        special_tokens: `bos_token` and the like, as the template may name them.
        where: The file it came from, for messages.

    Raises:
        ModelFolderError: The text is no template.
    """

    def __init__(self, source: str, special_tokens: dict[str, str], where: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ModelFolderError(f"{where}: the chat template is broken: {error}") from None
        self._special_tokens = special_tokens

    @classmethod
    def from_folder(cls, folder: Path, settings: dict[str, Any]) -> ChatTemplate | None:
        """The template of a model folder: its own file, or the one in `tokenizer_config.json`, or none."""
        path = folder / "chat_template.jinja"
        source = _read(path) if path.exists() else settings.get("chat_template")
        if isinstance(source, list):
            source = {entry.get("name"): entry.get("template") for entry in source}.get("default")
        if source is None:
            return None
        if not isinstance(source, str):
            raise ModelFolderError(f"{folder}: chat_template in tokenizer_config.json is no text; correct it")
        tokens = {name: _text(value) for name, value in settings.items() if name.endswith("_token") and value}
        return cls(source, tokens, str(path if path.exists() else folder / "tokenizer_config.json"))

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as text; `add_generation_prompt` opens the assistant's next turn.

        Raises:
            RequestError: The template refuses this conversation, such as two user turns in a row.
        """
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **self._special_tokens
            )
        except TemplateError as error:
            raise RequestError(f"messages: the model's chat template refuses them: {error}", param="messages") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFolderError(f"{path}: cannot be read ({error}); copy the file again") from None


def _text(value: Any) -> str:
    return value["content"] if isinstance(value, dict) else str(value)


def _to_json(value: Any, **options: Any) -> str:
    """Jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=False, **options)


def _now(form: str) -> str:
    return datetime.datetime.now().astimezone().strftime(form)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
