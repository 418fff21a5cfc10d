"""A conversation as text by a Jinja template, run in a sandbox, and that text as token ids.

Source: Hugging Face chat templating; the names a template may use (`messages`, `add_generation_prompt`, `bos_token`,
`eos_token`, `raise_exception`, `strftime_now`) are theirs.
"""

from __future__ import annotations

import datetime
import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NoReturn

from jinja2 import TemplateError

from tandem.errors import DataError, ModelFolderError, RequestError, TandemError
from tandem.files import read_json_object, there
from tandem.text.backend import Backend, Span
from tandem.text.chat import Answers, Message, each
from tandem.text.detokenizer import Start
from tandem.text.folder import TokenizerFolder
from tandem.text.library import said
from tandem.text.sandbox import Sandbox
from tandem.text.special_tokens import spelling


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
        self._sandbox = Sandbox()
        self._sandbox.filters["tojson"] = _to_json
        self._sandbox.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        try:
            self._template = self._sandbox.compiled(source)
        except Exception as error:  # noqa: BLE001 - Jinja passes on what Python's compiler says of nested loops
            raise ModelFolderError(f"{where}: the chat template is broken: {_one_line(error)}") from None
        self._special_tokens = special_tokens

    @classmethod
    def from_folder(cls, folder: TokenizerFolder) -> ChatTemplate | None:
        """The folder's own template, from its own file or from `tokenizer_config.json`; None where there is none."""
        for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
            if (source := _source(folder, name)) is not None:
                return cls.for_folder(folder, source, str(folder.path / name))
        return None

    @classmethod
    def for_folder(cls, folder: TokenizerFolder, source: str, where: str) -> ChatTemplate:
        """A template that may name the folder's special tokens."""
        tokens = {kind: spelling(value) for kind, value in folder.named_tokens.items() if _is_one(value)}
        return cls(source, tokens, where)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as text; `add_generation_prompt` opens the assistant's next turn.

        A template that goes on for ever, or makes too much, is stopped; `text/sandbox.py` says how far that holds.

        Raises:
            RequestError: The template refuses this conversation, such as two user turns in a row, or fails on it.
        """
        turn = {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        try:
            return self._sandbox.run(self._template, self._special_tokens | turn)
        except Exception as error:  # noqa: BLE001 - a folder's template can raise anything; that is its own fault
            reason = f"the model's chat template refuses them: {_one_line(error)}"
            raise RequestError(f"messages: {reason}", param="messages") from None


@dataclass(frozen=True)
class Worded:
    """A conversation as a template says it."""

    text: str
    answers: list[Span]
    """Characters [begin, end) of each, in order."""


class TemplateFormat:
    """A template and the tokenizer its text is for.

    The text is tokenised whole, so a message that spells a special token says that token: the reference does so too.

    Args:
        template: The folder's own, or a built-in one.
        backend: The tokenizer.
        end_token_ids: Tokens that end the assistant's turn.
        start: What becomes of blanks at the beginning of an answer.
    """

    def __init__(
        self,
        template: ChatTemplate,
        backend: Backend,
        end_token_ids: tuple[int, ...] = (),
        start: Start = Start.ALONE,
    ) -> None:
        self._template = template
        self._backend = backend
        self.end_token_ids = end_token_ids
        self.start = start

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as text, as `ChatTemplate.render`."""
        return self._template.render(messages, add_generation_prompt=add_generation_prompt)

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of the rendered conversation; the template writes the special tokens itself."""
        return self._backend.encode(self.render(messages, add_generation_prompt=add_generation_prompt), special=False)

    def encode_answers(self, conversations: Sequence[Sequence[Message]]) -> list[Answers | TandemError]:
        """Ids of each rendered conversation, and whether each begins inside an answer.

        A conversation is rendered and tokenised once, whole. Which characters are answers is found on the text, and the
        tokens follow from where they begin in it; tokenising the prompt by itself could cut it elsewhere than the
        whole.
        """
        found = each(self._worded, conversations)
        answers = iter(self._answers([one for one in found if isinstance(one, Worded)]))
        return [next(answers) if isinstance(one, Worded) else one for one in found]

    def _worded(self, messages: Sequence[Message]) -> Worded:
        text = self.render(messages, add_generation_prompt=False)
        return Worded(text, answer_spans(self._template, messages, text))

    def _answers(self, several: list[Worded]) -> list[Answers | TandemError]:
        """With offsets the library takes twice as long; most tokenizers spell a text out, and need none."""
        if self._backend.drops_first_space:
            return each(self._by_offsets, several)
        try:
            found = self._backend.encode_many([worded.text for worded in several], special=False)
        except RequestError:  # one of them; which one, only each alone can say
            return each(self._by_offsets, several)
        return each(self._marked, zip(several, found, strict=True))

    def _marked(self, one: tuple[Worded, list[int]]) -> Answers:
        worded, ids = one
        pieces = [self._spellings[token] for token in ids]
        if not all(pieces) or b"".join(pieces) != worded.text.encode():
            return self._by_offsets(worded)
        begins, learnt = [0, *accumulate(map(len, pieces))], [False] * len(ids)
        for span in worded.answers:
            first, last = (bisect_left(begins, len(worded.text[:at].encode())) for at in span)
            learnt[first:last] = [True] * (last - first)
        return ids, learnt

    def _by_offsets(self, worded: Worded) -> Answers:
        ids, offsets = self._backend.encode_with_offsets(worded.text, special=False)
        return ids, _begin_inside(offsets, worded.answers)

    @cached_property
    def _spellings(self) -> list[bytes]:
        return [self._backend.bytes_of(token) for token in range(self._backend.vocab_size)]


def answer_spans(template: ChatTemplate, messages: Sequence[Message], text: str) -> list[Span]:
    """Characters [begin, end) of each answer in the rendered `text`, from after its opening to after its end mark.

    Raises:
        DataError: The template renders a conversation's beginning otherwise than the whole.
        RequestError: The template refuses the conversation.
    """
    spans = []
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            before = template.render(messages[:turn], add_generation_prompt=True)
            last = turn == len(messages) - 1
            through = text if last else template.render(messages[: turn + 1], add_generation_prompt=False)
            if not (text.startswith(through) and through.startswith(before)):
                raise DataError(f"turn {turn}: the chat template renders it otherwise inside the whole conversation")
            spans.append((len(before), len(through)))
    return spans


def _begin_inside(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Which offsets begin inside a span; empty ones do not. Neither go back, so each is looked at once."""
    inside, number = [], 0
    first, last = spans[0] if spans else (0, 0)
    for begin, end in offsets:
        while begin >= last and number + 1 < len(spans):
            number += 1
            first, last = spans[number]
        inside.append(first <= begin < last and begin < end)
    return inside


def _source(folder: TokenizerFolder, name: str) -> str | None:
    """The template in one file; of several named ones, the default."""
    path = folder.path / name
    if not there(path):
        return None
    if path.suffix == ".jinja":
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFolderError(f"{path}: cannot be read ({error}); copy the file again") from None
    source = read_json_object(path, ModelFolderError).get("chat_template")
    if isinstance(source, list) and all(isinstance(entry, dict) and _is_named(entry) for entry in source):
        source = {entry.get("name"): entry.get("template") for entry in source}.get("default")
    if source is not None and not isinstance(source, str):
        raise ModelFolderError(f"{folder.path}: chat_template in {name} is no text; correct it")
    return source


def _is_named(entry: dict[str, Any]) -> bool:
    return isinstance(entry.get("name"), str)


def _one_line(error: Exception) -> str:
    """What an error says; what was not meant for a user has its class before it."""
    kind, text = type(error).__name__, said(error)
    return text if isinstance(error, TemplateError) or text == kind else f"{kind} {text}"


def _is_one(value: Any) -> bool:
    return not isinstance(value, list)


def _to_json(value: Any, **options: Any) -> str:
    """Jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=False, **options)


def _now(form: str) -> str:
    return datetime.datetime.now().astimezone().strftime(form)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
