"""Several answers to one request, each a delivery of its own: `n` choices, several prompts, or both.

One ticket carries one prompt's blocks for one decode, so each choice has a prefill, a ticket and, should its worker
fail, a continuation of its own. Here they become one answer again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Final

import msgspec

from tandem.errors import RequestError
from tandem.gateway.delivery.delivery import Courier, Delivery
from tandem.gateway.request.client_request import ClientRequest
from tandem.gateway.request.limits import Limits
from tandem.gateway.request.progress import Event
from tandem.gateway.request.tally import cached_in, with_cached
from tandem.protocol import sse
from tandem.protocol.json_body import UNREADABLE
from tandem.protocol.sse import EventParser

Told = asyncio.Queue[tuple[int, Event | Exception | None]]
"""Which strand tells what: an event, why it failed, or that it has ended."""
AHEAD: Final = 64
"""Events that a strand may be ahead of the client."""


class Strands:
    """The answer to a request for several choices, streamed or whole.

    Args:
        courier: What deliveries are made with.
        asked: The request.
        limits: How many there may be.

    Raises:
        RequestError: 400, there are too many.
    """

    def __init__(self, courier: Courier, asked: ClientRequest, limits: Limits) -> None:
        self._deliveries = [courier.deliver(one, choice) for one, choice in strands(asked, limits)]
        self._per_prompt = asked.body.count
        self._wants_usage = asked.body.wants_usage

    @property
    def headers(self) -> dict[str, str]:
        """Of the first one that has begun."""
        return next((delivery.headers for delivery in self._deliveries if delivery.headers), {})

    @property
    def exchange(self) -> None:
        """Each choice has its own."""

    async def whole(self) -> bytes:
        """One answer with all choices; raises like `Delivery.whole`, when any of them fails."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(delivery.whole()) for delivery in self._deliveries]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        with readable():
            answers = [msgspec.json.decode(task.result(), type=Event) for task in tasks]
            return msgspec.json.encode(self._joined(answers))

    def _joined(self, answers: Sequence[Event]) -> Event:
        choices = [choice | {"index": i} for i, answer in enumerate(answers) for choice in answer["choices"]]
        usages = [answer["usage"] for answer in answers if answer.get("usage")]
        return answers[0] | {"choices": choices} | ({"usage": self._summed(usages)} if usages else {})

    def _summed(self, usages: Sequence[Event]) -> Event:
        prompt = sum(usage["prompt_tokens"] for usage in usages[:: self._per_prompt])
        answer = sum(usage["completion_tokens"] for usage in usages)
        counts = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
        return with_cached(usages[0] | counts, self._cached(usages))

    def _cached(self, usages: Sequence[Event]) -> int | None:
        """What was cached before the first choice of each prompt left it for the others; None where not all tell."""
        found = [cached_in(usage) for usage in usages]
        known = [one for one in found if one is not None]
        if len(known) < len(found):
            return None
        return sum(min(known[i : i + self._per_prompt]) for i in range(0, len(known), self._per_prompt))

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """One stream with the events of all; raises like `Delivery.stream`, when any of them fails."""
        queue: Told = asyncio.Queue(AHEAD)
        pumps = [asyncio.create_task(self._pump(i, one, queue)) for i, one in enumerate(self._deliveries)]
        try:
            async with aclosing(self._merged(queue)) as events:
                async for event in events:
                    yield sse.event(event)
            yield sse.DONE
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)

    async def _pump(self, index: int, delivery: Delivery, queue: Told) -> None:
        parser = EventParser()
        try:
            async with aclosing(delivery.stream()) as pieces:
                async for piece in pieces:
                    for data in parser.feed(piece):
                        if data != b"[DONE]":
                            with readable():
                                event = msgspec.json.decode(data, type=Event)
                            await queue.put((index, event))
            await queue.put((index, None))
        except Exception as error:  # noqa: BLE001 - raised where the queue is read, which would wait for ever
            await queue.put((index, error))

    async def _merged(self, queue: Told) -> AsyncGenerator[Event, None]:
        head: Event = {}
        usages: dict[int, Event] = {}
        open_strands = len(self._deliveries)
        while open_strands:
            index, event = await queue.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                open_strands -= 1
                continue
            head = head or {name: event[name] for name in ("id", "created") if name in event}
            if not event.get("choices") and event.get("usage"):
                usages[index] = event
                continue
            with readable():
                choices = [choice | {"index": index} for choice in event.get("choices", ())]
            yield event | head | {"choices": choices}
        if self._wants_usage and usages:
            with readable():
                summed = self._summed([usages[index]["usage"] for index in sorted(usages)])
            yield usages[min(usages)] | head | {"usage": summed}


def strands(asked: ClientRequest, limits: Limits) -> Iterator[tuple[ClientRequest, int]]:
    """The request for each choice, prompt by prompt, and the number of the choice among those of its prompt.

    Raises:
        RequestError: 400, there are too many, or they should all go on from one answer.
    """
    count, prompts = asked.body.count, asked.body.prompts
    if asked.body.value("resume") is not None:
        message = f"n: {count * len(prompts)} answers cannot go on from one; resume each by itself"
        raise RequestError(message, param="n")
    limits.check_answers(count, len(prompts))
    single = asked.body.with_fields(n=None)
    if single.value("best_of") in (1, count):  # any other is the instance's to refuse
        single = single.with_fields(best_of=None)
    for prompt in prompts:
        for choice in range(count):
            one = asked.with_body(single if prompt is None else single.with_fields(prompt=prompt))
            yield one.by_itself(), choice


@contextmanager
def readable() -> Iterator[None]:
    """What instances have answered is put together in the block.

    Raises:
        RequestError: 502, it is not what OpenAI's API says.
    """
    try:
        yield
    except (*UNREADABLE, LookupError, TypeError, AttributeError):
        message = "an instance answered with something other than OpenAI's JSON; look at its log"
        raise RequestError(message, status=502, code="worker_failed") from None
