"""Workers come, go and change places while the gateway runs, as an operator or a topology file says."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_worker import FakeWorker, answers, by_leg, chunk, running, stream, whole_with_ticket, words
from gateway_rig import BODY, CHAT, EARLY, Rig, rigged, trial, until

from tandem.cli import run
from tandem.errors import TopologyError, UsageError
from tandem.gateway.config import GatewayConfig
from tandem.gateway.door.keys import Keys, add_key
from tandem.gateway.fleet import fleet, probation, topology_watch
from tandem.gateway.fleet.fleet import ChangeConfig
from tandem.gateway.server import Gateway
from tandem.topology.file import write_topology
from tandem.topology.topology import Instance, Role, Topology

SOON_S = 0.02


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((fleet, "PERIOD_S"), (topology_watch, "PERIOD_S"), (probation, "FIRST_PAUSE_S")):
        monkeypatch.setattr(module, name, SOON_S)
    monkeypatch.setattr(fleet, "QUIET_S", 5 * SOON_S)


@dataclass
class Operator:
    """Who has the key."""

    rig: Rig
    key: str

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {self.key}"}
        async with self.rig.http.request(method, f"{self.rig.url}/admin/{path}", json=body, headers=headers) as answer:
            return answer.status, await answer.json()

    async def states(self) -> dict[str, str]:
        _, topology = await self.ask("GET", "topology")
        return {worker["name"]: worker["state"] for worker in topology["workers"]}

    async def becomes(self, states: dict[str, str]) -> None:
        async def are() -> bool:
            return await self.states() == states

        await until(are)


@asynccontextmanager
async def operated(tmp_path: Path, **options: Any) -> AsyncIterator[Operator]:
    key = add_key(tmp_path / "keys", "ops", None, None)
    change = ChangeConfig(admin_keys=Keys.from_file(tmp_path / "keys"), drain_s=options.pop("drain_s", 60.0))
    async with rigged(health_period_s=SOON_S, change=change, **options) as rig:
        yield Operator(rig, key)


def test_only_who_has_the_key_sees_anything(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rigged() as rig, rig.http.get(f"{rig.url}/admin/topology") as answer:
            assert answer.status == 404
        async with operated(tmp_path) as ops:
            ops.rig.prefill.said |= {"digest": "d1", "model": "m", "version": "v", "engine_id": "e"}
            status, topology = await ops.ask("GET", "topology")
            assert (status, topology["epoch"]) == (200, 1)
            assert [(one["name"], one["url"], one["state"], one["in_flight"]) for one in topology["workers"]] == [
                ("prefill-0", ops.rig.prefill.url, "up", 0),
                ("decode-0", ops.rig.decode.url, "up", 0),
            ]
            for method, path in (("GET", "topology"), ("PUT", "topology"), ("DELETE", "workers/decode-0")):
                status, _ = await Operator(ops.rig, "tdm-wrong").ask(method, path)
                assert status == 401

    trial(scenario)()


def test_a_worker_is_added_tried_and_served_by(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with operated(tmp_path) as ops, running(words) as late:
            late.script = answers(500, {})
            status, topology = await ops.ask("POST", "workers", {"role": "decode", "url": late.url})
            assert (status, topology["epoch"]) == (200, 2)
            await until(lambda: tried(late, 3))
            assert await ops.states() == {"prefill-0": "up", "decode-0": "up", "decode-1": "starting"}
            remark = (await ops.ask("GET", "topology"))[1]["workers"][2].get("remark", "")
            assert "with prefill-0 and decode-1: decode-1 answered with status 500" in remark
            before = len(ops.rig.decode.bodies)
            for _ in range(4):
                async with ops.rig.post(BODY) as answer:
                    assert (answer.status, answer.headers["X-Tandem-Decode"]) == (200, "decode-0")
            assert len(ops.rig.decode.bodies) == before + 4
            late.script = words
            await ops.becomes({"prefill-0": "up", "decode-0": "up", "decode-1": "up"})
            served = set()
            for _ in range(4):
                async with ops.rig.post(BODY) as answer:
                    served.add(answer.headers["X-Tandem-Decode"])
            assert served == {"decode-0", "decode-1"}
            status, refusal = await ops.ask("POST", "workers", {"role": "prefill", "url": late.url})
            assert (status, refusal["error"]["code"]) == (409, "worker_exists")

    trial(scenario)()


async def tried(worker: FakeWorker, times: int) -> bool:
    return len(worker.bodies) >= times


def test_whom_nobody_answers_for_is_told_with_the_reason_and_leaves_no_metric(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with operated(tmp_path) as ops:
            await ops.ask("POST", "workers", {"role": "decode", "url": "http://127.0.0.1:9", "name": "lost"})

            async def is_told() -> bool:
                return "answers no health check with status 200; is it started?" in (await ops.ask("GET", "topology"))[
                    1
                ]["workers"][2].get("remark", "")

            await until(is_told)
            for present in (True, False):
                async with ops.rig.http.get(ops.rig.url + "/metrics") as page:
                    assert ('worker="lost"' in await page.text()) is present
                await ops.ask("DELETE", "workers/lost?now")

    trial(scenario)()


def test_a_worker_of_another_model_is_tried_by_itself_and_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with operated(tmp_path, capabilities=EARLY) as ops, running(words, EARLY) as late:
            for worker, digest in ((ops.rig.prefill, "old"), (ops.rig.decode, "old"), (late, "new")):
                worker.said |= {"digest": digest, "engine_id": digest}
                worker.healthy = False
            await ops.becomes({"prefill-0": "down", "decode-0": "down"})
            ops.rig.prefill.healthy = ops.rig.decode.healthy = late.healthy = True
            await ops.becomes({"prefill-0": "up", "decode-0": "up"})
            await ops.ask("POST", "workers", {"role": "decode", "url": late.url, "name": "odd"})
            await ops.becomes({"prefill-0": "up", "decode-0": "up", "odd": "up"})
            assert [body.get("kv_transfer_params") for body in late.bodies] == [None]
            odd = (await ops.ask("GET", "topology"))[1]["workers"][2]
            assert odd["digest"] == "new"
            assert "odd and prefill-0: differ in model" in odd["remark"]
            for _ in range(4):
                async with ops.rig.post(BODY) as answer:
                    assert (answer.status, answer.headers["X-Tandem-Decode"]) == (200, "decode-0")

    trial(scenario)()


def test_a_worker_leaves_when_its_stream_has_ended(tmp_path: Path) -> None:
    async def scenario() -> None:
        go_on = asyncio.Event()

        async def slow(request: Any, body: dict[str, Any]) -> Any:
            response = await stream(request, [chunk("Hel", chat=True)])
            await go_on.wait()
            await response.write(chunk("lo", chat=True, end="stop") + b"data: [DONE]\n\n")
            return response

        async with operated(tmp_path, decode=(slow, words)) as ops:
            async with ops.rig.post(CHAT | {"stream": True}, "/v1/chat/completions") as answer:
                assert answer.headers["X-Tandem-Decode"] == "decode-0"
                await ops.ask("DELETE", "workers/decode-0")
                assert await ops.states() == {"prefill-0": "up", "decode-1": "up", "decode-0": "draining"}
                async with ops.rig.post(BODY) as other:
                    assert other.headers["X-Tandem-Decode"] == "decode-1"
                await asyncio.sleep(10 * SOON_S)
                assert (await ops.states())["decode-0"] == "draining"
                go_on.set()
                assert (await answer.text()).endswith("data: [DONE]\n\n")
            await ops.becomes({"prefill-0": "up", "decode-1": "up"})
            assert ops.rig.gateway.pool.workers == ops.rig.gateway.pool.workers[:2]
            status, refusal = await ops.ask("DELETE", "workers/decode-0")
            assert (status, refusal["error"]["code"]) == (404, "unknown_worker")

    trial(scenario)()


@pytest.mark.parametrize("path", ["workers/decode-0?now", "workers/decode-0"])
def test_what_a_removed_worker_has_not_ended_goes_on_elsewhere(path: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async def hangs(_: Any, __: dict[str, Any]) -> Any:
            await asyncio.Event().wait()

        async with operated(tmp_path, decode=(hangs, words), drain_s=10 * SOON_S) as ops:
            asking = asyncio.create_task(asked(ops.rig))
            await asyncio.wait_for(ops.rig.decode.arrived.wait(), 5)
            await ops.ask("DELETE", path)
            assert "rld!" in await asking
            await ops.becomes({"prefill-0": "up", "decode-1": "up"})

    trial(scenario)()


async def asked(rig: Rig) -> str:
    async with rig.post(BODY) as answer:
        assert answer.status == 200
        return await answer.text()


def test_a_drained_worker_gets_nothing_until_it_is_taken_back_and_has_handed_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with operated(tmp_path, prefill=(whole_with_ticket, whole_with_ticket)) as ops:
            first, second = ops.rig.prefills
            await ops.ask("POST", "workers/prefill-0/drain")
            await ops.becomes({"prefill-0": "drained", "prefill-1": "up", "decode-0": "up"})
            for _ in range(3):
                await asked(ops.rig)
            assert (len(first.bodies), len(second.bodies)) == (0, 3)
            first.healthy = False
            await ops.ask("POST", "workers/prefill-0/undrain")
            assert (await ops.states())["prefill-0"] == "starting"
            first.healthy = True
            await ops.becomes({"prefill-0": "up", "prefill-1": "up", "decode-0": "up"})
            assert [body["prompt"] for body in first.bodies] == ["tandem"]
            status, _ = await ops.ask("POST", "workers/decode-0/drain")
            assert status == 200
            async with ops.rig.http.get(f"{ops.rig.url}/health") as answer:
                assert (answer.status, (await answer.json())["missing"]) == (200, ["decode"])

    trial(scenario)()


def test_the_whole_list_is_compared_and_swapped(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with operated(tmp_path) as ops, running(words) as late:
            keep = [{"role": "prefill", "name": "prefill-0", "url": ops.rig.prefill.url}]
            wanted = {"epoch": 1, "workers": [*keep, {"role": "decode", "url": late.url}]}
            status, topology = await ops.ask("PUT", "topology", wanted)
            assert (status, topology["epoch"]) == (200, 2)
            await ops.becomes({"prefill-0": "up", "decode-0": "up"})
            assert ops.rig.gateway.pool.workers[-1].url == late.url
            status, refusal = await ops.ask("PUT", "topology", wanted)
            assert (status, refusal["error"]["code"]) == (409, "stale_epoch")
            for wrong in ({}, {"epoch": 2, "workers": [{"role": "decoder", "url": "x"}]}, {"epoch": 2, "who": 1}):
                status, refusal = await ops.ask("PUT", "topology", wrong)
                assert status == 400, refusal

    trial(scenario)()


def test_a_restart_between_two_health_checks_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with operated(tmp_path, capabilities=EARLY) as ops:
            ops.rig.prefill.said |= {"engine_id": "first"}
            ops.rig.prefill.healthy = False
            await ops.becomes({"prefill-0": "down", "decode-0": "up"})
            ops.rig.prefill.healthy = True
            await ops.becomes({"prefill-0": "up", "decode-0": "up"})
            ops.rig.prefill.said |= {"engine_id": "second", "role": "decode"}

            async def noticed() -> bool:
                return (await ops.ask("GET", "topology"))[1]["workers"][0].get("engine_id") == "second"

            await until(noticed)
            assert (await ops.states())["prefill-0"] == "up"

    trial(scenario)()
    assert any("its own role is decode" in record.getMessage() for record in caplog.records)


def topology(epoch: int, workers: dict[str, FakeWorker]) -> Topology:
    instances = tuple(
        Instance(name=name, role=Role(name.split("-")[0]), host="127.0.0.1", port=int(worker.url.rpartition(":")[2]))
        for name, worker in workers.items()
    )
    return Topology(model="m", instances=instances, epoch=epoch)


def test_a_topology_file_is_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "topology.yaml"

    async def scenario() -> None:
        async with (
            running(whole_with_ticket) as prefill,
            running(by_leg(whole_with_ticket, words, decode=words)) as one,
            running(words) as two,
            operated(tmp_path) as ops,
        ):
            write_topology(topology(3, {"prefill-a": prefill, "decode-a": one}), file)
            change = ChangeConfig(admin_keys=Keys.from_file(tmp_path / "keys"), topology=file)
            gateway = Gateway(GatewayConfig(port=0, grace_s=0.1, health_period_s=SOON_S, change=change))
            await gateway.start()
            ops.rig.gateway = gateway
            try:
                assert await ops.states() == {"prefill-a": "up", "decode-a": "up"}
                write_topology(topology(4, {"prefill-a": prefill, "decode-a": one, "decode-b": two}), file)
                await ops.becomes({"prefill-a": "up", "decode-a": "up", "decode-b": "up"})
                file.write_text("instances: [")
                await until(lambda: told(caplog, "topology.yaml", "the workers stay as they are"))
                write_topology(topology(4, {"prefill-a": prefill, "decode-b": two}), file)
                await until(lambda: told(caplog, "its epoch is 4, and that of the one in use 4; write a greater one"))
                file.unlink()
                await until(lambda: told(caplog, "no such file"))
                assert len(gateway.pool.workers) == 3
                write_topology(topology(9, {"prefill-a": prefill, "decode-b": two}), file)
                await ops.becomes({"prefill-a": "up", "decode-b": "up"})
                assert (await ops.ask("GET", "topology"))[1]["epoch"] == 9
            finally:
                await gateway.stop()

    caplog.set_level(logging.INFO)
    trial(scenario)()


async def told(caplog: pytest.LogCaptureFixture, *parts: str) -> bool:
    return any(all(part in record.getMessage() for part in parts) for record in caplog.records)


def test_a_file_that_names_no_port_or_comes_beside_urls_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "topology.yaml"
    file.write_text(json.dumps({"model": "m", "instances": [{"name": "a", "role": "both", "host": "h"}]}))
    with pytest.raises(TopologyError, match=r"instances\[0\]\.port: is missing; say where a listens"):
        Gateway(GatewayConfig(change=ChangeConfig(topology=file)))
    with pytest.raises(UsageError, match="leave out --prefill and --decode"):
        GatewayConfig(decode=("http://d",), change=ChangeConfig(topology=file))


def test_an_operator_has_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        async with operated(tmp_path, decode=(words, words)) as ops, running(words) as late:
            secret = tmp_path / "secret"
            secret.write_text(ops.key + "\n")

            async def command(*words: str) -> tuple[int, str, str]:
                code = await asyncio.to_thread(run, ["topology", *words])
                return code, *capsys.readouterr()

            to = ("--gateway", ops.rig.url, "--key-file", str(secret))
            code, told, _ = await command("show", *to)
            assert code == 0
            assert [line.split()[:3] for line in told.splitlines()[1:3]] == [
                ["prefill-0", "prefill", "up"],
                ["decode-0", "decode", "up"],
            ]
            assert told.endswith("epoch 1\n")
            _, told, _ = await command("add", "decode", late.url, "--name", "late", "--json", *to)
            assert [one["name"] for one in json.loads(told)["workers"]][-1] == "late"
            await ops.becomes({"prefill-0": "up", "decode-0": "up", "decode-1": "up", "late": "up"})
            assert (await command("restart", "late", "--command", f"touch {tmp_path}/{{name}}", *to))[0] == 0
            assert (tmp_path / "late").exists()
            assert len(late.bodies) == 2
            assert (await command("drain", "decode-0", *to))[0] == 0
            assert (await command("undrain", "decode-0", *to))[0] == 0
            assert (await command("remove", "decode-0", "--now", *to))[0] == 0
            await ops.becomes({"prefill-0": "up", "decode-1": "up", "late": "up"})
            code, _, error = await command("drain", "nobody", *to)
            assert (code, "nobody: no worker has this name" in error) == (1, True)
            code, _, error = await command("show", "--gateway", ops.rig.url)
            assert (code, "TANDEM_ADMIN_KEY: holds no key" in error) == (2, True)
            code, _, error = await command("show", "--gateway", ops.rig.prefill.url, *to[2:])
            assert (code, "and no gateway's words" in error) == (1, True)
            code, _, error = await command("show", "--gateway", "http://127.0.0.1:1", *to[2:])
            assert (code, "does not answer" in error) == (1, True)
        async with rigged() as rig:
            code, _, error = await command("show", "--gateway", rig.url, *to[2:])
            assert (code, "start the gateway with --admin-key-file" in error) == (1, True)

    trial(scenario)()
