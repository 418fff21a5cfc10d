"""Paths that are on an object store, as paths of this machine: `s3://bucket/key` becomes its place in the cache.

From there on nobody knows: what lies in the cache is fetched before a run and sent while it goes on (`staging`). Every
host of several has a cache of its own, even in a folder that they share.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tandem.storage.location import Location
from tandem.storage.mirror import default_cache, mirror_of
from tandem.training.settings.values import Value, Values

CACHE = "paths.cache"


def on_this_machine(values: Values, root: str | Path, environment: Mapping[str, str]) -> tuple[Values, Path]:
    """The values that name locations, as paths; and the folder of the run likewise.

    Args:
        values: All that are given.
        root: The folder of the run, or a location.
        environment: Of the process; says where the user's cache is.

    Raises:
        UsageError: Something has the form of a location, and is none.
    """
    given = {name: value for name, value in values.items() if name.startswith("paths.") or name == "resume.checkpoint"}
    locations = {name: there for name, value in given.items() if (there := Location.of(str(value.value)))}
    home = Location.of(str(root))
    if not locations and home is None:
        return {}, Path(root)
    base = values.get(CACHE) or Value(default_cache(environment), "the user's cache")
    mirror = mirror_of(Path(base.value), values["launch.node_rank"].value if "launch.node_rank" in values else 0)
    found: Values = {CACHE: base}
    for name, there in locations.items():
        found[name] = Value(mirror.path(there), f"{values[name].origin}: {there}")
    return found, Path(root) if home is None else mirror.path(home)
