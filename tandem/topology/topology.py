"""The typed truth: which instances exist, with role, address, devices, engine and arguments.

Everything that starts or finds a process reads a Topology. It is checked once, at construction, so whoever holds
one may rely on its rules. Rank tables and other file formats are translations of it and live beside this file.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from tandem.topology.record import Record, like

InstanceName = Annotated[
    str,
    like(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
        "write at most 64 letters, digits, `.`, `_` and `-`, a letter or digit first",
    ),
]
"""A name is also the name of a log file, so it holds no slash and starts with a letter or digit."""

Host = Annotated[str, like(r"[A-Za-z0-9.:%_-]{1,255}", "write it like 10.0.0.18, 2001:db8::7 or node-1")]

Port = Annotated[int, Field(ge=1, le=65535)]

ArgumentName = Annotated[
    str, like(r"[A-Za-z][A-Za-z0-9_-]*", "write an option's name without its leading dashes, such as max-num-seqs")
]
"""A command-line option without its leading dashes."""


Engine = Literal["native", "vllm"]
"""What runs the model: this program, or `vllm serve`."""


class Role(StrEnum):
    """What an instance does for a request."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"
    GATEWAY = "gateway"


def spelled(value: object) -> object:
    """A switch may be written as YAML's true."""
    return "" if value is True else value


class Device(Record):
    """One accelerator of an instance; its logical rank is its index in the instance's devices."""

    id: Annotated[int, Field(ge=0)]
    """Physical number on its host."""
    address: Host | None = None
    """Address of its own network port, where it has one."""


class Instance(Record):
    """One process (or group of processes behind one address) of a service."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: InstanceName
    role: Role
    host: Host
    port: Port | None = None
    devices: tuple[Device, ...] = ()
    engine: Engine = "native"
    arguments: dict[ArgumentName, Annotated[str, BeforeValidator(spelled)]] = Field(default_factory=dict)
    """Further options of its command, names without the leading dashes; one without a value, or true, is a switch."""

    @property
    def url(self) -> str:
        """Base URL of its HTTP interface, an IPv6 host in brackets; without the port where none is set."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}" if self.port is None else f"http://{host}:{self.port}"


class Topology(Record):
    """A whole service: its model and its instances.

    Raises:
        TopologyError: From the constructor, when a rule is broken; the message names field, value and fix.
    """

    model: Annotated[str, StringConstraints(min_length=1)]
    """Model folder."""
    served_model_name: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Name clients use; the instances' own default where None."""
    instances: tuple[Instance, ...]
    epoch: Annotated[int, Field(ge=1)] = 1
    """Grows with every change, so that a stale view can be told from a fresh one."""

    def of(self, role: Role) -> tuple[Instance, ...]:
        """The instances of one role, in order."""
        return tuple(instance for instance in self.instances if instance.role is role)

    @model_validator(mode="after")
    def _keeps_the_rules(self) -> Topology:
        self._require_unique_names_addresses_and_devices()
        self._require_a_gateway_at_most()
        self._require_a_full_set_of_roles()
        self._require_one_engine()
        return self

    def _require_unique_names_addresses_and_devices(self) -> None:
        names = ((f"instances[{i}].name", one.name) for i, one in enumerate(self.instances))
        require_unique(names, "give each instance its own name")
        ports = (
            (f"instances[{i}].port", f"{one.host} port {one.port}")
            for i, one in enumerate(self.instances)
            if one.port is not None
        )
        require_unique(ports, "give each instance on a host its own port")
        devices = (
            (f"instances[{i}].devices[{j}]", f"{one.host} device {device.id}")
            for i, one in enumerate(self.instances)
            for j, device in enumerate(one.devices)
        )
        require_unique(devices, "give each device to one instance only")

    def _require_a_gateway_at_most(self) -> None:
        gateways = self.of(Role.GATEWAY)
        if len(gateways) > 1:
            names = ", ".join(gateway.name for gateway in gateways)
            raise ValueError(f"instances holds {len(gateways)} gateways ({names}); keep one")
        if gateways and gateways[0].devices:
            raise ValueError(f"gateway {gateways[0].name} has devices; remove them, a gateway takes no accelerator")

    def _require_a_full_set_of_roles(self) -> None:
        prefill, decode, both = (len(self.of(role)) for role in (Role.PREFILL, Role.DECODE, Role.BOTH))
        found = f"instances holds {prefill} prefill, {decode} decode and {both} both"
        if both and (prefill or decode):
            raise ValueError(f"{found}; use either prefill and decode instances, or only both instances")
        if not both and not (prefill and decode):
            raise ValueError(f"{found}; add at least one prefill and one decode instance, or one both instance")

    def _require_one_engine(self) -> None:
        for gateway in self.of(Role.GATEWAY):
            if gateway.engine != "native":
                raise ValueError(
                    f"gateway {gateway.name} has engine {gateway.engine}; remove it, a gateway runs no model"
                )
        computing = [one for one in self.instances if one.role is not Role.GATEWAY]
        for one in computing:
            if one.engine != computing[0].engine:
                raise ValueError(
                    f"{computing[0].name} has engine {computing[0].engine} and {one.name} has {one.engine}, and "
                    "neither can take over the other's keys and values; give all instances one engine"
                )


def require_unique(places: Iterator[tuple[str, Hashable]], fix: str) -> None:
    """Refuse a value that stands at two places.

    Args:
        places: Pairs of a field path and its value.
        fix: What the user should do about a repeated value.

    Raises:
        ValueError: Naming both places and the value.
    """
    seen: dict[Hashable, str] = {}
    for place, value in places:
        if value in seen:
            raise ValueError(f"{seen[value]} and {place} are both {value}; {fix}")
        seen[value] = place
