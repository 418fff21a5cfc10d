"""The formats there are, by name, and which of them a text is in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tandem.errors import TopologyError
from tandem.topology.formats.format import Format, Reading
from tandem.topology.formats.global_table import GLOBAL
from tandem.topology.formats.hccl import HCCL
from tandem.topology.formats.local_table import LOCAL
from tandem.topology.formats.mindie import MINDIE
from tandem.topology.formats.one_click import ONE_CLICK
from tandem.topology.formats.topology_file import TOPOLOGY
from tandem.topology.formats.vllm_ascend import VLLM_ASCEND
from tandem.topology.plain_data import json_object, yaml_mapping
from tandem.topology.text_file import read_text

FORMATS = {one.name: one for one in (TOPOLOGY, GLOBAL, LOCAL, HCCL, MINDIE, VLLM_ASCEND, ONE_CLICK)}


def read_any(path: Path, name: str | None = None) -> Reading:
    """What a file says in the format of a name, or in the one that its contents look like.

    Raises:
        TopologyError: When the file cannot be read, there is no such format, or the text does not have its shape.
    """
    text = read_text(path)
    found = recognised(text, str(path)) if name is None else format_named(name)
    return found.read(text, str(path))


def format_named(name: str) -> Format:
    """The format of a name.

    Raises:
        TopologyError: Listing the names there are.
    """
    if name not in FORMATS:
        raise TopologyError(f"there is no format {name}; choose from {', '.join(FORMATS)}")
    return FORMATS[name]


def recognised(text: str, source: str) -> Format:
    """The format that only its contents speak for.

    Raises:
        TopologyError: When the text is neither JSON nor YAML, or has the keys of no format.
    """
    keys = json_object(text, source) if text.lstrip()[:1] in ("{", "[") else yaml_mapping(text, source)
    match keys:
        case {"instances": _}:
            return TOPOLOGY
        case {"prefill_device_list": _} | {"decode_device_list": _}:
            return VLLM_ASCEND
        case {"server_group_list": groups}:
            return MINDIE if is_mindie(groups) else GLOBAL
        case {"group_id": _, "server_list": _}:
            return LOCAL
        case {"server_list": servers}:
            return ONE_CLICK if any("container_ip" in server for server in objects(servers)) else HCCL
    raise TopologyError(
        f"{source}: has none of the keys by which a format is known (instances, server_group_list, server_list, "
        f"prefill_device_list); check the file, or name its format of {', '.join(FORMATS)} with --from"
    )


def is_mindie(groups: Any) -> bool:
    """Whether a `server_group_list` has MindIE's groups: its group 1, the controller, has no devices.

    Without an entry in group 1 that decides, what only MindIE writes does.
    """
    found = [(group, server) for group in objects(groups) for server in objects(group.get("server_list"))]
    controllers = [server for group, server in found if str(group.get("group_id")) == "1"]
    if controllers:
        return not any("device" in server for server in controllers)
    return any("deploy_server" in group for group in objects(groups)) or any(
        "device_logical_id" in device for _, server in found for device in objects(server.get("device"))
    )


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects in what should be a list of them."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
