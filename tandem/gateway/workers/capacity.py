"""How much room for keys and values a worker has: what was booked here, made right by what its `/metrics` tell.

    used by the worker's word  =  scale x booked here  +  used by others

What is booked is an estimate, and may be wrong by a factor that stays about the same as long as requests are alike:
that is the scale. What it cannot explain is somebody else's, who sends to the same worker.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tandem.gateway.workers.load import Load

FULL: Final = 0.9
"""Of all room; the rest is for answers that become longer than was foreseen."""
NEARLY: Final = 0.8
"""Of that; a worker so full is asked itself whether it has room."""
SCALES: Final = (0.5, 2.0)
"""Between these an estimate may be wrong; what is beyond them has another reason."""
STEP: Final = 0.25
"""How far towards what one look says the scale goes."""
UNREAD: Final = 8
"""Requests at a time for a worker that has just come up, until its first look: it may be small."""


class NoRoomError(Exception):
    """No worker has room for a request now, though one could have later."""


LABEL: Final = re.compile(rb'(?<!\w)(\w{1,64})="((?:[^"\\]|\\.)*)"')
"""Begins only where a word does: elsewhere a long word would be looked through again from each of its letters."""
LONGEST_LINE: Final = 4096
"""Bytes of a sample's line; vLLM's whole configuration of its cache has a quarter."""


@dataclass(frozen=True, kw_only=True)
class Occupancy:
    """What a worker tells of its room, in tokens."""

    total: float
    used: float

    @classmethod
    def read(cls, page: bytes) -> Occupancy | None:
        """From a page for Prometheus of an instance of ours or of vLLM 0.32; None where it does not say.

        Source: vllm/v1/metrics/loggers.py and vllm/config/cache.py of vLLM 0.32.
        """
        lines = b"\n" + page + b"\n"
        try:
            found = cls._of_tandem(lines) or cls._of_vllm(lines)
        except (ValueError, LookupError):  # some other program's numbers
            return None
        sound = found is not None and 0 < found.total < math.inf and 0 <= found.used < math.inf
        return found if sound else None

    @classmethod
    def _of_tandem(cls, page: bytes) -> Occupancy | None:
        total, free, size = (
            sum(value for _, value in _samples(page, name))
            for name in (b"tandem_kv_blocks_total", b"tandem_kv_blocks_free", b"tandem_kv_block_tokens")
        )
        return cls(total=total * size, used=(total - free) * size) if size else None

    @classmethod
    def _of_vllm(cls, page: bytes) -> Occupancy | None:
        """Of all its engines, where it has several."""
        shares = {labels.get(b"engine"): value for labels, value in _samples(page, b"vllm:kv_cache_usage_perc")}
        sizes = {labels.get(b"engine"): _tokens(labels) for labels, _ in _samples(page, b"vllm:cache_config_info")}
        if not sizes or shares.keys() != sizes.keys():
            return None
        return cls(total=sum(sizes.values()), used=sum(shares[engine] * size for engine, size in sizes.items()))


class Capacity:
    """Of one worker; in tokens."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """It is another process now."""
        self.is_read = False
        """Whether it was asked since it came up."""
        self.total: float | None = None
        """Room in all; None where it is not known, and then it has room for everything."""
        self.others = 0.0
        """Used by what is not booked here."""
        self.scale = 1.0
        """Used for each token that is booked."""

    def unknown(self) -> None:
        """It was asked and does not tell."""
        self.forget()
        self.is_read = True

    def learn(self, found: Occupancy, booked: float, begun: float) -> None:
        """Take in what the worker told.

        Args:
            found: Its word.
            booked: Tokens that were booked at that time.
            begun: Of requests among them whose answers had begun, so that their prompts were there for certain.
        """
        self.is_read = True
        self.total = found.total
        if booked > 0:
            least, most = found.used / booked, found.used / begun if begun else math.inf
            self.scale += STEP * (_between(_between(self.scale, least, most), *SCALES) - self.scale)
        self.others = max(0.0, found.used - self.scale * booked)

    def refused(self, booked: float, tokens: float) -> None:
        """It says itself that it has no room for so many tokens: as much is used by others, until the next look."""
        surplus = self.left(booked) - self.scale * tokens
        if 0 <= surplus < math.inf:
            self.others += surplus + 1

    def left(self, booked: float) -> float:
        """Room that is left; below 0 where there is too much already."""
        return math.inf if self.total is None else FULL * self.total - self.scale * booked - self.others

    def shown(self, load: Load) -> tuple[float, float, float]:
        """Room in all, 0 where it is not known; of that, booked here, and used by others."""
        return self.total or 0.0, self.scale * load.tokens, self.others

    def could_hold(self, tokens: float) -> bool:
        """Whether a request of so many tokens fits when there is no other."""
        return self.total is None or tokens <= FULL * self.total

    def has_room(self, load: Load, tokens: float) -> bool:
        """Whether a request of so many tokens fits beside what it carries."""
        if self.total is None:
            return self.is_read or load.requests < UNREAD
        return self.could_hold(tokens) and min(self.scale * tokens, FULL * self.total) <= self.left(load.tokens)

    def is_nearly_full(self, load: Load) -> bool:
        """Whether the ledger alone should not be trusted."""
        return self.total is not None and self.left(load.tokens) < (1 - NEARLY) * FULL * self.total


def _between(value: float, least: float, most: float) -> float:
    return max(least, min(value, most))


def _tokens(labels: dict[bytes, bytes]) -> float:
    """Of a vLLM's cache; its own word, where it has one, is right for models with several kinds of layers, too."""
    told = labels.get(b"kv_cache_size_tokens", b"None")
    return float(told) if told != b"None" else float(labels[b"num_gpu_blocks"]) * float(labels[b"block_size"])


def _samples(page: bytes, name: bytes) -> Iterator[tuple[dict[bytes, bytes], float]]:
    """The samples of one metric; the rest of the page, which is long, is only searched, as are lines too long for one.

    Raises:
        ValueError: Something that is no number stands in a number's place.
    """
    at = page.find(b"\n" + name)
    while at >= 0:
        end = page.find(b"\n", at + 1)
        labels, _, rest = page[at + 1 + len(name) : end].rpartition(b"}")
        if end - at <= LONGEST_LINE and page[at + 1 + len(name) : at + 2 + len(name)] in (b" ", b"{"):
            yield dict(LABEL.findall(labels)), float(rest.split()[0])
        at = page.find(b"\n" + name, end)
