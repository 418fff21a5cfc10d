"""Which role a rank table gives, and what is started for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tandem.cli import run
from tandem.cli.role import instance_config, scheduler_config
from tandem.errors import UsageError
from tandem.launch.instance_rules import require_quantization, tokens_per_step, warning
from tandem.launch.options import Options
from tandem.launch.part import Part, find_part
from tandem.launch.surroundings import Surroundings
from tandem.protocol.identity import Seat
from tandem.topology.topology import Role


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Two hosts: a prefill and a decode instance on the first, with the scheduler; one of each on the second."""
    first = ["--prefill-server-list", "4,5", "--decode-server-list", "6,7", "--api-server", "--local-ip", "10.0.0.18"]
    second = ["--prefill-server-list", "0,1", "--decode-server-list", "2", "--local-ip", "10.0.0.19"]
    for one in (first, second):
        assert run(["ranktable", "gen", *one, "--save-dir", str(tmp_path)]) == 0
    files = [str(tmp_path / f"global_ranktable_10.0.0.{n}.json") for n in (18, 19)]
    assert run(["ranktable", "merge", "--global-ranktable-list", *files, "--save-dir", str(tmp_path)]) == 0
    return tmp_path


def part(tables: Path, suffix: str) -> Part:
    return find_part(tables / "global_ranktable_merge.json", tables / f"local_ranktable_10.0.0.{suffix}.json")


@pytest.mark.parametrize(
    ("suffix", "role", "name", "devices"),
    [
        ("18_45", Role.PREFILL, "prefill-0", (4, 5)),
        ("18_67", Role.DECODE, "decode-0", (6, 7)),
        ("19_01", Role.PREFILL, "prefill-1", (0, 1)),
        ("19_2", Role.DECODE, "decode-1", (2,)),
        ("18_host", Role.GATEWAY, "gateway", ()),
    ],
)
def test_the_group_gives_the_role(tables: Path, suffix: str, role: Role, name: str, devices: tuple[int, ...]) -> None:
    found = part(tables, suffix)
    assert (found.role, found.name, found.server.device_ids) == (role, name, devices)
    assert found.seat == Seat(host=found.host, devices=devices, table=found.digest)
    assert found.neighbours == {"10.0.0.18": 4, "10.0.0.19": 3}[found.host]


def test_the_digest_is_of_what_a_table_says(tables: Path) -> None:
    path = tables / "global_ranktable_merge.json"
    before = part(tables, "18_45").digest
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert part(tables, "18_45").digest == before
    path.write_text(path.read_text().replace('"device_ip": "10.0.0.19"', '"device_ip": "10.0.0.20"', 1))
    assert part(tables, "18_45").digest != before


def surroundings(use_openai: str = "1") -> Surroundings:
    return Surroundings(
        global_table=Path("g"), local_table=Path("l"), node_ports="8088,8090,8089,8091", use_openai=use_openai
    )


def test_the_scheduler_expects_the_table(tables: Path, tiny_model: Path) -> None:
    entry = part(tables, "18_host")
    options = Options.parse([f"--model={tiny_model}", "--port=9000", "--max-model-len=400", "--max-num-seqs=3"])
    config = scheduler_config(options, surroundings(), entry)
    assert (config.host, config.port, config.api, config.ready_timeout_s) == ("10.0.0.18", 9000, "openai", None)
    assert config.prefill == ("http://10.0.0.18:8088", "http://10.0.0.19:8090")
    assert config.decode == ("http://10.0.0.18:8089", "http://10.0.0.19:8091")
    assert [one.place for one in config.expected] == [
        "NODE_PORTS position 1, http://10.0.0.18:8088", "NODE_PORTS position 2, http://10.0.0.19:8090",
        "NODE_PORTS position 3, http://10.0.0.18:8089", "NODE_PORTS position 4, http://10.0.0.19:8091",
    ]  # fmt: skip
    assert [(one.role, one.seat.devices) for one in config.expected] == [
        ("prefill", (4, 5)), ("prefill", (0, 1)), ("decode", (6, 7)), ("decode", (2,)),
    ]  # fmt: skip
    assert {(one.seat.table, one.max_model_len, one.model) for one in config.expected} == {
        (entry.digest, 400, str(tiny_model))
    }
    assert config.length_limit is not None
    assert config.length_limit.max_model_len == 400


