"""From one format to another, losing nothing silently.

What the target has no words for stops the way, by name; `leave_out` lets it go. What the target needs and the source
does not say is asked for, with the option that supplies it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from tandem.errors import TopologyError
from tandem.topology.formats.format import Format, Reading
from tandem.topology.formats.inventory import Inventory, Kind
from tandem.topology.formats.supplement import Supplement
from tandem.topology.rank_table_merge import raise_first
from tandem.topology.topology import Role

KEYS = {Kind.DEVICE_KEY, Kind.SERVER_KEY, Kind.GROUP_KEY, Kind.TABLE_KEY}


def convert(
    reading: Reading,
    source: str,
    target: Format,
    *,
    leave_out: Collection[str] = (),
    supplement: Supplement | None = None,
) -> tuple[Inventory, str]:
    """What is said in the end, and the target's text for it.

    Args:
        reading: The source file's contents.
        source: How errors name the source file.
        target: The format to write.
        leave_out: Names of what may be lost.
        supplement: What the source does not say.

    Raises:
        TopologyError: When the source breaks a rule of its format, when something would be lost or is missing, or
            when the result breaks a rule of the target.
    """
    raise_first(reading.findings)
    require_known(reading.inventory, leave_out, source)
    inventory = (supplement or Supplement()).added(reading.inventory.without(leave_out), source)
    require_enough(inventory, source, target)
    require_sayable(inventory, source, target)
    text = target.write(inventory)
    raise_first(target.read(text, f"{source} as {target.title}").findings)
    return inventory, text


def require_known(inventory: Inventory, leave_out: Collection[str], source: str) -> None:
    """Refuse to leave out what is not there: a spelling mistake would leave in what should go."""
    there = dict.fromkeys(name for name, _, _ in inventory.said())
    if strange := [name for name in leave_out if name not in there]:
        raise TopologyError(
            f"{source}: --leave-out {strange[0]}: the file does not say it; "
            f"what may be left out is {', '.join(there) or 'nothing'}"
        )


def require_enough(inventory: Inventory, source: str, target: Format) -> None:
    """Refuse a source that lacks what the target cannot do without."""
    for need, problem, fix in lacks(inventory):
        if need in target.needs:
            raise TopologyError(f"{source}: {problem}, which {target.title} needs; {fix}")


def lacks(inventory: Inventory) -> Iterator[tuple[str, str, str]]:
    """What some formats need and is not said: its name, the problem, the fix."""
    working = inventory.working
    if not inventory.cut:
        yield "instances", "does not say which devices make an instance", "give --instance-size, in devices"
    for placement in working:
        if not placement.devices:
            yield "devices", f"{placement.place} has no devices", "list them in the file"
    if any(placement.role is None for placement in working):
        yield "role", "does not say which instance is prefill or decode", "give --role, once or for each in order"
    if not inventory.of(Role.GATEWAY):
        yield "scheduler", "has no scheduler", "give its host with --scheduler"
    if inventory.controller is None:
        yield "controller", "has no controller", "give its host with --controller"
    if "model" not in inventory.fields:
        yield "model", "does not name the model", "give its folder with --model"
    if len(working) != 1:
        problem = f"has {len(working)} instances, and not the one"
        yield "one instance", problem, "use --to global --local-tables FOLDER, which writes one for each"


def require_sayable(inventory: Inventory, source: str, target: Format) -> None:
    """Refuse what the target has no words for, all of it by name; and keys that it would take for others."""
    lost: dict[str, str] = {}
    for name, kind, place in inventory.said():
        if kind not in target.says:
            lost.setdefault(name, f"{kind} ({place})" if kind is Kind.BOTH else f"{name} ({place})")
        elif kind in KEYS and name in target.own:
            raise TopologyError(
                f"{source}: {name} ({place}) means something else in {target.title}; leave it out with "
                f"--leave-out {name}"
            )
    if lost:
        raise TopologyError(
            f"{source}: {target.title} has no words for {', '.join(lost.values())}; "
            f"leave out what may be lost with --leave-out {' '.join(lost)}"
        )
