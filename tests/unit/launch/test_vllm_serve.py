"""What `vllm serve` is started with: its command line, its environment, and what is refused before.

A program of that name stands in PATH that writes down how it was started; `tests/integration/test_vllm.py` starts the
real one where it is installed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tandem.cli import run, vllm
from tandem.deploy.command import FIELDS, TO_TANDEM, instance_command
from tandem.deploy.local import require_different_side_channels
from tandem.errors import TopologyError, UsageError
from tandem.launch.connector import Connector, connector_of
from tandem.launch.options import Options
from tandem.launch.part import find_part
from tandem.launch.vllm_part import ranks_of, vllm_part
from tandem.launch.vllm_server import VllmServer
from tandem.topology.topology import Instance, Role, Topology

HOST = "127.0.0.1"

WRITES_DOWN = """#!{python}
import json, os, sys
print(json.dumps({{"arguments": sys.argv[1:], "environment": dict(os.environ)}}))
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH with a `vllm` that tells how it was started."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(WRITES_DOWN.format(python=sys.executable))
    program.chmod(0o755)
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "awq"}}))
    return folder


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    arguments = ["--prefill-server-list", "4,5", "0,1", "--decode-server-list", "6,7", "--api-server"]
    assert run(["ranktable", "gen", *arguments, "--local-ip", HOST, "--save-dir", str(tmp_path)]) == 0
    return tmp_path


