"""What a user adds on the way from one format to another, because the first does not say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tandem.errors import TopologyError
from tandem.topology.formats.inventory import Inventory, Placement
from tandem.topology.rank_table_codec import require_ports
from tandem.topology.topology import Role


@dataclass(frozen=True, kw_only=True)
class Supplement:
    """Everything that may be added; a value that the file has already is refused rather than replaced."""

    instance_size: int | None = None
    """Devices of an instance."""
    roles: Sequence[Role] = ()
    """One for all, or one for each instance in order."""
    scheduler: str | None = None
    """Host of the service entry."""
    controller: str | None = None
    """Host of MindIE's controller."""
    model: str | None = None
    ports: Sequence[int] = ()
    """Of prefill instances, then of decode instances, in order."""
    scheduler_port: int | None = None

    def added(self, inventory: Inventory, source: str) -> Inventory:
        """The inventory with what is given here.

        Raises:
            TopologyError: When the file, called `source`, says it already, or numbers do not fit.
        """
        for option, part in (
            ("--instance-size", self._cut),
            ("--role", self._with_roles),
            ("--scheduler", self._with_scheduler),
            ("--controller", self._with_controller),
            ("--model", self._with_model),
            ("--ports", self._with_ports),
            ("--scheduler-port", self._with_scheduler_port),
        ):
            try:
                inventory = part(inventory)
            except TopologyError as error:
                raise TopologyError(f"{source}: {option}: {error}") from error
        return inventory

    def _cut(self, inventory: Inventory) -> Inventory:
        if self.instance_size is None:
            return inventory
        if inventory.cut and len(inventory.working) > 1:
            raise said("instances")
        placements = [piece for one in inventory.placements for piece in pieces(one, self.instance_size)]
        return replace(inventory, placements=tuple(placements), cut=True)

    def _with_roles(self, inventory: Inventory) -> Inventory:
        if not self.roles:
            return inventory
        if any(placement.role is not None for placement in inventory.working):
            raise said("role")
        count = len(inventory.working)
        if len(self.roles) not in (1, count):
            raise TopologyError(f"{len(self.roles)} roles for {count} instances; give one for all, or one for each")
        roles = iter(self.roles if len(self.roles) == count else [self.roles[0]] * count)
        placements = (
            one if one.role is Role.GATEWAY else replace(one, role=next(roles)) for one in inventory.placements
        )
        return replace(inventory, placements=tuple(placements))

    def _with_scheduler(self, inventory: Inventory) -> Inventory:
        if self.scheduler is None:
            return inventory
        if inventory.of(Role.GATEWAY):
            raise said("scheduler")
        return replace(inventory, placements=(alone(self.scheduler), *inventory.placements))

    def _with_controller(self, inventory: Inventory) -> Inventory:
        if self.controller is None:
            return inventory
        if inventory.controller is not None:
            raise said("controller")
        return replace(inventory, controller=alone(self.controller))

    def _with_model(self, inventory: Inventory) -> Inventory:
        if self.model is None:
            return inventory
        if "model" in inventory.fields:
            raise said("model")
        return replace(inventory, fields={**inventory.fields, "model": self.model})

    def _with_ports(self, inventory: Inventory) -> Inventory:
        if not self.ports:
            return inventory
        first = len(inventory.of(Role.PREFILL))
        require_ports(self.ports, first, len(inventory.of(Role.DECODE)))
        ports = {Role.PREFILL: iter(self.ports[:first]), Role.DECODE: iter(self.ports[first:])}
        placements = (
            with_field(one, "port", next(ports[one.role]) if one.role in ports else None)
            for one in inventory.placements
        )
        return replace(inventory, placements=tuple(placements))

    def _with_scheduler_port(self, inventory: Inventory) -> Inventory:
        if self.scheduler_port is None:
            return inventory
        if not inventory.of(Role.GATEWAY):
            raise TopologyError("there is no scheduler; give its host with --scheduler")
        placements = (
            with_field(one, "port", self.scheduler_port if one.role is Role.GATEWAY else None)
            for one in inventory.placements
        )
        return replace(inventory, placements=tuple(placements))


def pieces(placement: Placement, size: int) -> list[Placement]:
    """Devices of a host cut into instances of one size."""
    count = len(placement.devices)
    if size < 1 or count % size:
        raise TopologyError(
            f"{count} devices of {placement.host} make no whole instances of {size}; give a size that divides them"
        )
    if not count:
        return [placement]
    return [replace(placement, devices=placement.devices[k : k + size]) for k in range(0, count, size)]


def alone(host: str) -> Placement:
    """A process without devices."""
    return Placement(host=host, server_id=host, role=Role.GATEWAY)


def with_field(placement: Placement, name: str, value: Any) -> Placement:
    """A placement with one more field, unless the value is None."""
    if value is None:
        return placement
    if name in placement.fields:
        raise said(name)
    return replace(placement, fields={**placement.fields, name: value})


def said(name: str) -> TopologyError:
    """The refusal to replace what a file says."""
    return TopologyError(f"the file says {name} already; leave the option out, or add --leave-out {name}")


def parse_ports(text: str) -> list[int]:
    """`"8088,8089"` as `[8088, 8089]`.

    Raises:
        TopologyError: When it is not port numbers between commas.
    """
    ports = [int(part) if part.isascii() and part.isdecimal() else 0 for part in text.split(",")]
    if not all(0 < port < 65536 for port in ports):
        raise TopologyError(f"--ports {text!r} is not port numbers between commas; write it like 8088,8089")
    return ports
