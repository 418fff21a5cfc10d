"""What workers are asked for one answer: the whole of it, and the rest of it after a break."""

from __future__ import annotations

import secrets
from functools import cached_property
from typing import Any

from tandem.gateway.delivery.continuation import Continuation, go_on, resume
from tandem.gateway.delivery.exactness import Exactness
from tandem.gateway.request.body import ClientBody
from tandem.gateway.request.progress import Progress
from tandem.protocol.kv import Resume


class Bodies:
    """The bodies of all tries at one answer, which ask for the same random numbers everywhere.

    Args:
        asked: The client's.
        choice: Which of several answers to the same prompt it is: that decides its random numbers.
        reasons: Whether workers were seen to tell reasoning apart, without being asked to.
    """

    def __init__(self, asked: ClientBody, choice: int, *, reasons: bool) -> None:
        self._asked = asked
        self._choice = choice
        self._reasons = reasons
        self._seed = secrets.randbits(62)

    def first(self, *, native: bool) -> ClientBody:
        """For an answer from its start; asks for ids where it streams.

        Args:
            native: Whether it is for instances of ours.
        """
        body = self._asked
        fields: dict[str, Any] = {}
        if body.streams and not body.echoes:  # vLLM would leave the prompt's text out
            fields["return_token_ids"] = True
        seed = body.value("seed")
        if seed is None and (native or (body.streams and self._exactness.needs_seed)):
            fields["seed"] = self._seed
        if native and self._choice:
            fields["resume"] = Resume(output_token_ids=[], choice=self._choice)
        if not native and self._choice and type(seed) is int:
            fields["seed"] = seed + self._choice
        return body.with_fields(**fields)

    def rest(self, progress: Progress, *, native: bool) -> Continuation:
        """For the answer from where it broke off.

        Args:
            progress: What the client has of it.
            native: Whether it is for instances of ours.

        Raises:
            RequestError: Nobody can go on exactly.
        """
        first = self.first(native=native)
        return resume(first, progress, self._choice) if native else go_on(first, progress, self._exactness)

    @property
    def is_repeatable(self) -> bool:
        """Whether another engine's instances answer the same when they are asked again from the start."""
        return Exactness(self.first(native=False)).is_repeatable

    @cached_property
    def _exactness(self) -> Exactness:
        return Exactness(self._asked, reasons=self._reasons)
