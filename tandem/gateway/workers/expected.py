"""Who must answer at a worker's address, and how a stranger there is told apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tandem.gateway.workers.introduction import Introduction
from tandem.protocol.identity import Role, Seat


@dataclass(frozen=True, kw_only=True)
class Expected:
    """An instance as a rank table and the start command describe it."""

    place: str
    """Where the user wrote its address, such as `NODE_PORTS position 1`."""
    role: Role
    seat: Seat
    max_model_len: int
    model: str | None
    """The first name it must serve; None where any will do."""

    def stranger(self, found: Introduction) -> str | None:
        """What is wrong with who was found, and what to do about it; None for the right one."""
        wrong = next(self._differences(found), None)
        return None if wrong is None else f"{self.place}: {wrong}"

    def _differences(self, found: Introduction) -> Iterator[str]:
        wanted, seat = f"{self.role} on {self.seat}", found.seat
        if seat is None:
            yield (
                f"an instance answers there that was not started from a rank table, instead of {wanted}; "
                "start it with `tandem serve --from-rank-table`, or mend the port"
            )
        elif (found.role, seat.devices, seat.host) != (self.role, self.seat.devices, self.seat.host):
            yield (
                f"{found.role} on {seat} answers there instead of {wanted}; "
                "put the ports in the order of the global rank table: prefill, then decode"
            )
        elif seat.table != self.seat.table:
            yield (
                f"{wanted} was started with the global rank table {seat.table}, here it is {self.seat.table}; "
                "copy one table to all instances and start them again"
            )
        if found.max_model_len != self.max_model_len:
            yield (
                f"{wanted} has --max-model-len {found.max_model_len}, here it is {self.max_model_len}; "
                "start all with the same"
            )
        if self.model is not None and found.model != self.model:
            yield (f"{wanted} has --served-model-name {found.model}, here it is {self.model}; start all with the same")
