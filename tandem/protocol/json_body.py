"""Bodies as JSON, whatever is wrong with them; of a request's, the client learns it in one line."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from tandem.errors import RequestError

T = TypeVar("T")

UNREADABLE: Final = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What decoding raises for bytes that are not the JSON that was expected."""


def decode_body(body: bytes, kind: type[T]) -> T:
    """Decode a request body.

    Raises:
        RequestError: It is no JSON, or nested too deep, or holds bytes that are no text.
        msgspec.ValidationError: It is JSON, but not of this kind.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError:
        raise
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise RequestError(f"the body is not valid JSON: {reason}", code="invalid_json") from None


def decode_struct(body: bytes, kind: type[T]) -> T:
    """Decode a body that must be of this kind.

    Raises:
        RequestError: It is not; the message names the field.
    """
    try:
        return decode_body(body, kind)
    except msgspec.ValidationError as error:
        raise refusal(str(error)) from None


def refusal(reason: str) -> RequestError:
    """The library's "Expected `int` >= 1 - at `$.max_tokens`", turned round so that the field stands first."""
    what, _, where = reason.partition(" - at `$.")
    field = where.rstrip("`")
    if "unknown field" in what:
        field = _inside(field, what)
        return RequestError(f"{field}: unknown field; check the spelling or leave it out", param=field)
    if "missing required field" in what:
        field = _inside(field, what)
        return RequestError(f"{field}: is missing; the request needs it", param=field)
    return RequestError(f"{field or 'body'}: {what[:1].lower()}{what[1:]}", param=field or None)


def decode_object(body: bytes, values: Any = Any) -> dict[str, Any]:
    """Decode a body that must be a JSON object, its values as the type `values`.

    Raises:
        RequestError: It is something else.
    """
    try:
        return decode_body(body, dict[str, values])
    except msgspec.ValidationError as error:
        raise RequestError(f"the body must be a JSON object of ordinary values: {error}", code="invalid_json") from None


def _inside(where: str, what: str) -> str:
    """The path of the field that `what` quotes, of the object at `where`."""
    name = what.split("`")[1]
    return f"{where}.{name}" if where else name
