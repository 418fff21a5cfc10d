"""Tickets: what a prefill instance promises a decode instance, from the first chunk until the last block has gone.

A ticket is opened with its request, so that blocks can be pulled while the prefill goes on. It is validated at every
pull and once more when everything has arrived. A pull that breaks off leaves it good for another one, here or
elsewhere; the one whose arrival is confirmed uses it up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from tandem.engine.handoff import HandOff
from tandem.engine.sequence import Sequence
from tandem.errors import RequestError, TransferError
from tandem.kv.blocks import BlockPool
from tandem.kv.lease import LeaseBook, Ticket
from tandem.kv.messages import Pull
from tandem.protocol.kv import KVTransferParams

MOST_PULLS: Final = 64
"""Of one ticket at a time: far more than anybody needs, and few of those that an instance can serve."""


@dataclass(frozen=True, kw_only=True)
class EngineIdentity:
    """What a ticket says of the instance that gave it."""

    engine_id: str
    """New at every start: a ticket of an earlier process is refused."""
    digest: str
    """Of everything that must agree before blocks move."""
    host: str
    port: int
    """Of the KV transfer server."""
    ranks: int = 1
    """Tensor-parallel size."""


@dataclass(eq=False)
class PullState:
    """One pull under way: what it has got so far."""

    ticket: Ticket
    given: int
    """Leading blocks of the ticket that were named, or that the puller had already."""
    held: list[int] = field(default_factory=list)
    """Blocks that stay for this pull's sake."""
    confirmed: bool = False