def started(path: str, *words: str, **variables: str) -> tuple[str, dict[str, Any]]:
    """What a start says, and how the program was started."""
    command = [sys.executable, "-m", "tandem", *words]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM", "HF_"))}
    done = subprocess.run(command, env={**kept, "PATH": path, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said, told = done.stdout.rsplit("\n", 2)[0], done.stdout.rsplit("\n", 2)[1]
    return said, json.loads(told)


def after(arguments: list[str], flag: str) -> str:
    assert arguments.count(flag) == 1
    return arguments[arguments.index(flag) + 1]


def test_a_part_of_a_rank_table(path: str, model: Path, tables: Path) -> None:
    words = [
        "serve", "--from-rank-table", f"--model={model}", "--tensor-parallel-size=2", "--max-model-len=4096",
        "--max-num-seqs=128", "--max-num-batched-tokens=8192", "--host=0.0.0.0", "--port=8088",
        "--served-model-name", "a", "b", "--quantization", "awq", "--device", "cpu", "--engine", "vllm",
        "--", "--enforce-eager", "--kv-cache-dtype", "fp8",
    ]  # fmt: skip
    tables_in = {
        "GLOBAL_RANK_TABLE_FILE_PATH": str(tables / "global_ranktable_127.0.0.1.json"),
        "RANK_TABLE_FILE_PATH": str(tables / "local_ranktable_127.0.0.1_67.json"),
    }
    said, told = started(path, *words, **tables_in)
    arguments, environment = told["arguments"], told["environment"]
    digest = find_part(Path(tables_in["GLOBAL_RANK_TABLE_FILE_PATH"]), Path(tables_in["RANK_TABLE_FILE_PATH"])).digest
    assert arguments[:6] == ["serve", str(model), "--host", "0.0.0.0", "--port", "8088"]
    names = arguments.index("--served-model-name")
    assert arguments[names + 1 : names + 5] == ["a", "b", f"tandem-seat/decode/6,7@{HOST}/{digest}",
                                                "--tensor-parallel-size"]  # fmt: skip
    assert json.loads(after(arguments, "--kv-transfer-config")) == {
        "kv_connector": "NixlConnector", "kv_role": "kv_consumer", "kv_buffer_device": "cpu",
    }  # fmt: skip
    assert after(arguments, "--tensor-parallel-size") == "2"
    assert [after(arguments, flag) for flag in ("--max-model-len", "--max-num-seqs", "--max-num-batched-tokens")] == [
        "4096", "128", "8192",
    ]  # fmt: skip
    assert after(arguments, "--kv-cache-memory-bytes") == str(2**30)
    assert (after(arguments, "--quantization"), after(arguments, "--dtype")) == ("awq", "auto")
    assert "--no-enable-prefix-caching" in arguments
    assert "--block-size" not in arguments
    assert arguments[-3:] == ["--enforce-eager", "--kv-cache-dtype", "fp8"]
    wanted = {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": HOST, "VLLM_NIXL_SIDE_CHANNEL_PORT": "5602", "HF_HUB_OFFLINE": "1",
        "VLLM_HOST_IP": HOST, "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }  # fmt: skip
    assert {name: environment.get(name) for name in wanted} == wanted
    assert f"decode-0: devices 6,7 of {HOST}" in said
    assert "--kv-transfer-config" in said


@pytest.mark.parametrize(
    ("words", "flag", "value"),
    [
        (["--block-size=128"], "--block-size", "128"),
        (["--kv-cache-gib=0.5"], "--kv-cache-memory-bytes", str(2**29)),
        (["--engine=vllm", "--", "--kv_cache_memory_bytes=7"], "--kv-cache-memory-bytes", None),
        (["--gpu-memory-utilization=0.5"], "--gpu-memory-utilization", "0.5"),
        (["--dtype=half"], "--dtype", "float16"),
        (["--enforce-eager", "--trust-remote-code", "--max-model-len=8"], "--enforce-eager", "--max-model-len"),
        (["--enforce-eager", "--trust-remote-code"], "--trust-remote-code", None),
    ],
)
def test_flags_in_vllms_words_of_today(
    words: list[str],
    flag: str,
    value: str | None,
    model: Path,
    tables: Path,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", path)
    part = find_part(tables / f"global_ranktable_{HOST}.json", tables / f"local_ranktable_{HOST}_01.json")
    options = Options.parse(["--model=m", "--tensor-parallel-size=2", "--engine=vllm", *words])
    command = vllm_part(options, part, model, 4096, "cpu").command()
    assert (flag not in command) if value is None else after(command, flag) == value


@pytest.mark.parametrize(
    ("device", "role", "config", "environment"),
    [
        ("cuda", "prefill", {"kv_connector": "NixlConnector", "kv_role": "kv_producer"},
         {"VLLM_NIXL_SIDE_CHANNEL_HOST": "10.0.0.1", "VLLM_NIXL_SIDE_CHANNEL_PORT": "5603"}),
        ("cpu", "decode", {"kv_connector": "NixlConnector", "kv_role": "kv_consumer", "kv_buffer_device": "cpu"},
         {"VLLM_NIXL_SIDE_CHANNEL_HOST": "10.0.0.1", "VLLM_NIXL_SIDE_CHANNEL_PORT": "5603"}),
        ("npu", "decode",
         {"kv_connector": "MooncakeConnectorV1", "kv_role": "kv_consumer", "kv_port": "36300",
          "engine_id": "10.0.0.1:36300", "kv_connector_extra_config": {
              "prefill": {"dp_size": 1, "tp_size": 4}, "decode": {"dp_size": 1, "tp_size": 2}}},
         {"HCCL_IF_IP": "10.0.0.1"}),
    ],
)  # fmt: skip
def test_connectors(device: Any, role: Any, config: dict[str, Any], environment: dict[str, str]) -> None:
    ranks: Any = {"prefill": 4, "decode": 2}
    found = connector_of(role, device, "10.0.0.1", port=None, position=3, ranks=ranks)
    assert found is not None
    assert (found.config, found.environment) == (config, environment)
    own = connector_of(role, device, "10.0.0.1", port=7777, position=3, ranks=ranks)
    assert own is not None
    assert "7777" in (own.config.get("kv_port"), own.environment.get("VLLM_NIXL_SIDE_CHANNEL_PORT"))
    assert connector_of("both", device, "10.0.0.1", port=None, position=0, ranks=ranks) is None


def test_mooncake_knows_one_size_for_a_role(tmp_path: Path) -> None:
    arguments = ["--prefill-server-list", "0,1", "2", "--decode-server-list", "3", "--api-server"]
    assert run(["ranktable", "gen", *arguments, "--local-ip", "10.0.0.18", "--save-dir", str(tmp_path)]) == 0
    table = find_part(tmp_path / "global_ranktable_10.0.0.18.json", tmp_path / "local_ranktable_10.0.0.18_3.json").table
    assert ranks_of(table.servers(Role.PREFILL), "cuda") == 2
    with pytest.raises(UsageError, match="instances of one role have 1 and 2 devices, and vllm-ascend's"):
        ranks_of(table.servers(Role.PREFILL), "npu")


def vllm_instance(name: str, role: Role, port: int, **arguments: str) -> Instance:
    given = {key.replace("_", "-"): value for key, value in arguments.items()}
    return Instance(name=name, role=role, host="127.0.0.1", port=port, engine="vllm", arguments=given)


def test_an_instance_of_a_topology(path: str, model: Path) -> None:
    decode = vllm_instance("d", Role.DECODE, 2, device="cpu", tensor_parallel_size="2", enforce_eager="", seed="3")
    prefill = vllm_instance("p", Role.PREFILL, 1, device="cpu", kv_port="7000")
    gateway = Instance(name="g", role=Role.GATEWAY, host="127.0.0.1", port=4)
    topology = Topology(model=str(model), served_model_name="m", instances=(decode, gateway, prefill))
    line = (
        f"-m tandem vllm {model} --role decode --served-model-name m --host 127.0.0.1 --port 2 "
        "--position=1 --prefill-ranks=1 --decode-ranks=2 --device=cpu --tensor-parallel-size=2 -- "
        "--enforce-eager --seed=3"
    )
    assert instance_command(topology, decode) == [sys.executable, *line.split()]
    _, told = started(path, *instance_command(topology, decode)[3:])
    assert told["arguments"][-3:] == ["1073741824", "--enforce-eager", "--seed=3"]
    assert told["environment"]["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "5601"
    _, told = started(path, *instance_command(topology, prefill)[3:])
    assert told["environment"]["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "7000"
    assert json.loads(after(told["arguments"], "--kv-transfer-config"))["kv_role"] == "kv_producer"


def test_what_the_user_has_set_stays(path: str, model: Path) -> None:
    _, told = started(path, "vllm", str(model), "--device", "cpu", HF_HUB_OFFLINE="0", VLLM_HOST_IP="10.1.1.1")
    assert (told["environment"]["HF_HUB_OFFLINE"], told["environment"]["VLLM_HOST_IP"]) == ("0", "10.1.1.1")
    assert "--kv-transfer-config" not in told["arguments"]


def server(model: Path, **changes: Any) -> VllmServer:
    given = {"host": "h", "own_host": "h", "port": 1, "names": ("m",), "ranks": 1, "device": "cpu", "connector": None}
    return VllmServer(model=model, **(given | changes))


@pytest.mark.parametrize(
    "flag",
    [
        "--port", "--port=9", "--kv_transfer_config={}", "-tp", "--por", "--serve", "--tensor-par",
        "--kv-transfer-config.kv_role=kv_both", "--config=x.yaml",
    ],
)  # fmt: skip
def test_what_is_set_here_may_not_be_set_again(flag: str, model: Path) -> None:
    with pytest.raises(UsageError, match=r"^--?[a-z_.-]+: tandem sets this for the instance; leave it out"):
        server(model, flags=("--seed", "1", flag))


def test_other_flags_are_handed_on(model: Path) -> None:
    flags = ("--seed", "1", "--served", "-O3", "--max-num-seqs=3", "--enable-auto-tool-choice")
    assert server(model, flags=tuple(flag for flag in flags if flag != "--served")).flags[0] == "--seed"
    with pytest.raises(UsageError, match=r"^--served: "):
        server(model, flags=flags)


NIXL = Connector(port=5600, config={})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"port": 0}, "--port 0: is no port; choose one from 1 to 65535"),
        ({"port": 99999}, "--port 99999: is no port; choose one from 1 to 65535"),
        ({"ranks": 0}, "--tensor-parallel-size 0: is no number of devices; give 1 or more"),
        ({"connector": NIXL, "own_host": "0.0.0.0"}, "0.0.0.0: the other side cannot reach this instance there; name"),
        ({"connector": NIXL, "own_host": ""}, "an empty host: the other side cannot reach this instance there; name"),
    ],
)
def test_values_that_cannot_be(changes: dict[str, Any], said: str, model: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        server(model, **changes)
    assert str(refusal.value).startswith(said)


@pytest.mark.parametrize(
    ("port", "position", "said"),
    [
        (99999, 0, "--kv-port 99999: is no port; choose one from 1 to 65535"),
        (0, 0, "--kv-port 0: is no port"),
        (None, 70000, "--position 70000: is outside 0..59935; give --kv-port"),
        (None, -1, "--position -1: is outside 0..59935; give --kv-port"),
    ],
)
def test_ports_that_cannot_be(port: int | None, position: int, said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        connector_of("prefill", "cuda", "h", port=port, position=position, ranks={"prefill": 1, "decode": 1})
    assert str(refusal.value).startswith(said)


@pytest.mark.parametrize("option", ["--port", "--kv-port"])
def test_a_port_in_use_is_named_before_vllm_starts(
    option: str, model: Path, path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", path)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert run(["vllm", str(model), "--role", "prefill", "--device", "cpu", option, str(port)]) == 2
    assert f"{option} {port}: is in use on 127.0.0.1; stop what listens there, or" in capsys.readouterr().err


def test_a_missing_vllm_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["vllm", str(model), "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith("tandem: vllm: is not in PATH; install vLLM (on Ascend with vllm-ascend)")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engine", "other"], "--engine other: unknown; choose native, vllm"),
        (["--", "--seed", "1"], "--: what follows is for vllm serve; give --engine vllm, or leave it out"),
    ],
)
def test_wrong_engines(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        Options.parse(["--model=m", *words])
    assert str(refusal.value) == said


def test_a_gateway_has_no_engine() -> None:
    with pytest.raises(TopologyError, match="gateway g has engine vllm; remove it, a gateway runs no model"):
        Topology(model="m", instances=(vllm_instance("g", Role.GATEWAY, 1), vllm_instance("b", Role.BOTH, 2)))


def test_a_switch_may_be_written_as_true() -> None:
    one = Instance(name="v", role=Role.BOTH, host="h", port=1, engine="vllm", arguments={"enforce-eager": True})
    assert one.arguments == {"enforce-eager": ""}


def test_side_channels_that_clash_are_named() -> None:
    one, other = (vllm_instance(name, Role.BOTH, port, kv_port="7000") for name, port in (("a", 1), ("b", 2)))
    with pytest.raises(UsageError, match="b's kv-port 7000 is a's kv-port, too; give it another"):
        require_different_side_channels([one, other])
    with pytest.raises(UsageError, match="a's kv-port 7000 is c's port, too; give it another"):
        require_different_side_channels([one, vllm_instance("c", Role.BOTH, 7000)])
    require_different_side_channels([one, vllm_instance("d", Role.BOTH, 3), vllm_instance("e", Role.BOTH, 4)])


def test_topologies_know_every_option_of_the_command() -> None:
    options = {name.replace("_", "-") for name in vars(vllm.Options())}
    assert options == {*TO_TANDEM, *FIELDS}


def test_engines_are_not_mixed() -> None:
    native = Instance(name="n", role=Role.PREFILL, host="h", port=1)
    with pytest.raises(TopologyError, match="n has engine native and v has vllm, and neither can take over"):
        Topology(model="m", instances=(native, vllm_instance("v", Role.DECODE, 2)))
