"""What an instance says of itself, and what of it does not go with the place it was given.

Ours says it at `/identity`. vLLM has no such route; what it serves, and the seat it was given as a name, it says at
`/v1/models`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from tandem.gateway.wire.worker import Worker
from tandem.protocol.identity import Seat
from tandem.protocol.seat_name import read_seat_name

Text = Annotated[str, Meta(max_length=1024, pattern=r"^[^\x00-\x1f\x7f-\x9f]*\Z")]
"""It ends up in messages, so it has no line ends and no control characters."""


class Introduction(msgspec.Struct, frozen=True):
    """What the gateway reads of an identity, which may be of another version of this program."""

    capabilities: list[Text] = []
    engine_id: Text | None = None
    """New at every start."""
    role: Text | None = None
    digest: Text | None = None
    """Of everything that must agree before keys and values may move."""
    model: Text | None = None
    max_model_len: int | None = None
    version: Text | None = None
    seat: Seat | None = None


class Pulse(msgspec.Struct, frozen=True):
    """What the gateway reads of a health check's answer; other engines' has no body."""

    engine_id: Text | None = None


class ModelCard(msgspec.Struct, frozen=True):
    """One served name."""

    id: Text
    max_model_len: int | None = None


class ModelList(msgspec.Struct, frozen=True):
    """What `/v1/models` answers."""

    data: list[ModelCard]

    def introduction(self) -> Introduction:
        """What it tells of the instance."""
        role, seat = next(filter(None, (read_seat_name(card.id) for card in self.data)), (None, None))
        cards = [card for card in self.data if read_seat_name(card.id) is None]
        model, longest = (cards[0].id, cards[0].max_model_len) if cards else (None, None)
        return Introduction(role=role, seat=seat, model=model, max_model_len=longest)


def complaints(worker: Worker, said: Introduction, known: Mapping[Worker, Introduction]) -> Iterator[str]:
    """What an operator should mend about a worker; requests tell it too, but one by one and late."""
    if said.role not in (None, worker.role, "both"):
        place = "--decode without any --prefill" if worker.role == "both" else f"--{worker.role}"
        yield (
            f"{worker.name}: was given with {place}, but its own role is {said.role}; give it with --{said.role}, or "
            f"start it with --role {worker.role}"
        )
    for other, its in known.items():
        if None not in (said.digest, its.digest) and said.digest != its.digest:
            yield (
                f"{worker.name} and {other.name}: differ in model, weights, dtype, block size or version, so neither "
                "can go on from the other's keys and values; start both from the same folder and version, with the "
                "same --dtype and --block-size"
            )
            return