class Tickets:
    """All tickets of one instance.

    Not thread-safe: used under the engine's lock.

    Args:
        pool: Whose blocks they are over.
        identity: What they say of this instance.
        duration: Seconds a finished prefill waits to be pulled.
        clock: Seconds, monotonic.
    """

    def __init__(self, pool: BlockPool, identity: EngineIdentity, duration: float, clock: Callable[[], float]) -> None:
        self._pool = pool
        self._identity = identity
        self._clock = clock
        self._book: LeaseBook[Ticket] = LeaseBook(duration, pool.release, clock)
        self._computing: dict[str, Sequence] = {}
        self._names: dict[Sequence, str] = {}
        self.pulls: set[PullState] = set()

    def __len__(self) -> int:
        """Number of tickets that are good."""
        return len(self._book)

    @property
    def open_ones(self) -> Iterator[Ticket]:
        """All tickets that are good."""
        return iter(self._book)

    @property
    def expired(self) -> int:
        """Tickets nobody used in time."""
        return self._book.expired

    def require_free(self, name: str) -> None:
        """Refuse a name that a ticket has.

        Raises:
            RequestError: 409.
        """
        if self._book.find(name) is not None:
            message = f"kv_transfer_params.remote_request_id: there is a ticket {name} already; choose another name"
            raise RequestError(message, status=409, param="kv_transfer_params")

    def open(self, sequence: Sequence) -> None:
        """Promise what a sequence is going to compute."""
        length, wished = len(sequence.token_ids), sequence.request.ticket_name
        content = sequence.keys.content(sequence.token_ids, length)
        ticket = Ticket(content=content, count=self._pool.blocks_for(length))
        if wished is not None:
            ticket.name = wished
        self._book.add(ticket)
        self._computing[ticket.name] = sequence
        self._names[sequence] = ticket.name

    def announce(self, sequence: Sequence) -> KVTransferParams | None:
        """The ticket of a sequence that begins to be computed."""
        name = self._names.get(sequence)
        return self._params(self._book.find(name), len(sequence.token_ids)) if name else None

    def close(self, sequence: Sequence, state: HandOff) -> KVTransferParams:
        """The sequence is computed: its blocks are the ticket's, whose time begins to run."""
        name = self._names.pop(sequence)
        del self._computing[name]
        ticket = self._book.find(name)
        assert ticket is not None
        ticket.blocks, sequence.blocks = sequence.blocks, []
        ticket.state = state.encode()
        self._book.begin(ticket)
        return self._params(ticket, len(sequence.token_ids))

    def drop(self, sequence: Sequence) -> None:
        """A sequence ends; if it was still being computed, so does its ticket."""
        if name := self._names.pop(sequence, None):
            del self._computing[name]
            self._book.end(name)

    def is_good(self, name: str) -> bool:
        """Whether a ticket can be pulled, now or once it is computed."""
        return self._book.find(name) is not None

    def computing(self, name: str) -> Sequence | None:
        """The sequence of a ticket that is still being computed."""
        return self._computing.get(name)

    def claim(self, pull: Pull) -> PullState:
        """Admit a pull.

        Raises:
            TransferError: It was meant for another process, model or prompt, or the ticket is not good (any more).
        """
        if pull.engine_id != self._identity.engine_id:
            raise TransferError("the KV ticket is of an earlier process; this instance was restarted since")
        if pull.digest != self._identity.digest:
            raise TransferError(
                "model, weights, dtype, block size or version of the two instances differ; start both from the same "
                "folder and version, with the same --dtype and --block-size"
            )
        ticket = self._book.find(pull.ticket)
        if ticket is None:
            raise TransferError("the KV ticket is used up, expired or unknown here; prefill the request again")
        if pull.content != ticket.content or pull.first > ticket.count:
            raise TransferError("the KV ticket belongs to another prompt; send both instances the same request")
        if sum(one.ticket is ticket for one in self.pulls) >= MOST_PULLS:
            raise TransferError(f"the KV ticket is being pulled {MOST_PULLS} times already; pull it once")
        state = PullState(ticket, pull.first)
        self.pulls.add(state)
        return state

    def next_blocks(self, pull: PullState) -> list[int] | None:
        """Blocks computed since the last call; [] once there are no more, None while they are to come.

        Raises:
            TransferError: The ticket is not good any more.
        """
        ticket = pull.ticket
        if self._book.find(ticket.name) is None:
            raise TransferError("the prefill was aborted, or the KV ticket was released, used or expired meanwhile")
        sequence = self._computing.get(ticket.name)
        done = ticket.blocks if sequence is None else sequence.blocks[: sequence.cached // self._pool.block_size]
        fresh = done[pull.given :]
        if fresh:
            self._pool.share(fresh)
            pull.held += fresh
            pull.given += len(fresh)
        return fresh if fresh or ticket.state is not None else None

    def confirm(self, pull: PullState) -> bool:
        """Everything arrived: the ticket is used up; False if it was not good any more."""
        pull.confirmed = self._book.end(pull.ticket.name) is not None
        return pull.confirmed

    def let_go(self, pull: PullState) -> None:
        """A pull is over."""
        self.pulls.discard(pull)
        self._pool.release(pull.held)
        pull.held = []

    def renew(self, names: list[str]) -> None:
        """Requests elsewhere still wait for these."""
        self._book.renew(names)

    def end(self, name: str) -> bool:
        """Nobody will pull this; False if there is no such ticket."""
        return self._book.end(name) is not None

    def expire(self) -> None:
        """End every ticket whose time is over."""
        self._book.expire()

    def _params(self, ticket: Ticket | None, tokens: int) -> KVTransferParams:
        assert ticket is not None
        finished = ticket.state is not None
        return KVTransferParams(
            do_remote_prefill=True,
            remote_engine_id=self._identity.engine_id,
            remote_block_ids=[list(ticket.blocks)],
            remote_request_id=ticket.name,
            remote_host=self._identity.host,
            remote_port=self._identity.port,
            remote_num_tokens=tokens,
            remote_blocks_expiry_time=time.time() + ticket.expires - self._clock() if finished else None,
            tp_size=self._identity.ranks,
            transfer_mode="pull",
            lease_seconds=self._book.duration,
        )
