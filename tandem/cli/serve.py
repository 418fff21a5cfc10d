"""`tandem serve`: a model folder served on this host by prefill, decode and gateway processes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tandem.deploy.local import Progress
    from tandem.deploy.operator import Operator
    from tandem.topology.topology import Topology


def serve(
    model: str,
    /,
    *,
    prefill: int | None = None,
    decode: int | None = None,
    port: int | None = None,
    host: str | None = None,
    served_model_name: str | None = None,
    engine: Literal["native", "vllm"] | None = None,
    run_dir: Path | None = None,
) -> int:
    """Serve a model folder on this host until Ctrl-C.

    SIGUSR1 restarts the instances, one after the other, while the others serve.

    Args:
        model: Model folder in Hugging Face format; or a name or organisation/model that is in the Hugging Face cache;
            or a topology (FILE.yaml), which says all that the other options say.
        prefill: Number of prefill instances; 0 makes each of the others do both. Default: 1.
        decode: Number of decode instances. Default: 1.
        port: Public port; 0 chooses a free one. Default: 9000.
        host: Address to listen on; only the gateway is reachable there. Default: 127.0.0.1.
        served_model_name: Name clients use; the folder's name, or the one given, by default.
        engine: What runs the model: native, the default, or vllm, which must be in PATH.
        run_dir: Folder for topology.yaml and logs/; a new one under ./runs by default.
    """
    from tandem.deploy.service import new_run_directory, running
    from tandem.topology.file import write_topology

    options: dict[str, Any] = {
        "prefill": prefill,
        "decode": decode,
        "port": port,
        "host": host,
        "served_model_name": served_model_name,
        "engine": engine,
    }
    given = {name: value for name, value in options.items() if value is not None}
    is_file = model.endswith((".yaml", ".yml"))
    topology = topology_of_file(Path(model), given) if is_file else new_topology(model, given)
    folder = run_dir or new_run_directory(Path("runs"), "serve")
    write_topology(topology, folder / "topology.yaml")
    say(f"starting {', '.join(instance.name for instance in topology.instances)}; logs in {folder / 'logs'}")
    operator = new_operator(folder)
    try:
        with running(topology, folder / "logs", on_progress=tell, command=operator.command) as deployment:
            greet(topology)
            deployment.watch(lambda: operator.restart(deployment))
    except KeyboardInterrupt:
        say("stopped")
    return 0


def new_operator(folder: Path) -> Operator:
    """Who looks after the instances; the key is left in the run folder."""
    from tandem.deploy.operator import Operator, write_secret
    from tandem.gateway.door.keys import add_key

    hashes = folder / "admin-keys"
    hashes.unlink(missing_ok=True)
    key = add_key(hashes, "operator", None, None)
    write_secret(folder / "admin-key", key)
    return Operator(key=key, hashes=hashes.resolve(), say=say)


def new_topology(model: str, given: dict[str, Any]) -> Topology:
    """A service of a model on this host."""
    from tandem.catalogue.source import model_folder, served_name
    from tandem.deploy.service import local_topology

    source = model_folder(model)
    topology = local_topology(source, **({"served_model_name": served_name(model)} | given))
    require_startable(topology)
    return topology


def require_startable(topology: Topology) -> None:
    """Refuse what cannot run, before any process is started for it."""
    from tandem.catalogue.source import model_folder
    from tandem.launch.vllm_server import vllm_program
    from tandem.model.examination import require_whole

    folder = model_folder(topology.model)
    if any(one.engine == "vllm" for one in topology.instances):
        vllm_program()
    else:
        require_whole(folder)


def topology_of_file(path: Path, given: dict[str, Any]) -> Topology:
    """The service that a topology file describes."""
    from tandem.errors import UsageError
    from tandem.topology.file import read_topology
    from tandem.topology.topology import Role

    topology = read_topology(path)
    if given:
        option = next(iter(given)).replace("_", "-")
        raise UsageError(f"--{option}: {path} says that; change it there, or leave the option out")
    if not topology.of(Role.GATEWAY):
        raise UsageError(f"{path}: has no instance with role gateway, so nobody could reach the service; add one")
    require_startable(topology)
    return topology


def tell(progress: Progress) -> None:
    """One line about who is waited for."""
    if progress.waiting:
        say(f"  {progress.seconds:4.0f} s  waiting for {', '.join(progress.waiting)}")


def greet(topology: Topology, prompt: str = "Once upon a time") -> None:
    """The address, and commands to try it with."""
    import json
    import shlex
    import sys

    from tandem.catalogue.source import served_name
    from tandem.deploy.service import reachable

    url = reachable(topology).url
    body = json.dumps(
        {"model": topology.served_model_name or served_name(topology.model), "prompt": prompt, "max_tokens": 32}
    )
    say(f"ready: {url}/v1  (Ctrl-C stops it)")
    say(f"try:   curl {url}/v1/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}")
    say(f"or:    {Path(sys.executable).with_name('tandem')} chat {url}")


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)
