"""A rolling restart, step by step, in front of a gateway that is a list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tandem.deploy import rolling as module
from tandem.deploy.restart_command import RestartCommand
from tandem.deploy.rolling import RollingRestart
from tandem.errors import ProcessError, UsageError
from tandem.protocol.admin import TopologyState, WorkerState


def worker(name: str, **more: Any) -> WorkerState:
    role = "prefill" if name.startswith("prefill") else "decode"
    given = {"name": name, "role": role, "url": f"http://{name}", "state": "up", "in_flight": 0, "breaker": "closed"}
    return WorkerState(**(given | more))


class Gateway:
    """Its workers drain, and come back, one look after they were asked to."""

    def __init__(self, *workers: WorkerState, drains: bool = True, comes_back: bool = True) -> None:
        self.workers = {one.name: one for one in workers}
        self.drains = drains
        self.comes_back = comes_back
        self.steps: list[str] = []

    def topology(self) -> TopologyState:
        state = TopologyState(epoch=1, workers=tuple(self.workers.values()))
        for one in state.workers:
            if one.state == "draining" and self.drains:
                self.becomes(one.name, state="drained", in_flight=0)
            if one.state == "starting" and self.comes_back:
                self.becomes(one.name, state="up")
        return state

    def becomes(self, name: str, **changes: Any) -> None:
        self.workers[name] = msgspec.structs.replace(self.workers[name], **changes)

    def drain(self, name: str) -> None:
        self.steps.append(f"drain {name}")
        self.becomes(name, state="draining", in_flight=2)

    def undrain(self, name: str) -> None:
        self.steps.append(f"undrain {name}")
        self.becomes(name, state="starting")

    def restart(self, one: WorkerState) -> None:
        self.steps.append(f"restart {one.url} {one.state}")

    def rolling(self, said: list[str], **more: Any) -> RollingRestart:
        return RollingRestart(admin=self, restart=self.restart, say=said.append, pause=lambda _: None, **more)


def test_one_after_the_other() -> None:
    gateway, said = Gateway(worker("prefill-0"), worker("decode-0"), worker("gone", leaving=True)), list[str]()
    gateway.rolling(said).run()
    steps = [
        (f"drain {name}", f"restart http://{name} drained", f"undrain {name}") for name in ("prefill-0", "decode-0")
    ]
    assert gateway.steps == [step for three in steps for step in three]
    assert said[-1] == "decode-0 serves again"
    gateway.steps.clear()
    gateway.rolling(said).run(["decode-0"])
    assert gateway.steps == list(steps[1])


@pytest.mark.parametrize("after", [2, 4, None])
def test_the_process_that_serves_again_is_another_one(after: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway, said = Gateway(worker("decode-0", engine_id="old"), worker("decode-1")), list[str]()
    looks = 0

    def a_while(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == after:
            gateway.becomes("decode-0", engine_id="new")

    rolling = replace(gateway.rolling(said), pause=a_while)
    if after is None:
        monkeypatch.setattr(module, "SAME_SECONDS", 0.05)
        with pytest.raises(ProcessError, match="decode-0: the process is the one of before"):
            rolling.run(["decode-0"])
    else:
        rolling.run(["decode-0"])
        assert said[-1] == "decode-0 serves again"


def test_what_does_not_end_in_time_goes_on_elsewhere() -> None:
    gateway, said = Gateway(worker("decode-0"), worker("decode-1"), drains=False), list[str]()
    gateway.rolling(said, drain_s=0.01).run(["decode-1"])
    assert "decode-1 has 2 requests after 0.01 s, which go on elsewhere" in said
    assert gateway.steps[1] == "restart http://decode-1 draining"


@pytest.mark.parametrize("other", [[], [worker("decode-1", state="down")], [worker("decode-1", state="starting")]])
def test_somebody_has_to_serve_meanwhile(other: list[WorkerState]) -> None:
    gateway = Gateway(worker("decode-0"), *other, comes_back=False)
    with pytest.raises(ProcessError, match="decode-0: nobody else is up to serve meanwhile"):
        gateway.rolling([]).run(["decode-0"])
    assert gateway.steps == []


def test_who_does_not_come_back_is_named_and_the_others_are_left_alone() -> None:
    gateway = Gateway(worker("decode-0", remark="no hand-off"), worker("decode-1"), comes_back=False)
    with pytest.raises(ProcessError, match=r"decode-0: is starting 0\.01 s after its restart: no hand-off"):
        gateway.rolling([], start_s=0.01).run()
    assert "drain decode-1" not in gateway.steps


def test_a_command_has_the_place_of_its_instance(tmp_path: Path) -> None:
    RestartCommand(f"touch '{tmp_path}/{{role}} {{name}}'")(worker("decode-0"))
    assert [path.name for path in tmp_path.iterdir()] == ["decode decode-0"]
    with pytest.raises(ProcessError, match="`false` ended with exit code 1; decode-0 stays drained"):
        RestartCommand("false")(worker("decode-0"))
    with pytest.raises(ProcessError, match="`/nowhere` cannot be run"):
        RestartCommand("/nowhere {url}")(worker("decode-0"))
    for text in ("", "'"):
        with pytest.raises(UsageError, match="--command"):
            RestartCommand(text)
