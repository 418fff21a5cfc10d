"""Ranks that do not come are named."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
from torch._C._distributed_c10d import TCPStore

from tandem.errors import ProcessError
from tandem.parallel.place import Place
from tandem.parallel.world import listen, wait_for_all


def test_ranks_that_do_not_come_are_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = TCPStore(
        "127.0.0.1",
        port,
        3,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listen("127.0.0.1", port).detach(),
    )
    first, third = (Place(rank=rank, ranks=3, local_rank=0, meeting=f"tcp:127.0.0.1:{port}") for rank in (0, 2))
    store.set("there/2", "")
    with pytest.raises(
        ProcessError, match=r"of 3 ranks, these did not come to tcp:.* in 0\.2 s: 1; start the same line"
    ):
        wait_for_all(store, first, timedelta(seconds=0.2))
    store.set("there/1", "")
    wait_for_all(store, third, timedelta(seconds=9))
