"""What any of the formats may say about a service: the common ground on which one is turned into another.

Hosts, devices and their order are in all of them. Everything else, from roles to keys that nobody knows, is in some
only, and `Inventory.said` lists it by name, so that nothing is lost silently on the way from one to another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from tandem.topology.topology import Role


class Kind(StrEnum):
    """What a format may be able to say beside hosts and devices."""

    ROLE = "role"
    """Prefill or decode."""
    BOTH = "role both"
    INSTANCES = "instances"
    """Which devices make an instance, where there are several."""
    SCHEDULER = "scheduler"
    CONTROLLER = "controller"
    SERVER_ID = "server_id"
    """A name of a server that is not its address."""
    SUPER_POD = "super_pod"
    VERSION = "version"
    """One that does not follow from whether there are super pods."""
    TOPOLOGY_FIELD = "field of a topology"
    DEVICE_KEY = "further key of a device"
    SERVER_KEY = "further key of a server"
    GROUP_KEY = "further key of a group"
    TABLE_KEY = "further key of a table"


@dataclass(frozen=True, kw_only=True)
class PlacedDevice:
    """One device; its rank is its place in the order."""

    id: int
    """Physical number on its host."""
    address: str | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)
    """What its file says of it under names that are not known here."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Devices of one host that stand together in a file; the scheduler and the controller have none."""

    host: str
    server_id: str
    role: Role | None = None
    """None where the file does not say."""
    devices: tuple[PlacedDevice, ...] = ()
    super_pod: str | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)
    group_keys: Mapping[str, Any] = field(default_factory=dict)
    """Unknown keys of the group in which it stands."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a topology's instance: name, port, arguments and so on."""

    @property
    def place(self) -> str:
        """How messages call it."""
        numbers = ",".join(str(device.id) for device in self.devices)
        return f"{self.host} devices {numbers}" if numbers else self.host

    def said(self) -> Iterator[tuple[str, Kind, str]]:
        """What is said here beside host and devices: its name, its kind, the place."""
        place = self.place
        if self.role is not None:
            kind = {Role.GATEWAY: Kind.SCHEDULER, Role.BOTH: Kind.BOTH}.get(self.role, Kind.ROLE)
            yield "scheduler" if kind is Kind.SCHEDULER else "role", kind, place
        if self.server_id != self.host:
            yield "server_id", Kind.SERVER_ID, place
        if self.super_pod is not None:
            yield "super_pod", Kind.SUPER_POD, place
        yield from ((name, Kind.TOPOLOGY_FIELD, place) for name in self.fields)
        yield from ((name, Kind.SERVER_KEY, place) for name in self.keys)
        yield from ((name, Kind.GROUP_KEY, f"the group of {place}") for name in self.group_keys)
        for device in self.devices:
            yield from ((name, Kind.DEVICE_KEY, f"{self.host} device {device.id}") for name in device.keys)

    def without(self, names: Collection[str]) -> Placement:
        """The same with some of what is said left out."""
        return replace(
            self,
            server_id=self.host if "server_id" in names else self.server_id,
            role=None if "role" in names and self.role is not Role.GATEWAY else self.role,
            devices=tuple(replace(device, keys=less(device.keys, names)) for device in self.devices),
            super_pod=None if "super_pod" in names else self.super_pod,
            keys=less(self.keys, names),
            group_keys=less(self.group_keys, names),
            fields=less(self.fields, names),
        )


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """A service as far as a file tells of it."""

    placements: tuple[Placement, ...]
    """In the order of ranks; the scheduler is one of them."""
    controller: Placement | None = None
    """MindIE's second process without devices."""
    cut: bool = True
    """Whether each placement with devices is one instance; else they are hosts, and instances are not told apart."""
    version: str | None = None
    """Where it is not the one that the format has by whether there are super pods."""
    keys: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a topology: model, served_model_name, epoch."""

    @property
    def working(self) -> tuple[Placement, ...]:
        """All but the scheduler."""
        return tuple(placement for placement in self.placements if placement.role is not Role.GATEWAY)

    def of(self, role: Role) -> tuple[Placement, ...]:
        """The placements of one role, in order."""
        return tuple(placement for placement in self.placements if placement.role is role)

    def said(self) -> Iterator[tuple[str, Kind, str]]:
        """What is said beside hosts and devices: its name, its kind, a place."""
        for placement in self.placements:
            yield from placement.said()
        if self.cut and len(self.working) > 1:
            yield "instances", Kind.INSTANCES, f"{len(self.working)} of them"
        if self.controller is not None:
            yield "controller", Kind.CONTROLLER, self.controller.host
            yield from (said for said in self.controller.said() if said[1] is not Kind.SCHEDULER)
        if self.version is not None:
            yield "version", Kind.VERSION, "the whole"
        yield from ((name, Kind.TOPOLOGY_FIELD, "the whole") for name in self.fields)
        yield from ((name, Kind.TABLE_KEY, "the whole") for name in self.keys)

    def without(self, names: Collection[str]) -> Inventory:
        """The same with some of what is said left out, by the names that `said` gives."""
        kept = self.working if "scheduler" in names else self.placements
        return Inventory(
            placements=tuple(placement.without(names) for placement in kept),
            controller=None if self.controller is None or "controller" in names else self.controller.without(names),
            cut=self.cut and "instances" not in names,
            version=None if "version" in names else self.version,
            keys=less(self.keys, names),
            fields=less(self.fields, names),
        )


def less(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """A mapping without some of its names."""
    return {name: value for name, value in values.items() if name not in names}
