"""`tandem vllm`: one vLLM server in the foreground, as an instance of a service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

from cyclopts import Parameter

if TYPE_CHECKING:
    from tandem.launch.connector import Connector
    from tandem.launch.vllm_server import VllmServer


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the server runs."""

    role: Literal["prefill", "decode", "both"] = "both"
    """Prefill only, decode only, or both."""
    port: int = 8000
    """HTTP port."""
    host: str = "127.0.0.1"
    """Address it listens on; with 0.0.0.0, name this host's own with --kv-host."""
    served_model_name: Annotated[list[str] | None, Parameter(negative=())] = None
    """Name clients may ask for; repeatable. Default: the folder's name."""
    device: Literal["auto", "cpu", "cuda", "npu"] = "auto"
    """What vLLM was built for; auto looks which devices are here."""
    tensor_parallel_size: int = 1
    """Devices, or on a CPU processes, that share the model."""
    prefill_ranks: int | None = None
    """On Ascend: --tensor-parallel-size of the prefill instances. Default: this one's."""
    decode_ranks: int | None = None
    """On Ascend: --tensor-parallel-size of the decode instances. Default: this one's."""
    kv_host: str | None = None
    """Address at which other instances reach this one. Default: --host."""
    kv_port: int | None = None
    """Side-channel port of the hand-off. Default: 5600 and the position; on Ascend 36000 and 100 for each position."""
    position: int = 0
    """Place among the service's instances, so that no two on a host have the same side-channel port."""

    def server(self, model: str, flags: tuple[str, ...]) -> VllmServer:
        """For a model, with flags of vllm serve's own."""
        from tandem.catalogue.source import model_folder, served_name
        from tandem.launch.vllm_server import VllmServer
        from tandem.topology.visible_devices import accelerator_here

        device = self.device if self.device != "auto" else accelerator_here() or "cpu"
        return VllmServer(
            model=model_folder(model),
            host=self.host,
            own_host=self.kv_host or self.host,
            port=self.port,
            names=tuple(self.served_model_name or (served_name(model),)),
            ranks=self.tensor_parallel_size,
            device=device,
            connector=self._connector(device),
            flags=flags,
        )

    def _connector(self, device: Literal["cpu", "cuda", "npu"]) -> Connector | None:
        from tandem.launch.connector import connector_of

        own = self.tensor_parallel_size
        return connector_of(
            self.role,
            device,
            self.kv_host or self.host,
            port=self.kv_port,
            position=self.position,
            ranks={"prefill": self.prefill_ranks or own, "decode": self.decode_ranks or own},
        )


def vllm(model: str, *flags: str, options: Annotated[Options, Parameter(name="*")] = Options()) -> None:
    """Run one vLLM server in the foreground, set up to hand over keys and values.

    `vllm serve` of the environment that PATH finds takes the place of this process. Its own flags follow a --, as in
    `tandem vllm MODEL --role prefill -- --max-model-len 4096`.

    Args:
        model: Hugging Face model folder; or a name or organisation/model that is in the Hugging Face cache.
        flags: Flags of vllm serve, after a --.
        options: How it runs.
    """
    run_vllm(options.server(model, flags))


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
