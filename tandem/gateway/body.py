"""The client's body, decoded one level deep: values stay raw JSON, so a long prompt is spliced and never re-encoded.

Fields the gateway does not know are forwarded untouched; whether they are supported is the instance's to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tandem.errors import RequestError
from tandem.protocol.json_body import decode_body, decode_object
from tandem.protocol.kv import REMOTE_DECODE
from tandem.protocol.seat_name import PREFIX

Fields = dict[str, msgspec.Raw]

ONE: Final = msgspec.Raw(b"1")
FALSE: Final = msgspec.Raw(b"false")
TRUE: Final = msgspec.Raw(b"true")
KV_FIELD: Final = "kv_transfer_params"
DEADLINE: Final = "deadline_seconds"


@dataclass(frozen=True)
class ClientBody:
    """What a client asked for, and what each leg sends for it."""

    fields: Fields

    @classmethod
    def decode(cls, raw: bytes) -> ClientBody:
        """Read a request body; a client's own `kv_transfer_params` are dropped, they are between us and the instances.

        Raises:
            RequestError: 400, when the body is not a JSON object; 404, when it names a seat as its model.
        """
        fields = decode_object(raw, msgspec.Raw)
        fields.pop(KV_FIELD, None)
        body = cls(fields)
        body._require_a_model_for_clients()
        return body

    def _require_a_model_for_clients(self) -> None:
        raw = bytes(self.fields.get("model", b""))
        if PREFIX.encode() in raw:
            raise RequestError("model: is not served here", status=404, code="model_not_found", param="model")

    @property
    def deadline_s(self) -> float | None:
        """Seconds the client gives its request; None where it gives no number, which is the instance's to refuse."""
        value = self._value(DEADLINE)
        return value if type(value) in (int, float) else None

    @property
    def prompt(self) -> tuple[str, bytes]:
        """The field with the prompt or the conversation, and its JSON; empty where there is none."""
        name = "messages" if "messages" in self.fields else "prompt"
        return name, bytes(self.fields.get(name, b""))

    @property
    def max_tokens(self) -> int:
        """Tokens the answer may have; 1, the fewest, where that is not said."""
        values = (self._value(name) for name in ("max_completion_tokens", "max_tokens"))
        return next((value for value in values if type(value) is int), 1)

    def refuse_many(self, *, choices: bool) -> None:
        """Refuse what one ticket cannot carry: it holds the keys and values of exactly one prompt.

        Args:
            choices: Whether it can carry the first tokens of several answers to it.

        Raises:
            RequestError: 400, naming `n`, `best_of` or `prompt`.
        """
        for name in () if choices else ("n", "best_of"):
            if self._value(name) not in (None, 1):
                raise _one_only(name, f"only {name}=1 is served with prefill and decode apart; send one request each")
        if (count := self._prompts()) > 1:
            raise _one_only("prompt", f"{count} prompts in one request; send one request each")

    def whole(self) -> bytes:
        """The body for an instance that does both."""
        return msgspec.json.encode(self.fields)

    def prefill(self, *, early: bool) -> bytes:
        """The body for a prefill instance: one token, keys and values kept for a decode instance.

        Args:
            early: Ask for a stream, which carries the ticket before the token is there.
        """
        fields = self.fields | {
            "stream": TRUE if early else FALSE,
            "max_tokens": ONE,
            KV_FIELD: msgspec.Raw(msgspec.json.encode(REMOTE_DECODE)),
        }
        fields.pop("stream_options", None)
        if "max_completion_tokens" in fields:
            fields["max_completion_tokens"] = ONE
        # Not dropped: with min_tokens >= 1 the first token may not end the answer, and prefill samples the first token.
        # After `resume` that token has its place further back, and only our own instances know the field.
        least = self._value("min_tokens")
        if type(least) is int and least > 1 and "resume" not in fields:
            fields["min_tokens"] = ONE
        return msgspec.json.encode(fields)

    def decode_leg(self, ticket: msgspec.Raw | None, left_s: float | None) -> bytes:
        """The body for a decode instance.

        Args:
            ticket: The prefill instance's, passed on as it came.
            left_s: What is left of `deadline_s`.
        """
        changed = {} if ticket is None else {KV_FIELD: ticket}
        if left_s is not None:
            changed[DEADLINE] = msgspec.Raw(msgspec.json.encode(left_s))
        return msgspec.json.encode(self.fields | changed)

    def _value(self, name: str) -> Any:
        raw = self.fields.get(name)
        try:
            return None if raw is None else decode_body(bytes(raw), Any)
        except msgspec.ValidationError as error:
            raise RequestError(f"{name}: {error}", param=name) from None

    def _prompts(self) -> int:
        raw = bytes(self.fields.get("prompt", b"")).lstrip()
        # A prompt of token ids is one prompt; only a list of texts or of lists needs to be counted.
        if raw[:1] != b"[" or raw[1:].lstrip()[:1] not in (b'"', b"["):
            return 1
        return len(decode_body(raw, list[msgspec.Raw]))


def without_kv_params(answer: bytes) -> bytes:
    """A whole answer as the client may see it: without the ticket an instance may have put at its top level.

    Raises:
        msgspec.DecodeError: The answer is not a JSON object.
    """
    fields = msgspec.json.decode(answer, type=Fields)
    return answer if fields.pop(KV_FIELD, None) is None else msgspec.json.encode(fields)


def _one_only(name: str, reason: str) -> RequestError:
    return RequestError(f"{name}: {reason}", param=name, code="unsupported_parameter")
