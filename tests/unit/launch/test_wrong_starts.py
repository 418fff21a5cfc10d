"""Every wrong thing in a start command or its environment, and what is said about it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tandem.cli import run

IP = "10.0.0.18"
PREFILL = {"RANK_TABLE_FILE_PATH": f"local_ranktable_{IP}_45.json"}
HOST = {"RANK_TABLE_FILE_PATH": f"local_ranktable_{IP}_host.json"}
TP = ["--tensor-parallel-size=2"]
Case = tuple[str, dict[str, str], list[str], str]

CASES: list[Case] = [
    (
        "R88 no global table",
        PREFILL | {"GLOBAL_RANK_TABLE_FILE_PATH": ""},
        TP,
        "GLOBAL_RANK_TABLE_FILE_PATH: is not set; export it with the path of the rank table, or give "
        "--global-rank-table",
    ),
    (
        "R89 no local table",
        {},
        TP,
        "RANK_TABLE_FILE_PATH: is not set; export it with the path of the rank table, or give --rank-table",
    ),
    (
        "R63 the other spelling",
        {"RANK_TABLE_FILE_PATH": f"local_rank_table_{IP}_45.json"},
        TP,
        f"local_rank_table_{IP}_45.json: no such file; did you mean local_ranktable_{IP}_45.json, which exists?",
    ),
    (
        "R90 devices of nobody",
        {"RANK_TABLE_FILE_PATH": "stranger.json"},
        TP,
        f"stranger.json: $.server_list[0]: {IP} with devices 0, 1 is not in the global table; "
        "generate both tables in one run, then merge again",
    ),
    (
        "R61 not exactly its entry",
        {"RANK_TABLE_FILE_PATH": "changed.json"},
        TP,
        "changed.json: $.server_list[0].device[1].device_ip: is '1.2.3.4' here but "
        f"'{IP}' in the global table's entry $.server_group_list[1].server_list[0]; "
        "make both the same, or generate both tables in one run",
    ),
    (
        "R52 no scheduler in the table",
        PREFILL | {"GLOBAL_RANK_TABLE_FILE_PATH": "headless.json"},
        TP,
        "headless.json: $.server_group_list[0].server_list: no scheduler; "
        "generate one host's table with --api-server, then merge",
    ),
    (
        "R92 no ports",
        HOST | {"NODE_PORTS": ""},
        [],
        "NODE_PORTS: is not set; export the --port of every prefill, then every decode instance, between commas, "
        "in the order of the global rank table",
    ),
    (
        "R92 no port",
        HOST | {"NODE_PORTS": "8088,80x9"},
        [],
        "NODE_PORTS=8088,80x9: position 2 is '80x9', which is no port; write it like 8088,8089",
    ),
    (
        "R93 too few",
        HOST | {"NODE_PORTS": "8088"},
        [],
        "NODE_PORTS=8088: 1 ports for 1 prefill and 1 decode instances; give one port each, prefill first, "
        "in the order of the global table",
    ),
    (
        "R94 too many",
        HOST | {"NODE_PORTS": "8088,8089,8090"},
        [],
        "NODE_PORTS=8088,8089,8090: 3 ports for 1 prefill and 1 decode instances; give one port each, prefill first, "
        "in the order of the global table",
    ),
    (
        "R95 the scheduler's own port",
        HOST | {"NODE_PORTS": "8088,9000"},
        [],
        "NODE_PORTS=8088,9000: position 2 is 9000, the scheduler's own --port; one port never serves two roles",
    ),
    (
        "R102 one port for prefill and decode",
        HOST | {"NODE_PORTS": "8088,8088"},
        [],
        "NODE_PORTS=8088,8088: positions 1 and 2 are both 8088, of a prefill and of a decode instance; "
        "one port never serves two roles",
    ),
    (
        "R102 on different hosts too",
        {
            "RANK_TABLE_FILE_PATH": "two/local_ranktable_10.0.0.18_host.json",
            "GLOBAL_RANK_TABLE_FILE_PATH": "two/global_ranktable_merge.json",
            "NODE_PORTS": "8088,8090,8091,8088",
        },
        [],
        "NODE_PORTS=8088,8090,8091,8088: positions 1 and 4 are both 8088, of a prefill and of a decode instance; "
        "one port never serves two roles",
    ),
    (
        "R101 one port for two instances of a host",
        {
            "RANK_TABLE_FILE_PATH": "two/local_ranktable_10.0.0.18_host.json",
            "GLOBAL_RANK_TABLE_FILE_PATH": "two/global_ranktable_merge.json",
            "NODE_PORTS": "8088,8088,8090,8091",
        },
        [],
        f"NODE_PORTS=8088,8088,8090,8091: positions 1 and 2 are both 8088, of two prefill instances on {IP}; "
        "give each its own",
    ),
    (
        "R93 no port of a machine",
        HOST | {"NODE_PORTS": "8088,65536"},
        [],
        "NODE_PORTS=8088,65536: position 2 is '65536', which is no port; write it like 8088,8089",
    ),
    (
        "R96 neither API",
        HOST | {"USE_OPENAI": "yes"},
        [],
        "USE_OPENAI=yes: must be 1 for OpenAI's API or 0 for vLLM's own; export one of them",
    ),
    ("R99 no model", PREFILL, [*TP, "--model="], "--model: is missing; give the model folder"),
    (
        "R100 not an address of this machine",
        PREFILL,
        [*TP, "--device=cpu", "--host=192.0.2.7"],
        "--host 192.0.2.7: is not an address of this machine; use one that is",
    ),
    (
        "R101 no port",
        PREFILL,
        [*TP, "--device=cpu", "--port=70000"],
        "--port 70000: is out of range; give a number from 0 to 65535",
    ),
    (
        "R103 fewer ranks than devices",
        PREFILL,
        [],
        "--tensor-parallel-size 1: the local rank table has 2 devices (4, 5); give --tensor-parallel-size 2, "
        "or generate the tables anew",
    ),
    (
        "R103 heads that cannot be shared out",
        {"RANK_TABLE_FILE_PATH": "three.json", "GLOBAL_RANK_TABLE_FILE_PATH": "three_global.json"},
        ["--tensor-parallel-size=3", "--device=cpu", "--host=127.0.0.1", "--port=0"],
        "--tensor-parallel-size 3: must divide the model's 2 key/value heads or be their multiple",
    ),
    (
        "R104 longer than the model was made for",
        PREFILL,
        [*TP, "--device=cpu", "--host=127.0.0.1", "--port=0", "--max-model-len=4096", "--max-num-batched-tokens=4096"],
        "--max-model-len 4096: the model was made for 512; lower it",
    ),
    (
        "R105 no sequences",
        PREFILL,
        [*TP, "--device=cpu", "--max-num-seqs=0"],
        "--max-num-seqs 0: is out of range; give a number from 1",
    ),
    (
        "R106 a prompt may not fit",
        PREFILL,
        [*TP, "--max-model-len=400", "--max-num-batched-tokens=300"],
        "--max-num-batched-tokens 300: is under --max-model-len 400, so a whole prompt might not fit into a step; "
        "raise it, or give --enable-chunked-prefill",
    ),
    (
        "R106 with the model's own length",
        PREFILL,
        [*TP, "--max-num-batched-tokens=300"],
        "--max-num-batched-tokens 300: is under --max-model-len 512, so a whole prompt might not fit into a step; "
        "raise it, or give --enable-chunked-prefill",
    ),
    (
        "R106 a sequence may not fit",
        PREFILL,
        [*TP, "--enable-chunked-prefill", "--max-num-batched-tokens=300", "--max-num-seqs=301"],
        "--max-num-batched-tokens 300: is under --max-num-seqs 301, so not every sequence could get a token in a step; "
        "raise it",
    ),
    (
        "R108 not quantised",
        PREFILL,
        [*TP, "--quantization=awq"],
        "--quantization awq: the folder's config.json says none; give the folder that was quantised so, "
        "or leave the flag out",
    ),
    (
        "R108 quantised in a way that is not served",
        PREFILL | {"MODEL": "awq"},
        [*TP, "--quantization=awq"],
        "--quantization awq: such weights cannot be served yet; serve the folder they were made from, "
        "or give --engine vllm",
    ),
    (
        "R104 the scheduler is told of a longer one, too",
        HOST,
        ["--max-model-len=4096"],
        "--max-model-len 4096: the model was made for 512; lower it",
    ),
    (
        "R4 and R5 no accelerator",
        PREFILL,
        TP,
        "prefill needs an NPU or a GPU, and this machine has none that torch can use; to compute on the CPU all the "
        "same, give --device cpu",
    ),
]


@pytest.fixture
def start(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Case], int]:
    """Start a role in this process, from tables in the current folder."""
    monkeypatch.chdir(tmp_path)
    generate("--prefill-server-list", "4,5", "--decode-server-list", "6,7", "--api-server")
    whole = Path(f"global_ranktable_{IP}.json")
    changed(PREFILL["RANK_TABLE_FILE_PATH"], "changed.json", lambda one: one["device"][1].update(device_ip="1.2.3.4"))
    table = json.loads(whole.read_text())
    table["server_group_list"][0] |= {"server_count": "0", "server_list": []}
    Path("headless.json").write_text(json.dumps(table))
    generate("--prefill-server-list", "0,1", "--save-dir", "other")
    Path("other", f"local_ranktable_{IP}_01.json").rename("stranger.json")
    generate("--prefill-server-list", "1,2,3", "--decode-server-list", "0", "--api-server", "--save-dir", "three")
    Path("three", f"local_ranktable_{IP}_123.json").rename("three.json")
    Path("three", whole).rename("three_global.json")
    generate("--prefill-server-list", "0", "1", "--decode-server-list", "2", "--api-server", "--save-dir", "two")
    generate("--decode-server-list", "3", "--save-dir", "two", address="10.0.0.19")
    files = [f"two/global_ranktable_10.0.0.{n}.json" for n in (18, 19)]
    assert run(["ranktable", "merge", "--global-ranktable-list", *files, "--save-dir", "two"]) == 0
    shutil.copytree(tiny_model, "awq")
    config = Path("awq", "config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "awq"}}))
    monkeypatch.delenv("RANK_TABLE_FILE_PATH", raising=False)
    for name in ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")

    def run_role(case: Case) -> int:
        _, variables, flags, _ = case
        known = {"GLOBAL_RANK_TABLE_FILE_PATH": str(whole), "NODE_PORTS": "8088,8089", "USE_OPENAI": "1"}
        for name, value in (known | variables).items():
            monkeypatch.setenv(name, value)
        model = variables.get("MODEL", str(tiny_model))
        return run(["serve", "--from-rank-table", f"--model={model}", "--port=9000", *flags])

    return run_role


def generate(*options: str, address: str = IP) -> None:
    assert run(["ranktable", "gen", *options, "--local-ip", address]) == 0


def changed(source: str, target: str, change: Callable[[dict[str, Any]], None]) -> None:
    table = json.loads(Path(source).read_text())
    change(table["server_list"][0])
    Path(target).write_text(json.dumps(table))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_it_is_refused_in_these_words(
    case: Case, start: Callable[[Case], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(case) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.removeprefix("tandem: ").startswith(case[3]), said
