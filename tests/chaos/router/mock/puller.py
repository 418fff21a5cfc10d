"""The decode side of the hand-off: fetch what a ticket promises, and do with a bad one what the dialect does.

                                   vLLM                            native
used, released, expired, foreign,  HTTP 200 and wrong tokens, the  refused, and given back
of another prompt                  read is one-sided
of a process that is gone          the handshake fails: 500        refused
its process cannot be reached      the load fails: 500             refused
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

import aiohttp

from chaos.router.mock.account import Account
from chaos.router.mock.tickets import Verdict
from chaos.router.mock.wish import Dialect, Wish

PULL_S: Final = aiohttp.ClientTimeout(total=None, sock_connect=1.0)
LOAD_S: Final = 3.0
"""After so long a pull counts as failed; the mocks' prefills take far less."""


class LoadError(Exception):
    """The keys and values did not come."""

    def __init__(self, message: str, status: int, code: str | int) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Puller:
    """Fetches for one decode instance."""

    def __init__(self, http: aiohttp.ClientSession, account: Account, dialect: Dialect) -> None:
        self._http = http
        self._account = account
        self._dialect = dialect
        self._given_back: set[asyncio.Task[None]] = set()

    async def take(self, params: dict[str, Any], wish: Wish) -> bytes:
        """Use a ticket up.

        Returns:
            What is wrong with it, in words, which salt the tokens; nothing where all is well.

        Raises:
            LoadError: They did not come, and the client is told.
        """
        try:
            told = await asyncio.wait_for(self._ask(params, "/mock/pull", wish.content), LOAD_S)
            verdict: Verdict = told["verdict"]
        except asyncio.CancelledError:
            if params.get("release_on_abort", True):
                self._give_back(params)
            raise
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._failed(f"not reachable ({error!r})") from None
        if verdict == "good":
            return b""
        if self._dialect == "native":
            if verdict != "other process" and params.get("release_on_abort", True):
                self._give_back(params)
            self._account.refused.append(verdict)
            raise self._failed(f"refused: the KV ticket is {verdict}; prefill the request again")
        if verdict == "other process":
            raise self._failed("engine id mismatch")
        return f"a ticket that is {verdict}".encode()

    async def _ask(self, params: dict[str, Any], path: str, content: str) -> Any:
        asked = {
            "engine_id": params.get("remote_engine_id"),
            "ticket": params.get("remote_request_id"),
            "content": content,
        }
        url = f"http://{params.get('remote_host')}:{params.get('remote_port')}{path}"
        async with self._http.post(url, json=asked, timeout=PULL_S) as response:
            return await response.json()

    def _give_back(self, params: dict[str, Any]) -> None:
        """The request is over before the blocks are there: the prefill side may free them."""

        async def tell() -> None:
            with suppress(aiohttp.ClientError, OSError, TimeoutError):
                await asyncio.wait_for(self._ask(params, "/mock/give_back", ""), LOAD_S)

        task = asyncio.create_task(tell())
        self._given_back.add(task)
        task.add_done_callback(self._given_back.discard)

    def _failed(self, why: str) -> LoadError:
        if self._dialect == "native":
            return LoadError(f"KV hand-off: {why}", 502, "generation_failed")
        return LoadError("Internal server error", 500, 500)
