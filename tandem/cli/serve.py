"""`tandem serve`: a model folder served on this host by prefill, decode and gateway processes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tandem.deploy.local import Progress
    from tandem.topology.topology import Topology


def serve(
    model: str,
    /,
    *,
    prefill: int = 1,
    decode: int = 1,
    port: int = 9000,
    host: str = "127.0.0.1",
    served_model_name: str | None = None,
    run_dir: Path | None = None,
) -> int:
    """Serve a model folder on this host until Ctrl-C.

    Args:
        model: Model folder in Hugging Face format; or a name or organisation/model that is in the Hugging Face cache.
        prefill: Number of prefill instances; 0 makes each of the others do both.
        decode: Number of decode instances.
        port: Public port; 0 chooses a free one.
        host: Address to listen on; only the gateway is reachable there.
        served_model_name: Name clients use; the folder's name, or the one given, by default.
        run_dir: Folder for topology.yaml and logs/; a new one under ./runs by default.
    """
    from tandem.catalogue.source import model_folder, served_name
    from tandem.deploy.service import local_topology, new_run_directory, running
    from tandem.model.examination import require_whole
    from tandem.topology.file import write_topology

    name, source = served_model_name or served_name(model), model_folder(model)
    topology = local_topology(source, prefill=prefill, decode=decode, port=port, host=host, served_model_name=name)
    require_whole(source)
    folder = run_dir or new_run_directory(Path("runs"), "serve")
    write_topology(topology, folder / "topology.yaml")
    say(f"starting {', '.join(instance.name for instance in topology.instances)}; logs in {folder / 'logs'}")
    try:
        with running(topology, folder / "logs", on_progress=tell) as deployment:
            greet(topology)
            deployment.watch()
    except KeyboardInterrupt:
        say("stopped")
    return 0


def tell(progress: Progress) -> None:
    """One line about who is waited for."""
    if progress.waiting:
        say(f"  {progress.seconds:4.0f} s  waiting for {', '.join(progress.waiting)}")


def greet(topology: Topology, prompt: str = "Once upon a time") -> None:
    """The address, and commands to try it with."""
    import json
    import shlex
    import sys

    from tandem.deploy.health import ANY_ADDRESS
    from tandem.topology.topology import Role

    gateway = topology.of(Role.GATEWAY)[0]
    url = gateway.model_copy(update={"host": ANY_ADDRESS.get(gateway.host, gateway.host)}).url
    body = json.dumps({"model": topology.served_model_name, "prompt": prompt, "max_tokens": 32})
    say(f"ready: {url}/v1  (Ctrl-C stops it)")
    say(f"try:   curl {url}/v1/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}")
    say(f"or:    {Path(sys.executable).with_name('tandem')} chat {url}")


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)
