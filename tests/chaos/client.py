"""Asks for answers as a gateway would, in all the ways there are, and sees that each is the expected one."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from chaos.expectation import Answer, Expected
from chaos.fleet import Fleet
from chaos.instance import Instance
from chaos.ledger import Cause, Ending, How, Ledger
from chaos.workload import Job, Way
from tandem.errors import ProcessError
from tandem.protocol import sse

LONGEST = 60.0
"""Seconds after which a request is not under way any more but hangs."""

LONGEST_BEHIND = 600.0
"""The same for one of low priority: under load it waits for as long as there is anybody else."""

RETRIES = 4
"""Times a persistent client goes on elsewhere."""

KEEP = {"kv_transfer_params": {"do_remote_decode": True}, "max_tokens": 1}


class RefusalError(Exception):
    """An instance says why it fails a request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class BrokenError(Exception):
    """The connection to an instance ended early."""

    def __init__(self, instance: Instance, error: Exception) -> None:
        super().__init__(f"broken: {instance.name}: {error!r}")
        self.instance = instance


@dataclass
class Choice:
    """What has come of one choice."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    reason: str | None = None
    heard: list[int] = field(default_factory=list)
    """Characters that had come with each token."""

    def agrees(self, answer: Answer) -> bool:
        """Whether it is the answer, or as much of it as has come; text may lag behind tokens."""
        if self.reason is not None:
            return Answer(self.tokens, self.text, self.reason) == answer
        return self.tokens == answer.tokens[: len(self.tokens)] and answer.text.startswith(self.text)

    def cut(self, count: int) -> Choice:
        """What it was when so many tokens had come."""
        return Choice(self.tokens[:count], self.text[: self.heard[count - 1]], None, self.heard[:count])


class Asking:
    """One job under way: what has come of it, and who had a part in it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.rng = random.Random(job.seed)
        self.begun = time.monotonic()
        self.since = self.begun
        """When the attempt began that is under way."""
        self.used: list[Instance] = []
        self.attempts: list[dict[int, Choice]] = []
        """What has come, by choice; the last is under way, the others were given up or gone on from."""
        self.begin()
        self.tickets: list[dict[str, Any]] = []
        self.retries = 0
        self.doubtful = False
        """Its ticket is shown twice, or late, so that it may be used up or expired."""

    @property
    def choices(self) -> dict[int, Choice]:
        return self.attempts[-1]

    def begin(self, so_far: Choice | None = None) -> None:
        """Go on from there, or begin with nothing."""
        count = self.job.body.get("n", 1)
        self.attempts.append({0: so_far} if so_far else {choice: Choice() for choice in range(count)})

    def restart(self) -> None:
        """Go on from what has come if that is possible, else from the beginning."""
        self.since, self.used, self.doubtful = time.monotonic(), [], False
        if not self.resumable:
            self.begin()

    @property
    def resumable(self) -> bool:
        """Whether an instance can go on from what has come."""
        return len(self.choices) == 1 and bool(self.choices[0].tokens)

    @property
    def done(self) -> bool:
        return all(choice.reason is not None for choice in self.choices.values())

    @property
    def body(self) -> dict[str, Any]:
        """To be sent now."""
        body = self.job.body | {"return_token_ids": True}
        if self.job.deadline is not None:
            body["deadline_seconds"] = self.job.deadline
        if self.resumable:
            so_far = self.choices[0]
            body["resume"] = {"output_token_ids": so_far.tokens, "sent": len(so_far.text)}
        return body

    def take(self, event: dict[str, Any]) -> None:
        for told in event["choices"]:
            choice = self.choices[told["index"]]
            choice.text += told["text"]
            choice.tokens += told.get("token_ids") or []
            choice.heard += [len(choice.text)] * (len(choice.tokens) - len(choice.heard))
            choice.reason = told["finish_reason"]

    def causes(self, error: RefusalError | BrokenError) -> set[Cause]:
        """What was done during this attempt that may have brought about its failure.

        A connection breaks only by what is done to the instance at its other end.
        """
        instances = [error.instance] if isinstance(error, BrokenError) else self.used
        causes: set[Cause] = {what for instance in instances for what in instance.done_to(self.since)}
        if self.job.deadline is not None and time.monotonic() - self.since >= self.job.deadline:
            causes.add("deadline")
        if self.doubtful:
            causes.add("doubtful ticket")
        return causes

    def ending(self, how: How, reason: str, causes: set[Cause]) -> Ending:
        """As it stands now."""
        tokens = sum(len(choice.tokens) for choice in self.choices.values())
        seconds = time.monotonic() - self.begun
        return Ending(self.job.number, self.job.way, how, reason, causes, seconds, tokens, self.retries)


