"""The KV hand-off's fields in an OpenAI body: vLLM's pull protocol, `kv_transfer_params`.

The gateway asks a prefill instance for one token with `REMOTE_DECODE`; the answer carries a ticket in the same field;
the gateway gives that ticket, untouched, to a decode instance, which pulls the blocks from the prefill instance.

Source: vLLM 0.33, `vllm/distributed/kv_transfer/kv_connector/v1/nixl`. Keys we do not know are kept out of the way, not
refused: the ticket of another engine may carry more than ours.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta


class KVTransferParams(msgspec.Struct, kw_only=True, frozen=True):
    """What a request says about keys and values that another instance holds or will fetch."""

    do_remote_decode: bool = False
    """This instance only prefills; another one will pull the blocks."""
    do_remote_prefill: bool = False
    """Another instance has prefilled; this one pulls the blocks named below."""
    remote_engine_id: str | None = None
    """Identity of the process that holds the blocks; a restarted process has a new one."""
    remote_block_ids: list[list[int]] | None = None
    """Block ids on the holder, one list per KV group; ours has one group."""
    remote_request_id: str | None = None
    """The ticket's id on the holder; beside `do_remote_decode`, ours: what it shall be, so that it can be released by
    who has never got it."""
    remote_host: str | None = None
    """Address of the holder's transfer port."""
    remote_port: int | None = None
    """The holder's transfer port."""
    remote_num_tokens: int | None = None
    """Tokens whose keys and values the blocks hold."""
    remote_blocks_expiry_time: float | None = None
    """When the lease ends, in seconds since the epoch on the holder's clock; none while the prefill goes on."""
    tp_size: int = 1
    """Tensor-parallel size of the holder."""
    transfer_mode: str | None = None
    """`pull`: the decode instance reads; there is no other mode here."""
    release_on_abort: bool = True
    """Ours: whether the decode instance gives the ticket back when its request is aborted before the blocks are there.
    A gateway that means to show the ticket to another decode instance says no, and releases it itself."""
    lease_seconds: float | None = None
    """Ours: how long the lease lasts unless it is renewed, so that the decode instance renews it in time."""


class Resume(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """An answer that another instance began; this one goes on exactly where it broke off."""

    output_token_ids: list[int]
    """The tokens generated so far. With them the seed, the penalties, the stops and all limits go on as they were."""
    sent: Annotated[int, Meta(ge=0)] = 0
    """Characters of the answer that the client has already."""
    choice: Annotated[int, Meta(ge=0)] = 0
    """Which of several choices it is; it decides the random numbers."""


REMOTE_DECODE: Final = KVTransferParams(do_remote_decode=True)
"""What a gateway sends a prefill instance."""
