"""`tandem serve --from-rank-table`: the prefill, decode or scheduler role that a rank table gives this process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, NoReturn

import cyclopts
from cyclopts import Parameter

from tandem.cli.serve import say

if TYPE_CHECKING:
    from pathlib import Path

    from tandem.engine.config import InstanceConfig
    from tandem.gateway.config import GatewayConfig
    from tandem.gateway.server import Gateway
    from tandem.launch.options import Options
    from tandem.launch.part import Part
    from tandem.launch.surroundings import Surroundings


app = cyclopts.App(name="role", help_flags=(), version_flags=(), end_of_options_delimiter="")
"""Without flags of its own: every word belongs to the table of vLLM's flags, `--help` and `--` too."""


@app.default
def role(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Start the role that a rank table gives this process."""
    from tandem.cli.log_lines import log_lines
    from tandem.launch.options import Options
    from tandem.launch.part import find_part
    from tandem.launch.surroundings import Surroundings
    from tandem.topology.topology import Role

    options = Options.parse(arguments)
    surroundings = Surroundings.of(os.environ, options)
    part = find_part(surroundings.global_table, surroundings.local_table)
    level = options.uvicorn_log_level.upper().replace("TRACE", "DEBUG")
    log_lines(level)
    say(f"{part.name}: {part.seat if part.role is not Role.GATEWAY else part.host}, global rank table {part.digest}")
    if part.role is Role.GATEWAY:
        run_scheduler(options, surroundings, part)
    else:
        run_part(options, surroundings, part)


def run_scheduler(options: Options, surroundings: Surroundings, part: Part) -> None:
    """Run the gateway in front of the table's instances; no device is needed, and torch is not imported."""
    from tandem.gateway.run import run_gateway
    from tandem.protocol.lifeline import hold_lifeline

    def announce(started: Gateway) -> None:
        say(f"gateway: {started.url} in front of {', '.join(worker.name for worker in started.pool.workers)}")

    hold_lifeline()
    run_gateway(scheduler_config(options, surroundings, part), announce)


def scheduler_config(options: Options, surroundings: Surroundings, part: Part) -> GatewayConfig:
    """The gateway's configuration: whom the table names, at the ports that NODE_PORTS gives them."""
    from tandem.catalogue.source import model_folder
    from tandem.gateway.config import GatewayConfig
    from tandem.gateway.request.length_limit import LengthLimit
    from tandem.gateway.workers.expected import Expected
    from tandem.launch.instance_rules import longest
    from tandem.launch.node_ports import instances_of, service_topology
    from tandem.launch.part import seat_of
    from tandem.launch.surroundings import NODE_PORTS
    from tandem.text.tokenizer import Tokenizer
    from tandem.topology.topology import Role

    api, folder = surroundings.api, model_folder(options.model)
    topology = service_topology(part, surroundings.node_ports, str(folder), options.port)
    length = longest(options, folder)
    servers = part.table.servers(Role.PREFILL) + part.table.servers(Role.DECODE)
    expected = tuple(
        Expected(
            place=f"{NODE_PORTS} position {position}, {instance.url}",
            role="prefill" if instance.role is Role.PREFILL else "decode",
            seat=seat_of(server, part.digest),
            max_model_len=length,
            model=options.names[0] if api == "openai" else None,
        )
        for position, (instance, server) in enumerate(zip(instances_of(topology), servers, strict=True), 1)
    )
    return GatewayConfig(
        prefill=tuple(one.url for one in topology.of(Role.PREFILL)),
        decode=tuple(one.url for one in topology.of(Role.DECODE)),
        host=options.host or part.host,
        port=options.port,
        expected=expected,
        ready_timeout_s=options.ready_timeout,
        api=api,
        length_limit=LengthLimit(Tokenizer.from_folder(folder), length),
    )


def run_part(options: Options, surroundings: Surroundings, part: Part) -> None:
    """Run a prefill or decode instance on the devices of its local table."""
    import logging

    from tandem.catalogue.source import model_folder
    from tandem.deploy.command import thread_share
    from tandem.errors import ModelFolderError
    from tandem.files import read_json_object
    from tandem.launch.instance_rules import longest, require_quantization, require_ranks, tokens_per_step, warning
    from tandem.launch.surroundings import NODE_PORTS
    from tandem.protocol.lifeline import hold_lifeline
    from tandem.topology.visible_devices import visible_devices

    log = logging.getLogger(__name__)
    if surroundings.node_ports:
        log.debug("%s=%s is the scheduler's to read", NODE_PORTS, surroundings.node_ports)
    if exposed := warning(options, part):
        log.warning("%s", exposed)
    folder = model_folder(options.model)
    require_ranks(options, part)
    config = read_json_object(folder / "config.json", ModelFolderError)
    require_quantization(options.quantization, config, options.engine)
    tokens = tokens_per_step(options, longest(options, folder))
    os.environ |= thread_share(part.neighbours)
    if options.device != "cpu":
        os.environ |= visible_devices(part.server.device_ids, os.environ)

    if options.engine == "vllm":
        become_vllm(options, part, folder, tokens)
    hold_lifeline()

    from tandem.engine.instance import run_instance  # imports torch, which reads the variables above

    run_instance(instance_config(options, part, folder, tokens), say)


def become_vllm(options: Options, part: Part, folder: Path, tokens: int) -> NoReturn:
    """Let `vllm serve` take the place of this process."""
    from tandem.cli.vllm import run_vllm
    from tandem.errors import UsageError
    from tandem.launch.vllm_part import vllm_part
    from tandem.topology.visible_devices import accelerator_here

    device = accelerator_here() if options.device == "auto" else options.device
    if device is None:
        raise UsageError(f"{part.role} needs an accelerator and none is here; give --device cpu to compute on the CPU")
    run_vllm(vllm_part(options, part, folder, tokens, device))


def instance_config(options: Options, part: Part, folder: Path, tokens: int) -> InstanceConfig:
    """The configuration of an instance that computes so many tokens in a step."""
    from tandem.engine.config import InstanceConfig
    from tandem.launch.options import BLOCK_SIZE
    from tandem.parallel.device import choose_accelerator
    from tandem.topology.topology import Role

    return InstanceConfig(
        model=folder,
        role="prefill" if part.role is Role.PREFILL else "decode",
        host=options.host or part.host,
        port=options.port,
        served_model_names=options.names,
        device=choose_accelerator(part.role) if options.device == "auto" else options.device,
        dtype=options.dtype,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=tokens,
        block_size=options.block_size or BLOCK_SIZE,
        tensor_parallel_size=options.tensor_parallel_size,
        kv_cache_gib=options.kv_cache_gib,
        gpu_memory_utilization=options.gpu_memory_utilization,
        enable_prefix_caching=options.enable_prefix_caching,
        kv_host=part.host,
        kv_port=options.kv_port,
        seat=part.seat,
    )
