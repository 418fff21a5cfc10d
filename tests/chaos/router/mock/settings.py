"""What can be changed on a running mock instance: `POST /mock/settings` with some of the fields."""

from __future__ import annotations

import msgspec


class Settings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """How an instance works while nothing is wrong with it."""

    prefill_s: float = 0.03
    """What a prefill takes."""
    step_s: float = 0.01
    """What a token takes."""
    lone: bool = False
    """Whether it may compute a prompt itself where a request carries no ticket. A real instance does so and nothing is
    wrong with the answer; but a router that lets it happen has given up on keeping prefill and decode apart."""
    final_ticket: bool = False
    """Whether a decode instance's answer ends with a `kv_transfer_params` of its own, as with vLLM's
    `bidirectional_kv_xfer`."""
