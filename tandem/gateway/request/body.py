"""The client's body, decoded one level deep: values stay raw JSON, so a long prompt is spliced and never re-encoded.

Fields the gateway does not know are forwarded untouched; whether they are supported is the instance's to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from tandem.errors import RequestError
from tandem.gateway.request.internal import KV_FIELD, Fields, drop_from_request
from tandem.gateway.request.refusals import RANGES, check_bulk, check_number, check_salt, several
from tandem.protocol.json_body import decode_body, decode_object
from tandem.protocol.kv import REMOTE_DECODE
from tandem.protocol.seat_name import PREFIX

ONE: Final = msgspec.Raw(b"1")
FALSE: Final = msgspec.Raw(b"false")
TRUE: Final = msgspec.Raw(b"true")
WITH_USAGE: Final = msgspec.Raw(b'{"include_usage":true}')
DEADLINE: Final = "deadline_seconds"


@dataclass(frozen=True)
class ClientBody:
    """What a client asked for, and what each leg sends for it."""

    fields: Fields

    @classmethod
    def decode(cls, raw: bytes) -> ClientBody:
        """Read a request body; what is between us and the instances is dropped, whoever sets it.

        Raises:
            RequestError: 400, when the body is not a JSON object, its salt is none, or a number of it is out of all
                range; 404, when it names a seat as its model; 413, when it has more around its prompt than any request
                needs.
        """
        check_bulk(raw)
        fields = decode_object(raw, msgspec.Raw)
        _require_text(raw)
        drop_from_request(fields)
        body = cls(fields)
        body._refuse_a_seat_as_model()
        if "cache_salt" in fields:
            check_salt(body.value("cache_salt"))
        for name in RANGES:
            if name in fields:
                check_number(name, body.value(name))
        return body

    def _refuse_a_seat_as_model(self) -> None:
        # Most have no escapes, and are not decoded.
        raw = bytes(self.fields.get("model", b""))
        if PREFIX in (str(self.value("model")) if b"\\" in raw else raw.decode()):
            raise RequestError(
                "model: is not served here; GET /v1/models lists the names that are",
                status=404,
                code="model_not_found",
                param="model",
            )

    @property
    def deadline_s(self) -> float | None:
        """Seconds the client gives its request; None where it gives no number, which is the instance's to refuse."""
        value = self.value(DEADLINE)
        return value if type(value) in (int, float) else None

    @property
    def prompt(self) -> tuple[str, bytes]:
        """The field with the prompt or the conversation, and its JSON; empty where there is none."""
        name = "messages" if "messages" in self.fields else "prompt"
        return name, bytes(self.fields.get(name, b""))

    @property
    def priority(self) -> int:
        """Lower ones go first; 0 where it gives no number, which is the instance's to refuse."""
        value = self.value("priority")
        return value if type(value) is int else 0

    @property
    def max_tokens(self) -> int:
        """Tokens the answer may have; 1, the fewest, where that is not said."""
        return self.max_answer or 1

    @property
    def max_answer(self) -> int | None:
        """Tokens the answer may have; None where that is not said."""
        values = (self.value(name) for name in ("max_completion_tokens", "max_tokens"))
        return next((value for value in values if type(value) is int), None)

    @property
    def streams(self) -> bool:
        """Whether the answer is asked for piece by piece."""
        return self.value("stream") is True

    @property
    def wants_ids(self) -> bool:
        """Whether the client asks for token ids itself."""
        return self.value("return_token_ids") is True

    @property
    def echoes(self) -> bool:
        """Whether the answer begins with the prompt."""
        return "echo" in self.fields and self.value("echo") is True

    @property
    def wants_usage(self) -> bool:
        """Whether a stream shall end with the token counts."""
        options = self.value("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    @property
    def count(self) -> int:
        """How many answers are asked for; 1 where that is no number, which is the instance's to refuse."""
        n = self.value("n")
        return n if type(n) is int else 1

    def with_fields(self, **fields: Any) -> ClientBody:
        """The same with some fields set; None takes one out."""
        kept = {name: raw for name, raw in self.fields.items() if fields.get(name, self) is not None}
        new = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items() if value is not None}
        return ClientBody(kept | new)

    @property
    def prompts(self) -> list[Any]:
        """Each of several prompts; one None where there is one, which stays as it came.

        Raises:
            RequestError: 400, when it is nothing that can be read.
        """
        raw = bytes(self.fields.get("prompt", b"")).lstrip()
        # A prompt of token ids is one prompt; only a list of texts or of lists holds several.
        if raw[:1] != b"[" or raw[1:].lstrip()[:1] not in (b'"', b"["):
            return [None]
        found = several(raw)
        return [None] if len(found) == 1 else [msgspec.Raw(bytes(one)) for one in found]

    def prefill(self, *, early: bool, ticket: str | None = None) -> bytes:
        """The body for a prefill instance: one token, keys and values kept for a decode instance.

        Args:
            early: Ask for a stream, which carries the ticket before the token is there.
            ticket: What the ticket shall be called, where the instance lets others choose.
        """
        params = msgspec.json.encode(replace(REMOTE_DECODE, remote_request_id=ticket))
        return msgspec.json.encode(self._first_token(msgspec.Raw(params), stream=early))

    def last_leg(self, ticket: msgspec.Raw) -> bytes:
        """The body for a decode instance that shall pull keys and values, and whose answer nobody reads."""
        fields = self._first_token(ticket, stream=False)
        fields.pop(DEADLINE, None)
        return msgspec.json.encode(fields)

    def _first_token(self, params: msgspec.Raw, *, stream: bool) -> Fields:
        fields = self.fields | {
            "stream": TRUE if stream else FALSE,
            "stream_options": WITH_USAGE,
            "max_tokens": ONE,
            KV_FIELD: self._with_ids(params),
        }
        unwanted = ("return_token_ids", "reservation")
        for name in unwanted if stream else (*unwanted, "stream_options"):
            fields.pop(name, None)
        if "max_completion_tokens" in fields:
            fields["max_completion_tokens"] = ONE
        # Not dropped: with min_tokens >= 1 the first token may not end the answer, and prefill samples the first token.
        # After `resume` that token has its place further back, and only our own instances know the field.
        least = self.value("min_tokens")
        if type(least) is int and least > 1 and "resume" not in fields:
            fields["min_tokens"] = ONE
        return fields

    def decode_leg(self, ticket: msgspec.Raw | None, left_s: float | None) -> bytes:
        """The body for a decode instance.

        Args:
            ticket: The prefill instance's, passed on as it came.
            left_s: What is left of `deadline_s`.
        """
        changed = {} if ticket is None else {KV_FIELD: self._with_ids(ticket)}
        if left_s is not None:
            changed[DEADLINE] = msgspec.Raw(msgspec.json.encode(left_s))
        return msgspec.json.encode(self.fields | changed)

    def _with_ids(self, params: msgspec.Raw) -> msgspec.Raw:
        """The hand-off's field of a leg, with the ids of a chat's prompt where we have set them."""
        own = self.fields.get(KV_FIELD)
        if own is None:
            return params
        try:
            both = msgspec.json.decode(params, type=Fields) | msgspec.json.decode(own, type=Fields)
        except msgspec.ValidationError:  # no ticket that anybody can use, which decode will say
            return params
        return msgspec.Raw(msgspec.json.encode(both))

    def value(self, name: str) -> Any:
        """A field's value; None where it is not set.

        Raises:
            RequestError: 400, when it is nothing that can be read.
        """
        raw = self.fields.get(name)
        try:
            return None if raw is None else decode_body(bytes(raw), Any)
        except msgspec.ValidationError as error:
            raise RequestError(f"{name}: {error}", param=name) from None


def _require_text(raw: bytes) -> None:
    """What is passed on as raw pieces nobody has read; an instance might fail where it should refuse."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None
