"""The engine as a holder of blocks: what the transfer server asks for, with the waiting for a prefill under way."""

from __future__ import annotations

from collections.abc import Callable

from tandem.engine.engine import Engine
from tandem.engine.progress import Progress
from tandem.engine.tickets import PullState
from tandem.kv.messages import Keep, Pull, Release
from tandem.kv.shards import Shards


class OutgoingPull:
    """One pull under way; satisfies the transfer server's `Outgoing`."""

    def __init__(self, engine: Engine, pull: Pull, progress: Progress, wake: Callable[[], None]) -> None:
        self._engine = engine
        self._progress = progress
        self._wake = wake
        self._pull: PullState = engine.open_pull(pull)
        self._closed = False

    @property
    def count(self) -> int:
        """Blocks of the ticket in all."""
        return self._pull.ticket.count

    @property
    def state(self) -> bytes:
        """What travels besides blocks."""
        state = self._pull.ticket.state
        assert state is not None
        return state

    async def next(self) -> list[int]:
        """Blocks computed since the last call, at least one; [] once all were named.

        Raises:
            TransferError: The ticket is not good any more.
        """
        while True:
            rung = self._progress.listen()
            blocks = self._engine.next_blocks(self._pull)
            if blocks is not None:
                return blocks
            await rung.wait()

    def check(self) -> None:
        """Look whether the ticket is still good.

        Raises:
            TransferError: It is not any more.
        """
        # A pull that has been given everything gets no blocks, so nothing but this is asked.
        self._engine.next_blocks(PullState(self._pull.ticket, given=self.count))

    def confirm(self) -> bool:
        """Everything arrived."""
        confirmed = self._engine.confirm_pull(self._pull)
        self._wake()
        return confirmed

    def close(self) -> None:
        """The pull is over."""
        if not self._closed:
            self._closed = True
            self._engine.close_pull(self._pull)
            self._wake()


class EngineHolder:
    """Satisfies the transfer server's `Holder`.

    Args:
        engine: Whose blocks they are.
        shards: Where they lie.
        progress: Rings after every step.
        wake: Called when blocks may have come free.
    """

    def __init__(self, engine: Engine, shards: Shards, progress: Progress, wake: Callable[[], None]) -> None:
        self.shards = shards
        self._engine = engine
        self._progress = progress
        self._wake = wake

    @property
    def engine_id(self) -> str:
        """The process's own."""
        return self._engine.identity.engine_id

    def open(self, pull: Pull) -> OutgoingPull:
        """Admit a pull.

        Raises:
            TransferError: It is refused.
        """
        return OutgoingPull(self._engine, pull, self._progress, self._wake)

    def keep(self, keep: Keep) -> None:
        """Renew leases that are waited for; those that are gone are passed over."""
        self._engine.keep(keep)

    def release(self, release: Release) -> None:
        """Let go of a ticket nobody will pull, unless an earlier process is meant."""
        if release.engine_id == self.engine_id:
            self._engine.release(release.ticket)
            self._wake()
