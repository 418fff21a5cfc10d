"""The caches of all ranks of one instance, as the one who moves blocks sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tandem.kv.cache import CacheLayout, KVCache
from tandem.parallel.split import kv_part


@dataclass(frozen=True)
class Shards:
    """Blocks of one instance; block i of every rank together is block i of the instance."""

    layout: CacheLayout
    """Of all ranks together."""
    caches: Sequence[KVCache]
    """One per rank, in order; every one is in this process's reach."""

    def heads(self, rank: int) -> range:
        """The key/value heads that a rank holds."""
        return kv_part(self.layout.kv_heads, rank, len(self.caches))
