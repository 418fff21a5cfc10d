"""Request bodies as JSON: whatever is wrong with one, the client learns it in one line."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from tandem.errors import RequestError

T = TypeVar("T")


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


def decode_object(body: bytes, values: Any = Any) -> dict[str, Any]:
    """Decode a body that must be a JSON object, its values as the type `values`.

    Raises:
        RequestError: It is something else.
    """
    try:
        return decode_body(body, dict[str, values])
    except msgspec.ValidationError as error:
        raise RequestError(f"the body must be a JSON object of ordinary values: {error}", code="invalid_json") from None
