"""What a format is: how it is read and written, what it can say and what it cannot do without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tandem.topology.finding import Finding
from tandem.topology.formats.inventory import Inventory, Kind


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A file's contents, and the rules of its own format that it breaks."""

    inventory: Inventory
    findings: Sequence[Finding] = ()


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to describe a service in a file."""

    name: str
    """Its name on the command line."""
    title: str
    """How messages call one of its files."""
    says: frozenset[Kind]
    """What it has words for, beside hosts and devices."""
    needs: frozenset[str]
    """What it cannot do without, by the names that `convert.lacks` gives."""
    own: frozenset[str]
    """Its own keys: an unknown key of another format that has such a name would be taken for one of them."""
    read: Callable[[str, str], Reading]
    """From text and the file's name in messages; a TopologyError where the text does not have the format's shape."""
    write: Callable[[Inventory], str]
    """The text for an inventory that says no more than the format can, and as much as it needs."""
