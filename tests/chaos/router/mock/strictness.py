"""The native engine refuses what it does not know: here tandem's own request types say what that is."""

from __future__ import annotations

from chaos.router.mock.wish import BadRequestError
from tandem.errors import RequestError
from tandem.protocol.openai import ChatRequest, CompletionRequest, parse


def refuse_unknown(raw: bytes, *, chat: bool) -> None:
    """Refuse a field that tandem's engine would refuse.

    Raises:
        BadRequestError: Naming it.
    """
    try:
        parse(raw, ChatRequest if chat else CompletionRequest)
    except RequestError as error:
        raise BadRequestError(str(error), error.param or "body") from None