def test_vllms_own_api_asks_no_name_and_the_models_own_length(tables: Path, tiny_model: Path) -> None:
    options = Options.parse([f"--model={tiny_model}", "--host=0.0.0.0", "--served-model-name", "x"])
    config = scheduler_config(options, surroundings("0"), part(tables, "18_host"))
    assert (config.host, config.api) == ("0.0.0.0", "vllm")
    assert {(one.max_model_len, one.model) for one in config.expected} == {(512, None)}


def test_the_scheduler_starts_without_torch(tables: Path, tiny_model: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from tandem.cli.role import scheduler_config
from tandem.gateway.server import Gateway
from tandem.launch.options import Options
from tandem.launch.part import find_part
from tandem.launch.surroundings import Surroundings
tables = Path({str(tables)!r})
part = find_part(tables / "global_ranktable_merge.json", tables / "local_ranktable_10.0.0.18_host.json")
around = Surroundings(global_table=tables, local_table=tables, node_ports="1,2,3,4", use_openai="1")
Gateway(scheduler_config(Options.parse(["--model={tiny_model}"]), around, part))
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_an_instance_listens_where_the_table_says_with_vllms_defaults(tables: Path, tiny_model: Path) -> None:
    one, options = part(tables, "19_2"), Options.parse([f"--model={tiny_model}", "--device=cpu", "--dtype=half"])
    config = instance_config(options, one, tiny_model, tokens_per_step(options, 512))
    assert (config.role, config.host, config.kv_host, config.port) == ("decode", "10.0.0.19", "10.0.0.19", 8000)
    assert (config.max_num_seqs, config.max_num_batched_tokens, config.block_size) == (256, 2048, 16)
    assert (config.dtype, config.enable_prefix_caching, config.served_model_names) == (
        "float16", False, (str(tiny_model),)
    )  # fmt: skip
    assert config.seat == one.seat
    assert warning(options, one) is None


def test_every_flag_reaches_what_it_is_for(tables: Path, tiny_model: Path) -> None:
    words = [
        f"--model={tiny_model}", "--device=cpu", "--block-size=8", "--kv-port=77", "--kv-cache-gib=0.5", "--port=88",
        "--gpu-memory-utilization=0.4", "--enable-prefix-caching", "--max-num-seqs=9", "--max-model-len=99",
        "--ready-timeout=5", "--served-model-name", "a", "b", "--host=10.9.9.9",
    ]  # fmt: skip
    options = Options.parse(words)
    config = instance_config(options, part(tables, "19_2"), tiny_model, 512)
    assert (config.block_size, config.kv_port, config.kv_cache_gib, config.port) == (8, 77, 0.5, 88)
    assert (config.gpu_memory_utilization, config.enable_prefix_caching, config.max_num_seqs) == (0.4, True, 9)
    assert (config.max_model_len, config.served_model_names, config.host) == (99, ("a", "b"), "10.9.9.9")
    assert scheduler_config(options, surroundings(), part(tables, "18_host")).ready_timeout_s == 5


def test_a_flag_goes_before_its_variable() -> None:
    environment = {"GLOBAL_RANK_TABLE_FILE_PATH": "g", "RANK_TABLE_FILE_PATH": "l"}
    given = Surroundings.of(environment, Options.parse(["--model=m", "--rank-table=x", "--global-rank-table=y"]))
    assert (given.global_table, given.local_table) == (Path("y"), Path("x"))
    given = Surroundings.of(environment, Options.parse(["--model=m"]))
    assert (given.global_table, given.local_table) == (Path("g"), Path("l"))


def test_chunks_may_be_smaller_than_prompts(tables: Path) -> None:
    options = Options.parse(["--model=m", "--enable-chunked-prefill"])
    assert tokens_per_step(options, 4096) == 512
    assert tokens_per_step(Options.parse(["--model=m"]), 4096) == 4096


def test_fp8_is_served_where_the_folder_is_fp8() -> None:
    require_quantization("none", {})
    require_quantization("fp8", {"quantization_config": {"quant_method": "fp8"}})
    with pytest.raises(UsageError, match="--quantization gptq: such weights cannot be served yet"):
        require_quantization("gptq", {"quantization_config": {"quant_method": "gptq"}})
    with pytest.raises(UsageError, match=r"--quantization fp8: the folder's .* says gptq; give"):
        require_quantization("fp8", {"quantization_config": {"quant_method": "gptq"}})
