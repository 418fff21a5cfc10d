"""`tandem chat`: a conversation with a running service, in the terminal."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tandem.cli.tls_options import ClientTls
from tandem.errors import TandemError, UsageError

if TYPE_CHECKING:
    from tandem.protocol.client import Access

KEY = "OPENAI_API_KEY"

Message = dict[str, str]

PROMPT = "you> "
GREETING = "Ctrl-D or /quit ends, /new starts over."


def chat(
    url: str = "http://127.0.0.1:9000",
    *,
    model: str | None = None,
    system: str | None = None,
    message: Annotated[list[str] | None, Parameter(negative=())] = None,
    max_tokens: int = 256,
    temperature: float | None = None,
    seed: int | None = None,
    tls: Annotated[ClientTls | None, Parameter(name="*")] = None,
) -> None:
    """Talk to a running service.

    Answers appear as they are generated. Ctrl-D or /quit ends, /new starts over. A service that wants a key is shown
    the one in OPENAI_API_KEY.

    Args:
        url: Base URL of the gateway, or of any service that speaks OpenAI's API.
        model: Served model to ask; by default the first one listed.
        system: System message to begin with.
        message: Say this, print the answer and exit; repeat it for several turns.
        max_tokens: Longest answer, in tokens.
        temperature: Sampling temperature; 0 always takes the likeliest token. The service's default if left out.
        seed: Makes sampling repeatable.
        tls: What is shown to an https service, and asked of it.
    """
    wishes = {"model": model, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    fields = {name: value for name, value in wishes.items() if value is not None}
    from tandem.protocol.client import Access

    access = Access(key=os.environ.get(KEY) or None, tls=(tls or ClientTls()).files)
    _converse(Conversation(url, system, fields, access), message)


class Conversation:
    """The turns so far, and where they are sent."""

    def __init__(self, url: str, system: str | None, fields: dict[str, Any], access: Access) -> None:
        self._url = url
        self._access = access
        self._system = system
        self._fields = fields
        self.start_over()

    async def open(self) -> None:
        """Find a model to talk to, unless one was named; raises if nobody is there."""
        from tandem.protocol.client import list_models

        names = await list_models(self._url, self._access)
        if not names:
            raise UsageError(f"{self._url}: serves no model; name one with --model")
        self._fields.setdefault("model", names[0])

    def start_over(self) -> None:
        """Forget every turn but the system message."""
        self._messages: list[Message] = [{"role": "system", "content": self._system}] if self._system else []

    async def say(self, text: str) -> None:
        """One turn: print the answer as it comes. A turn that fails is forgotten, so that it can be said again."""
        from tandem.protocol.client import stream_chat

        asked: list[Message] = [*self._messages, {"role": "user", "content": text}]
        answer = ""
        async with stream_chat(self._url, {**self._fields, "messages": asked}, self._access) as stream:
            async for piece, _ in stream:
                print(piece, end="", flush=True)
                answer += piece
        print()
        self._messages = [*asked, {"role": "assistant", "content": answer}]


def _converse(conversation: Conversation, messages: list[str] | None) -> None:
    # One event loop per turn, none while the user types: Ctrl-C must end a waiting `input` at once.
    asyncio.run(conversation.open())
    if messages is not None:
        for message in messages:
            asyncio.run(conversation.say(message))
        return
    print(GREETING)
    while (line := _read_line()) is not None:
        _obey(conversation, line)


def _obey(conversation: Conversation, line: str) -> None:
    if line == "/new":
        conversation.start_over()
    elif line:
        try:
            asyncio.run(conversation.say(line))
        except TandemError as error:
            print(f"\ntandem: {error}")


def _read_line() -> str | None:
    """What the user typed; None at the end."""
    try:
        line = input(PROMPT).strip()
    except EOFError:
        print()
        return None
    return None if line == "/quit" else line
