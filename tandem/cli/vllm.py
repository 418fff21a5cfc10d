"""`tandem vllm`: one vLLM server in the foreground, as an instance of a service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

from cyclopts import Parameter

if TYPE_CHECKING:
    from tandem.launch.vllm_server import VllmServer


def vllm(
    model: str,
    *flags: str,
    role: Literal["prefill", "decode", "both"] = "both",
    port: int = 8000,
    host: str = "127.0.0.1",
    served_model_name: Annotated[list[str] | None, Parameter(negative=())] = None,
    device: Literal["auto", "cpu", "cuda", "npu"] = "auto",
    tensor_parallel_size: int = 1,
    prefill_ranks: int | None = None,
    decode_ranks: int | None = None,
    kv_host: str | None = None,
    kv_port: int | None = None,
    position: int = 0,
) -> None:
    """Run one vLLM server in the foreground, set up to hand over keys and values.

    `vllm serve` of the environment that PATH finds takes the place of this process. Its own flags follow a --, as in
    `tandem vllm MODEL --role prefill -- --max-model-len 4096`.

    Args:
        model: Hugging Face model folder; or a name or organisation/model that is in the Hugging Face cache.
        flags: Flags of vllm serve, after a --.
        role: Prefill only, decode only, or both.
        port: HTTP port.
        host: Address it listens on; with 0.0.0.0, name this host's own with --kv-host.
        served_model_name: Name clients may ask for; repeatable. Default: the folder's name.
        device: What vLLM was built for; auto looks which devices are here.
        tensor_parallel_size: Devices, or on a CPU processes, that share the model.
        prefill_ranks: On Ascend: --tensor-parallel-size of the prefill instances. Default: this one's.
        decode_ranks: On Ascend: --tensor-parallel-size of the decode instances. Default: this one's.
        kv_host: Address at which other instances reach this one. Default: --host.
        kv_port: Side-channel port of the hand-off. Default: 5600 and the position; on Ascend 36000 and a hundred for
            each position.
        position: Place among the service's instances, so that no two on a host have the same side-channel port.
    """
    from tandem.catalogue.source import model_folder, served_name
    from tandem.launch.connector import connector_of
    from tandem.launch.vllm_server import VllmServer
    from tandem.topology.visible_devices import accelerator_here

    chosen = device if device != "auto" else accelerator_here() or "cpu"
    own = kv_host or host
    ranks = tensor_parallel_size
    server = VllmServer(
        model=model_folder(model),
        host=host,
        own_host=own,
        port=port,
        names=tuple(served_model_name or (served_name(model),)),
        ranks=ranks,
        device=chosen,
        connector=connector_of(
            role,
            chosen,
            own,
            port=kv_port,
            position=position,
            ranks={"prefill": prefill_ranks or ranks, "decode": decode_ranks or ranks},
        ),
        flags=flags,
    )
    run_vllm(server)


def run_vllm(server: VllmServer) -> NoReturn:
    """Say what is started, and become it."""
    import shlex

    from tandem.cli.serve import say
    from tandem.deploy.port import require_free

    require_free(server.host, server.port, "--port")
    if server.connector is not None:
        require_free(server.own_host, server.connector.port, "--kv-port")
    say(shlex.join(server.command()))
    server.become()