class Client:
    """Performs jobs.

    Args:
        fleet: Whom to ask.
        ledger: Told of every ending.
    """

    def __init__(self, fleet: Fleet, ledger: Ledger) -> None:
        self._fleet = fleet
        self._ledger = ledger
        self._ways: dict[Way, Callable[[Asking], Awaitable[None]]] = {
            "plain": self._plain,
            "early": self._early,
            "reuse": self._reuse,
            "reserve": self._reserve,
            "resume": self._resume,
            "together": self._together,
            "abandon": self._abandon,
        }

    async def perform(self, expected: Expected) -> None:
        """Do one job, and write down how it ended."""
        job = expected.job
        asking = Asking(job)
        longest = LONGEST_BEHIND if job.body.get("priority", 0) > 0 else LONGEST
        limit = longest if job.leave is None else job.leave
        how, reason, causes = "finished", "", set[Cause]()
        try:
            async with asyncio.timeout(limit):
                await self.attempt(asking)
        except TimeoutError:
            how = "aborted" if job.leave is not None else "failed"
            reason = "the client left" if job.leave is not None else f"hung for {longest} s"
        except (RefusalError, BrokenError) as error:
            how, reason, causes = "failed", str(error), asking.causes(error)
        if how == "finished" and job.way == "abandon":
            how, reason = "aborted", "the ticket was left to expire"
        self._compare(asking, expected.answers, whole=how == "finished")
        self._ledger.endings.append(asking.ending(how, reason, causes))

    def _compare(self, asking: Asking, answers: list[Answer], *, whole: bool) -> None:
        """Everything that has come, of the attempts that were given up too."""
        if whole and not asking.done:
            self._ledger.wrong.append(f"{asking.job.number} ended without a reason: {asking.choices}")
        for attempt in asking.attempts:
            for index, choice in attempt.items():
                if not choice.agrees(answers[index]):
                    way = f"{asking.job.number} ({asking.job.way}, choice {index}, {asking.retries} retries)"
                    self._ledger.wrong.append(f"{way}: {choice}\n  expected {answers[index]}\n  {asking.body}")

    async def attempt(self, asking: Asking) -> None:
        """Try until it is done, or until there is no use in it."""
        way = self._ways[asking.job.way]
        while True:
            try:
                await way(asking)
            except (BrokenError, RefusalError) as error:
                worth = isinstance(error, BrokenError) or error.status in (500, 502)
                if not (asking.job.persistent and worth) or asking.retries == RETRIES:
                    raise
                if asking.done:
                    return
                self._ledger.setbacks.append(asking.ending("failed", str(error), asking.causes(error)))
                asking.retries += 1
                asking.restart()
                way = asking.rng.choice([self._plain, self._early, self._together])
            else:
                return

    async def _plain(self, asking: Asking) -> None:
        ticket = await self._ticket(asking)
        await self._decode(asking, await self._choose(asking, "decode"), ticket)

    async def _together(self, asking: Asking) -> None:
        side = "decode" if asking.rng.random() < 0.7 else "prefill"
        await self._decode(asking, await self._choose(asking, side), None)

    async def _early(self, asking: Asking) -> None:
        """The prefill leg is read to its end beside the decode leg; leaving it early would end the ticket."""
        prefill = await self._choose(asking, "prefill")
        async with AsyncExitStack() as stack:
            events = await stack.enter_async_context(aclosing(self._events(prefill, asking.body | KEEP)))
            first = await anext(events)
            draining = asyncio.create_task(_drain(events))
            stack.push_async_callback(_cancelled, draining)
            decode = await self._choose(asking, "decode")
            asking.tickets.append(first["kv_transfer_params"])
            await self._decode(asking, decode, asking.tickets[-1])
            await asyncio.wait([draining])

    async def _reuse(self, asking: Asking) -> None:
        """The first decode instance is given up soon; the ticket is good unless it was used by then."""
        asking.doubtful = True
        ticket = await self._ticket(asking) | {"release_on_abort": False}
        first = await self._choose(asking, "decode")
        with suppress(TimeoutError, BrokenError, RefusalError):
            async with asyncio.timeout(asking.rng.uniform(0, 0.03)):
                await self._decode(asking, first, ticket)
                return
        if asking.done:
            return
        asking.begin()
        second = await self._choose(asking, "decode", avoid=[first])
        try:
            await self._decode(asking, second, ticket)
        finally:
            await self.release(ticket)

    async def _reserve(self, asking: Asking) -> None:
        decode = await self._choose(asking, "decode")
        tokens = len(asking.job.body["prompt"]) + asking.job.body["max_tokens"]
        try:
            reserved = await self.post(decode, "/tandem/reserve", {"tokens": tokens})
        except RefusalError as error:
            if error.status != 503:
                raise
            reserved = None
        ticket = await self._ticket(asking)
        fate = asking.rng.random()
        if reserved is None or fate < 0.2:  # what is reserved expires
            await self._decode(asking, decode, ticket)
            return
        if fate < 0.4:
            await self.post(decode, "/tandem/release", {"reservation": reserved["reservation"]})
            await self._decode(asking, decode, ticket)
            return
        await self._decode(asking, decode, ticket, reservation=reserved["reservation"])

    async def _resume(self, asking: Asking) -> None:
        """A whole answer is cut, and goes on from there in one of the ways."""
        await asking.rng.choice([self._plain, self._together, self._early])(asking)
        whole = asking.choices[0]
        if len(whole.tokens) < 2:
            return
        asking.begin(whole.cut(asking.rng.randrange(1, len(whole.tokens))))
        await asking.rng.choice([self._plain, self._together, self._early])(asking)

    async def _abandon(self, asking: Asking) -> None:
        await self._ticket(asking)

    async def _choose(self, asking: Asking, side: Any, avoid: list[Instance] | None = None) -> Instance:
        asked = time.monotonic()
        instance = await self._fleet.pick(side, asking.rng, avoid or ())
        asking.doubtful |= time.monotonic() - asked > self._fleet.shape.lease / 2
        asking.used.append(instance)
        return instance

    async def _ticket(self, asking: Asking) -> dict[str, Any]:
        prefill = await self._choose(asking, "prefill")
        told = await self.post(prefill, "/v1/completions", asking.body | KEEP)
        asking.tickets.append(told["kv_transfer_params"])
        return asking.tickets[-1]

    async def _decode(self, asking: Asking, decode: Instance, ticket: dict[str, Any] | None, **fields: Any) -> None:
        body = asking.body | fields | ({} if ticket is None else {"kv_transfer_params": ticket})
        async with aclosing(self._events(decode, body)) as events:
            async for event in events:
                asking.take(event)

    async def release(self, ticket: dict[str, Any]) -> None:
        """Tell a ticket's holder that nobody will show it any more."""
        for prefill in self._fleet.of("prefill"):
            if prefill.kv_port == ticket["remote_port"] and prefill.up:
                with suppress(BrokenError):
                    await self.post(prefill, "/tandem/release", {"ticket": ticket["remote_request_id"]})

    async def post(self, instance: Instance, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A whole answer.

        Raises:
            RefusalError: The instance's.
            BrokenError: It was not there, or went away.
        """
        try:
            async with self._fleet.http.post(instance.url + path, json=body) as answer:
                told = await answer.json()
                if answer.status != 200:
                    raise RefusalError(answer.status, told["error"]["message"])
                return told
        except (aiohttp.ClientError, OSError) as error:
            raise BrokenError(instance, error) from error

    async def _events(self, instance: Instance, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """A streamed answer's events; raises like `post`."""
        try:
            async with self._fleet.http.post(f"{instance.url}/v1/completions", json=body | {"stream": True}) as answer:
                if answer.status != 200:
                    told = await answer.json()
                    raise RefusalError(answer.status, told["error"]["message"])
                async with aclosing(sse.events(answer.content.iter_any())) as events:
                    async for event in events:
                        if "error" in event:
                            raise _refusal_of(event["error"])
                        yield event
        except (aiohttp.ClientError, OSError, ProcessError) as error:
            raise BrokenError(instance, error) from error


def _refusal_of(error: dict[str, Any]) -> RefusalError:
    """An event has no status; the code stands for it."""
    status = 504 if error["code"] == "deadline_exceeded" else 500
    return RefusalError(status, error["message"])


async def _drain(events: AsyncIterator[Any]) -> None:
    with suppress(BrokenError, RefusalError):
        async for _ in events:
            pass


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
