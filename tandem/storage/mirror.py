"""`Mirror`: where on this machine lies what is on a store.

<root>/<scheme>/<bucket>/<key>
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tandem.storage.location import Location


def default_cache(environment: Mapping[str, str]) -> Path:
    """The user's own cache folder's part for this."""
    home = environment.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "tandem" / "store"


@dataclass(frozen=True)
class Mirror:
    """A folder in which every location has a path, and every path below a bucket's a location."""

    root: Path

    def path(self, location: Location) -> Path:
        """Of a location."""
        return self.root / location.scheme / location.bucket / location.key

    def location(self, path: Path) -> Location | None:
        """Of a path; None for one that lies elsewhere."""
        if not path.is_relative_to(self.root):
            return None
        scheme, bucket, *key = path.relative_to(self.root).parts
        return Location(scheme, bucket, "/".join(key))


def mirror_of(cache: Path, node_rank: int) -> Mirror:
    """Of one host."""
    return Mirror(cache / f"host-{node_rank}")
