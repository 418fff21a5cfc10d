"""Who looks after a service on this host: it has an admin key of its own, and restarts the instances with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tandem.deploy.command import instance_command
from tandem.deploy.local import LocalDeployment
from tandem.deploy.rolling import RollingRestart
from tandem.deploy.service import reachable
from tandem.errors import TandemError
from tandem.protocol.admin_client import AdminClient
from tandem.topology.topology import Instance, Role, Topology

OPTION = "admin-key-file"


@dataclass(frozen=True, kw_only=True)
class Operator:
    """Of one deployment."""

    key: str
    hashes: Path
    """The file with its hash, which the gateway reads."""
    say: Callable[[str], None]
    """Gets a line for every step."""

    def command(self, topology: Topology, instance: Instance) -> list[str]:
        """The command line of an instance; the gateway's names the key, where the topology names none."""
        has_none = instance.role is Role.GATEWAY and OPTION not in instance.arguments
        return [*instance_command(topology, instance), *([f"--{OPTION}", str(self.hashes)] if has_none else [])]

    def restart(self, deployment: LocalDeployment) -> None:
        """Restart the instances, one after the other, while the others serve; a step that fails ends it, and is told.

        Whether the service can go on then is for whoever watches the deployment.
        """
        if any(OPTION in gateway.arguments for gateway in deployment.topology.of(Role.GATEWAY)):
            self.say(f"restart: the gateway has a {OPTION} of its own; use `tandem topology restart` with a key of it")
            return
        rolling = RollingRestart(
            admin=AdminClient(reachable(deployment.topology).url, self.key),
            restart=lambda worker: deployment.restart(worker.url),
            say=self.say,
            pause=deployment.pause,
        )
        try:
            rolling.run()
        except TandemError as error:
            self.say(f"restart: {error}")


def write_secret(path: Path, secret: str) -> None:
    """Write a file that nobody else on this host may read, in the place of any other."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(f"{secret}\n")
