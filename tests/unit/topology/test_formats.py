from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.errors import TopologyError
from tandem.topology.drawing import read_rows
from tandem.topology.formats.convert import convert, lacks
from tandem.topology.formats.format import Format
from tandem.topology.formats.inventory import Inventory, Kind, PlacedDevice, Placement
from tandem.topology.formats.known import FORMATS, format_named, read_any, recognised
from tandem.topology.formats.supplement import Supplement, parse_ports
from tandem.topology.topology import Role


def devices(host: int, *numbers: int, first: int | None = 0, **keys: Any) -> list[dict[str, Any]]:
    ranks = ({} if first is None else {"rank_id": str(first + k)} for k in range(len(numbers)))
    return [
        {"device_id": str(n), "device_ip": f"29.0.{host}.{n}", **rank, **keys}
        for n, rank in zip(numbers, ranks, strict=True)
    ]


def server(host: int, *numbers: int, **fields: Any) -> dict[str, Any]:
    ip = f"10.0.0.{host}"
    return {"server_id": ip, "server_ip": ip, "device": devices(host, *numbers), **fields}


def group(number: int, *servers: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"group_id": str(number), **keys, "server_count": str(len(servers)), "server_list": list(servers)}


HEAD = {"version": "1.0", "status": "completed"}
SCHEDULER = {"server_id": "10.0.0.1", "server_ip": "10.0.0.1"}
GLOBAL = {
    **HEAD,
    "server_group_list": [group(0, SCHEDULER), group(1, server(1, 4, 5)), group(2, server(1, 6, 7), server(2, 0, 1))],
}
LOCAL = {**HEAD, **group(0, server(1, 4, 5))}
HCCL = {
    "version": "1.2",
    "status": "completed",
    "server_count": "2",
    "server_list": [
        {"server_id": "node_0", "host_ip": "10.0.0.1", "device": devices(1, 0, 1, super_device_id="7")},
        {"server_id": "node_1", "host_ip": "10.0.0.2", "device": devices(2, 0, 1, first=2, super_device_id="8")},
    ],
    "super_pod_list": [{"super_pod_id": "0", "server_list": [{"server_id": "node_0"}, {"server_id": "node_1"}]}],
}
MINDIE = {
    **HEAD,
    "server_group_list": [
        group(0, SCHEDULER),
        group(1, {"server_id": "10.0.0.9", "server_ip": "10.0.0.9"}),
        group(
            2,
            server(1, 4, 5, device=[{**one, "device_logical_id": one["rank_id"]} for one in devices(1, 4, 5)]),
            server(2, 0, 1, device=[{**one, "device_logical_id": one["rank_id"]} for one in devices(2, 0, 1)]),
            deploy_server="0",
        ),
    ],
}
VLLM = {
    "version": "1.2",
    "server_count": "2",
    "prefill_device_list": [
        {"server_id": "10.0.0.1", **one, "cluster_id": str(1 + k)}
        for k, one in enumerate(devices(1, 0, 1, 2, 3, first=None))
    ],
    "decode_device_list": [
        {"server_id": "10.0.0.2", **one, "cluster_id": str(5 + k)}
        for k, one in enumerate(devices(2, 0, 1, 2, 3, first=None))
    ],
    "status": "completed",
}
ONE_CLICK = {
    **HEAD,
    "server_count": "2",
    "server_list": [
        {"server_id": "10.0.0.1", "container_ip": "10.0.0.1", "device": devices(1, *range(8))},
        {"server_id": "10.0.0.2", "container_ip": "10.0.0.2", "device": devices(2, *range(8), first=8)},
    ],
}
TOPOLOGY = {
    "model": "m",
    "instances": [
        {"name": "gateway", "role": "gateway", "host": "10.0.0.1", "port": 9000},
        {"name": "prefill-0", "role": "prefill", "host": "10.0.0.1", "port": 8088, "devices": [{"id": 4}, {"id": 5}]},
        {"name": "decode-0", "role": "decode", "host": "10.0.0.1", "port": 8089, "arguments": {"seed": "1"},
         "devices": [{"id": 6, "address": "29.0.1.6"}, {"id": 7, "address": "29.0.1.7"}]},
    ],
}  # fmt: skip
EXAMPLES = {
    "topology": TOPOLOGY, "global": GLOBAL, "local": LOCAL, "hccl": HCCL, "mindie": MINDIE, "vllm-ascend": VLLM,
    "one-click": ONE_CLICK,
}  # fmt: skip


def changed(name: str, change: str = "") -> dict[str, Any]:
    """An example with one statement run on it: `t` the whole, `g` its groups, `s` its servers, `i` its instances."""
    table: dict[str, Any] = json.loads(json.dumps(EXAMPLES[name]))
    names = {"g": "server_group_list", "s": "server_list", "i": "instances", "p": "prefill_device_list"}
    exec(change, {"t": table, **{short: table.get(full) for short, full in names.items()}})
    return table


def turned(data: dict[str, Any], target: str, leave_out: str = "", source: str | None = None, **given: Any) -> str:
    """JSON data in another format; `in.json` in messages."""
    text = json.dumps(data) if "instances" not in data else yaml.safe_dump(data)
    found = format_named(source) if source else recognised(text, "in.json")
    _, result = convert(
        found.read(text, "in.json"),
        "in.json",
        format_named(target),
        leave_out=leave_out.split(),
        supplement=Supplement(**given),
    )
    return result


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_format_is_recognised_and_written_as_it_is_read(name: str) -> None:
    text = yaml.safe_dump(TOPOLOGY) if name == "topology" else json.dumps(EXAMPLES[name])
    assert recognised(text, "in").name == name
    again = turned(EXAMPLES[name], name)
    if name == "topology":
        assert format_named(name).read(again, "a") == format_named(name).read(text, "a")
    else:
        assert json.loads(again) == EXAMPLES[name]


def test_numbers_are_read_and_strings_written() -> None:
    loose = changed("global", "g[1]['server_list'][0]['device'][0].update(device_id=4, rank_id=0)")
    assert json.loads(turned(loose, "global")) == GLOBAL
    loose = changed("vllm-ascend", "t['server_count'] = 2; p[0].update(device_id=0, cluster_id=1)")
    assert json.loads(turned(loose, "vllm-ascend")) == VLLM


def test_a_topology_becomes_the_documents_tables_and_comes_back() -> None:
    tables = json.loads(turned(TOPOLOGY, "global", "model port arguments"))
    prefill, decode = (one["server_list"][0]["device"] for one in tables["server_group_list"][1:])
    assert prefill[0] == {"device_id": "4", "device_ip": "10.0.0.1", "rank_id": "0"}  # no address of its own
    assert decode == devices(1, 6, 7)
    back = turned(tables, "topology", model="m", ports=[8088, 8089], scheduler_port=9000)
    instances = yaml.safe_load(back)["instances"]
    assert [(one["name"], one["port"]) for one in instances] == [
        ("gateway", 9000), ("prefill-0", 8088), ("decode-0", 8089),
    ]  # fmt: skip


def test_vllm_lists_are_cut_into_instances() -> None:
    table = json.loads(turned(VLLM, "global", instance_size=2, scheduler="10.0.0.1"))
    _, prefill, decode = table["server_group_list"]
    assert [one["device"] for one in prefill["server_list"]] == [devices(1, 0, 1), devices(1, 2, 3)]
    assert [one["server_ip"] for one in decode["server_list"]] == ["10.0.0.2"] * 2
    assert json.loads(turned(table, "vllm-ascend", "instances scheduler")) == VLLM


def test_hccl_ranks_count_over_all_servers() -> None:
    table = json.loads(turned(GLOBAL, "hccl", "role instances scheduler"))
    assert table["version"] == "1.0"
    assert [one["server_id"] for one in table["server_list"]] == ["10.0.0.1", "10.0.0.2"]
    assert [one["rank_id"] for each in table["server_list"] for one in each["device"]] == list("012345")
    assert turned(LOCAL, "local") == turned(json.loads(turned(LOCAL, "hccl")), "local")


def test_hccl_servers_stand_in_the_order_of_their_ranks() -> None:
    turned_round = changed("hccl", "s.reverse(); s[0]['device'].reverse()")
    assert json.loads(turned(turned_round, "hccl")) == HCCL


def test_super_pods_reach_mindie_and_vllm_ascend() -> None:
    given: dict[str, Any] = {"scheduler": "10.0.0.1", "controller": "10.0.0.1", "instance_size": 2}
    mindie = json.loads(turned(HCCL, "mindie", **given))
    assert mindie["version"] == "1.2"
    assert mindie["server_group_list"][2]["super_pod_list"] == HCCL["super_pod_list"]
    assert json.loads(turned(mindie, "hccl", "scheduler controller instances")) == HCCL
    vllm = json.loads(turned(HCCL, "vllm-ascend", "server_id", roles=[Role.PREFILL]))
    assert {(one["super_pod_id"], one["super_device_id"]) for one in vllm["prefill_device_list"]} == {
        ("0", "7"), ("0", "8"),
    }  # fmt: skip


def test_mindie_has_groups_of_its_own() -> None:
    table = json.loads(turned(GLOBAL, "mindie", "role", controller="10.0.0.9"))
    assert [one["group_id"] for one in table["server_group_list"]] == ["0", "1", "2"]
    assert len(table["server_group_list"][2]["server_list"]) == 3
    back = turned(table, "global", "controller", roles=[Role.PREFILL, Role.DECODE, Role.DECODE])
    assert json.loads(back) == GLOBAL


def test_what_mindie_says_beyond_the_usual_is_kept() -> None:
    special = changed(
        "mindie", "g[2]['deploy_server'] = '1'; g[2]['server_list'][0]['device'][0]['device_logical_id'] = '6'"
    )
    table = json.loads(turned(special, "global", "controller", roles=[Role.PREFILL, Role.DECODE]))
    assert [one.get("deploy_server") for one in table["server_group_list"]] == [None, "1", "1"]
    assert table["server_group_list"][1]["server_list"][0]["device"][0]["device_logical_id"] == "6"
    assert recognised(json.dumps(table), "t").name == "global"
    assert json.loads(turned(table, "mindie", "role", controller="10.0.0.9")) == special


OWN_WAYS = [
    ("mindie", "g[0]['deploy_server'] = '0'; g[1]['deploy_server'] = '0'"),
    ("mindie", "g[1]['deploy_server'] = 0"),
    ("mindie", "g[2]['deploy_server'] = '2'"),
    ("mindie", "t['version'] = '1.2'"),
    ("hccl", "del t['super_pod_list']"),
    ("hccl", "t['version'] = '1.0'"),
    ("hccl", "t['version'] = '1.0'; del t['super_pod_list']"),
]


@pytest.mark.parametrize(("name", "change"), OWN_WAYS)
def test_what_is_unusual_stays_in_a_file_of_the_same_format(name: str, change: str) -> None:
    table = changed(name, change)
    assert json.loads(turned(table, name)) == table


def test_a_version_goes_where_it_means_the_same() -> None:
    table = changed("hccl", "del t['super_pod_list']")
    given: dict[str, Any] = {"scheduler": "10.0.0.1", "controller": "10.0.0.1", "instance_size": 2}
    mindie = json.loads(turned(table, "mindie", **given))
    assert mindie["version"] == "1.2"
    assert json.loads(turned(mindie, "hccl", "scheduler controller instances")) == table
    assert json.loads(turned(table, "hccl", "version"))["version"] == "1.0"


EMPTY = "g[1] = dict(g[1], server_count='0', server_list=[]);"
PLAIN = "[d.pop('device_logical_id') for s in g[2]['server_list'] for d in s['device']];"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("", "mindie"),
        (EMPTY, "mindie"),
        (EMPTY + PLAIN, "mindie"),  # by deploy_server
        (EMPTY + "del g[2]['deploy_server']", "mindie"),  # by device_logical_id
        (EMPTY + PLAIN + "del g[2]['deploy_server']", "global"),
        (PLAIN + "del g[2]['deploy_server']", "mindie"),  # by the controller without devices
        ("g[1]['server_list'][0]['device'] = []", "global"),
    ],
)
def test_what_makes_a_table_mindies(change: str, name: str) -> None:
    assert recognised(json.dumps(changed("mindie", change)), "in").name == name


def test_a_result_that_breaks_a_rule_of_its_format_is_not_written() -> None:
    with pytest.raises(TopologyError) as raised:
        turned(GLOBAL, "global", "scheduler", scheduler="..")
    assert str(raised.value) == (
        "in.json as a global table: $.server_group_list[0].server_list[0].server_ip: '..' is no address or name of a "
        "host; write it like 10.0.0.18, 2001:db8::7 or node-1"
    )


def test_one_click_and_hccl_differ_in_names() -> None:
    table = json.loads(turned(ONE_CLICK, "hccl"))
    assert "host_ip" not in table["server_list"][0]
    assert json.loads(turned(table, "one-click")) == ONE_CLICK
    special = changed("one-click", "s[0]['container_ip'] = '172.17.0.2'")
    assert json.loads(turned(special, "hccl"))["server_list"][0]["host_ip"] == "172.17.0.2"


@pytest.mark.parametrize("host", ["fe80::1", "2001:db8::18", "node-1.example"])
def test_ipv6_and_names(host: str) -> None:
    table = json.loads(json.dumps(GLOBAL).replace("10.0.0.2", host))
    for name, names in (("hccl", "role instances scheduler"), ("vllm-ascend", "instances scheduler")):
        assert host in turned(table, name, names)
    topology = turned(table, "topology", model="m")
    assert yaml.safe_load(topology)["instances"][-1]["host"] == host


Refusal = tuple[str, str, str, str, dict[str, Any], str]
P, D = Role.PREFILL, Role.DECODE
REFUSALS: list[Refusal] = [
    # from, statement, to, left out, options, message
    ("topology", "", "global", "", {},
     "a global table has no words for port (10.0.0.1), arguments (10.0.0.1 devices 6,7), model (the whole); "
     "leave out what may be lost with --leave-out port arguments model"),
    ("topology", "i[1]['name'] = 'p'", "global", "model port arguments", {},
     "no words for name (10.0.0.1 devices 4,5)"),
    ("topology", "t['epoch'] = 3; t['served_model_name'] = 'x'", "global", "model port arguments", {},
     "no words for served_model_name (the whole), epoch (the whole)"),
    ("topology", "t['instances'] = [dict(i[1], role='both', name='both-0')]", "global", "model port", {},
     "no words for role both (10.0.0.1 devices 4,5); leave out what may be lost with --leave-out role"),
    ("topology", "i[1]['devices'] = []", "global", "model port arguments", {},
     "10.0.0.1 has no devices, which a global table needs; list them in the file"),
    ("topology", "i[1]['devices'] = []", "vllm-ascend", "model port arguments scheduler instances", {},
     "10.0.0.1 has no devices, which a vllm-ascend table needs"),
    ("topology", "t['instances'] = [dict(i[1], role='both', name='both-0', devices=[])]", "local",
     "model port role", {}, "10.0.0.1 has no devices, which a local table needs"),
    ("hccl", "t.update(server_list=[], server_count='0', super_pod_list=[])", "one-click", "", {},
     "$.server_list: holds no server; list at least one, with its devices"),
    ("topology", "", "global", "modle", {}, "--leave-out modle: the file does not say it; what may be left out is"),
    ("global", "", "topology", "", {},
     "does not name the model, which a topology file needs; give its folder with --model"),
    ("global", "g[1]['server_list'][0]['server_id'] = 'n1'", "topology", "", {"model": "m"},
     "a topology file has no words for server_id (10.0.0.1 devices 4,5)"),
    ("global", "g[1]['server_list'][0]['device'][1]['x'] = 1; t['y'] = 2; g[1]['server_list'][0]['z'] = 3", "topology",
     "", {"model": "m"}, "no words for z (10.0.0.1 devices 4,5), x (10.0.0.1 device 5), y (the whole)"),
    ("global", "", "topology", "", {"model": "m", "ports": [1]},
     "--ports: 1 ports for 1 prefill and 2 decode instances"),
    ("global", "", "topology", "", {"model": "m", "ports": [1, 1, 2]},
     "--ports: port 1 is used by prefill and by decode"),
    ("global", "g[0] = dict(g[0], server_count='0', server_list=[])", "topology", "",
     {"model": "m", "scheduler_port": 9000}, "--scheduler-port: there is no scheduler; give its host with --scheduler"),
    ("global", "g[1]['server_count'] = '4'", "hccl", "", {},
     "in.json: $.server_group_list[1].server_count: server_count is"),
    ("global", "", "hccl", "", {},
     "an HCCL table has no words for scheduler (10.0.0.1), role (10.0.0.1 devices 4,5), instances (3 of them); "
     "leave out what may be lost with --leave-out scheduler role instances"),
    ("global", "", "local", "", {},
     "has 3 instances, and not the one, which a local table needs; use --to global --local-tables FOLDER"),
    ("global", "", "mindie", "role", {},
     "has no controller, which a MindIE table needs; give its host with --controller"),
    ("global", "g[0] = dict(g[0], server_count='0', server_list=[])", "mindie", "role", {},
     "has no scheduler, which a MindIE table needs; give its host with --scheduler"),
    ("global", "", "mindie", "", {"controller": "c"}, "a MindIE table has no words for role (10.0.0.1 devices 4,5)"),
    ("global", "", "vllm-ascend", "", {},
     "a vllm-ascend table has no words for scheduler (10.0.0.1), instances (3 of them)"),
    ("global", "g[1]['server_list'][0]['device'][0]['cluster_id'] = '9'", "vllm-ascend", "scheduler instances", {},
     "cluster_id (10.0.0.1 device 4) means something else in a vllm-ascend table; leave it out with --leave-out"),
    ("global", "", "hccl", "", {"roles": [P]},
     "--role: the file says role already; leave the option out, or add --leave-out"),
    ("global", "", "hccl", "", {"instance_size": 1}, "--instance-size: the file says instances already"),
    ("global", "", "hccl", "", {"scheduler": "s"}, "--scheduler: the file says scheduler already"),
    ("topology", "", "topology", "", {"model": "x"}, "--model: the file says model already"),
    ("topology", "", "topology", "", {"ports": [1, 2]}, "--ports: the file says port already"),
    ("mindie", "", "mindie", "", {"controller": "x"}, "--controller: the file says controller already"),
    ("global", "g[0]['x'] = 1; g[1]['x'] = 2", "mindie", "role", {"controller": "c"}, ""),
    ("global", "g[2]['x'] = 1; g[1]['x'] = 2", "mindie", "role", {"controller": "c"},
     "group 2 of the MindIE table: x is 2 and 1, and there is room for one; make both the same, or leave it out"),
    ("global", "g[1] = dict(g[1], server_count='0', server_list=[], x=1)", "mindie", "role", {},
     "$.server_group_list[1].x: x is said of a group without entries; remove it"),
    ("local", "", "global", "", {},
     "does not say which instance is prefill or decode, which a global table needs; give --role"),
    ("local", "s[0]['device'][1]['device_id'] = '4'", "hccl", "", {},
     "device 4 of 10.0.0.1 is also at $.server_list[0].device[0]"),
    ("hccl", "", "global", "super_pod", {},
     "does not say which devices make an instance, which a global table needs; give --inst"),
    ("hccl", "", "global", "super_pod", {"instance_size": 2}, "does not say which instance is prefill or decode"),
    ("hccl", "", "global", "super_pod", {"instance_size": 4, "roles": [P]},
     "--instance-size: 2 devices of 10.0.0.1 make no whole instances of 4; give a size that divides them"),
    ("hccl", "", "global", "super_pod", {"instance_size": 1, "roles": [P, D]},
     "--role: 2 roles for 4 instances; give one for all, or one for each"),
    ("hccl", "", "global", "", {"instance_size": 2, "roles": [P]},
     "a global table has no words for super_pod (10.0.0.1 devices 0,1)"),
    ("hccl", "s[1]['device'][0]['rank_id'] = '5'", "one-click", "", {},
     '$.server_list[1].device[1].rank_id: rank_id is "3"'),
    ("hccl", "s[0]['device'][0]['rank_id'] = '2'; s[1]['device'][0]['rank_id'] = '0'", "one-click", "", {},
     "$.server_list[1].device: server node_1 has ranks between which another server's lie"),
    ("hccl", "s[1]['server_id'] = 'node_0'", "one-click", "", {},
     "$.server_list[1].server_id: server node_0 is also at $.server_list[0]"),
    ("hccl", "t['server_count'] = '3'", "one-click", "", {},
     '$.server_count: server_count is "3" but server_list holds 2'),
    ("hccl", "t['version'] = '2.0'", "one-click", "", {}, '$.version: version is "2.0"; write "1.0" or "1.2"'),
    ("hccl", "t['status'] = 'initializing'", "one-click", "", {},
     '$.status: status is "initializing"; wait for the table'),
    ("hccl", "t['super_pod_list'][0]['server_list'].append({'server_id': 'x'})", "one-click", "", {},
     "$.super_pod_list[0].server_list[2].server_id: x is not in server_list"),
    ("hccl", "t['super_pod_list'].append({'super_pod_id': '1', 'server_list': [{'server_id': 'node_0'}]})", "one-click",
     "", {}, "node_0 is in two super pods"),
    ("hccl", "s[0]['device'] = []", "one-click", "", {}, "$.server_list[0].device: the server has no devices"),
    ("hccl", "s[1].update(host_ip='10.0.0.1')", "one-click", "super_pod", {},
     "device 0 of 10.0.0.1 is also at $.server_list[0]"),
    ("hccl", "del t['super_pod_list']", "one-click", "", {},
     "a one-click table has no words for version (the whole); leave out what may be lost with --leave-out version"),
    ("hccl", "t['super_pod_list'].append({'super_pod_id': '1', 'server_list': []})", "hccl", "", {},
     "$.super_pod_list[1].server_list: super pod 1 has no server; list it, or remove the pod"),
    ("mindie", "g[0]['super_pod_list'] = [{'super_pod_id': '0', 'server_list': [{'server_id': '10.0.0.1'}]}]", "mindie",
     "", {}, "$.server_group_list[0].super_pod_list: super pods are said of group 0, which has no devices; move them"),
    ("mindie", "g[1]['deploy_server'] = '0'", "hccl", "scheduler instances", {},
     "no words for controller (10.0.0.9), deploy_server (the group of 10.0.0.9)"),
    ("mindie", "t['version'] = '2.0'", "mindie", "", {}, '$.version: version is "2.0"; write "1.0" or "1.2"'),
    ("mindie", "t['status'] = 'initializing'", "mindie", "", {}, '$.status: status is "initializing"; wait for'),
    ("mindie", "g[2]['server_count'] = '3'", "mindie", "", {},
     '$.server_group_list[2].server_count: server_count is "3" but server_list holds 2'),
    ("mindie", "del g[2]['server_list'][1]['device']", "mindie", "", {},
     "$.server_group_list[2].server_list[1].device: the instance has no devices"),
    ("mindie", "g[2]['server_list'][1]['device'][1]['rank_id'] = '5'", "mindie", "", {},
     '$.server_group_list[2].server_list[1].device[1].rank_id: rank_id is "5"; write "1"'),
    ("mindie", "g[2]['server_list'][1]['server_ip'] = '10.0.0.1'; "
     "g[2]['server_list'][1]['device'][1]['device_id'] = '4'", "mindie", "", {},
     "$.server_group_list[2].server_list[1].device[1].device_id: device 4 of 10.0.0.1 is also at "
     "$.server_group_list[2].server_list[0].device[0].device_id"),
    ("one-click", "t['version'] = '2.0'", "one-click", "", {}, '$.version: version is "2.0"; write "1.0"'),
    ("one-click", "t['status'] = 'initializing'", "one-click", "", {}, '$.status: status is "initializing"; wait for'),
    ("mindie", "", "global", "controller", {}, "does not say which instance is prefill or decode"),
    ("mindie", "", "global", "", {"roles": [P, D]}, "a global table has no words for controller (10.0.0.9)"),
    ("mindie", "g[2]['group_id'] = '3'", "global", "", {},
     "holds the groups 0, 1, 3; MindIE has 0 for the coordinator, 1"),
    ("mindie", "g[1]['server_list'] *= 2; g[1]['server_count'] = '2'", "global", "", {},
     "10.0.0.9 is one controller too many"),
    ("mindie", "g[0]['server_list'][0]['device'] = g[2]['server_list'][0]['device']", "global", "", {},
     "the coordinator has devices"),
    ("vllm-ascend", "", "global", "", {}, "does not say which devices make an instance"),
    ("vllm-ascend", "", "global", "", {"instance_size": 3}, "4 devices of 10.0.0.1 make no whole instances of 3"),
    ("vllm-ascend", "p[1]['cluster_id'] = '7'", "global", "", {},
     '$.prefill_device_list[1].cluster_id: cluster_id is "7"; write "2"'),
    ("vllm-ascend", "p[1]['device_id'] = '0'", "global", "", {},
     "$.prefill_device_list[1].device_id: device 0 of 10.0.0.1 is also at"),
    ("vllm-ascend", "t['version'] = '1.0'", "global", "", {}, '$.version: version is "1.0"; write "1.2"'),
    ("vllm-ascend", "t['decode_device_list'] = []", "topology", "", {"instance_size": 4, "model": "m"},
     "as a topology: instances holds 1 prefill, 0 decode and 0 both; add"),
    ("one-click", "del s[0]['container_ip']", "hccl", "", {}, "$.server_list[0].container_ip: is missing; add it"),
    ("one-click", "s[0]['host_ip'] = 'x'", "hccl", "", {},
     "host_ip (10.0.0.1 devices 0,1,2,3,4,5,6,7) means something else"),
    ("one-click", "", "vllm-ascend", "", {},
     "does not say which instance is prefill or decode, which a vllm-ascend table needs"),
    ("one-click", "s[0]['container_ip'] = '1.1.1.1'", "vllm-ascend", "", {"roles": [P]},
     "no words for server_id (1.1.1.1 devices"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "change", "target", "left_out", "given", "message"), REFUSALS)
def test_refusals(source: str, change: str, target: str, left_out: str, given: dict[str, Any], message: str) -> None:
    table = changed(source, change)
    if not message:
        turned(table, target, left_out, source, **given)
        return
    with pytest.raises(TopologyError) as raised:
        turned(table, target, left_out, source, **given)
    assert message in str(raised.value)
    assert "in.json" in str(raised.value) or "the MindIE table" in message or "as a topology" in message
    assert "\n" not in str(raised.value)


WRONG_ADDRESSES = [
    ("global", "g[1]['server_list'][0]['server_ip'] = BAD", "$.server_group_list[1].server_list[0].server_ip"),
    ("global", "g[2]['server_list'][1]['device'][0]['device_ip'] = BAD", "[2].server_list[1].device[0].device_ip"),
    ("local", "s[0]['server_ip'] = BAD", "$.server_list[0].server_ip"),
    ("hccl", "s[1]['host_ip'] = BAD", "$.server_list[1].host_ip"),
    ("hccl", "s[1]['device'][1]['device_ip'] = BAD", "$.server_list[1].device[1].device_ip"),
    ("mindie", "g[1]['server_list'][0]['server_ip'] = BAD", "$.server_group_list[1].server_list[0].server_ip"),
    ("vllm-ascend", "p[2]['device_ip'] = BAD", "$.prefill_device_list[2].device_ip"),
    ("one-click", "s[1]['container_ip'] = BAD", "$.server_list[1].container_ip"),
]


@pytest.mark.parametrize(("source", "change", "path"), WRONG_ADDRESSES)
def test_every_format_checks_addresses(source: str, change: str, path: str) -> None:
    with pytest.raises(TopologyError) as raised:
        turned(changed(source, change.replace("BAD", "'../../x'")), source)
    assert f"{path}: '../../x' is no address or name of a host; write it like" in str(raised.value)


@pytest.mark.parametrize(
    ("source", "target", "left_out", "given"),
    [
        ("hccl", "global", "super_pod super_device_id", {"instance_size": 2, "roles": [P, D]}),
        ("vllm-ascend", "global", "", {"instance_size": 4}),
        ("mindie", "global", "controller", {"scheduler": "../../x", "roles": [P, D]}),
    ],
)
def test_a_free_server_id_makes_no_address(source: str, target: str, left_out: str, given: dict[str, Any]) -> None:
    table = changed(source)
    if source == "hccl":
        table["server_list"][0].update(server_id="../../x")
        del table["server_list"][0]["host_ip"], table["super_pod_list"]
        table["version"] = "1.0"
        turned(table, "hccl")  # HCCL's names are free
        left_out = left_out.replace("super_pod ", "")
    elif source == "vllm-ascend":
        for one in table["prefill_device_list"]:
            one["server_id"] = "../../x"
    else:
        table["server_group_list"][0].update(server_count="0", server_list=[])
    with pytest.raises(TopologyError, match=r"server_ip: '\.\./\.\./x' is no address or name of a host"):
        turned(table, target, left_out, **given)


def test_a_format_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="there is no format yml; choose from topology, global, local, hccl"):
        format_named("yml")
    with pytest.raises(TopologyError, match=r"x: has none of the keys .*--from"):
        recognised("{}", "x")
    with pytest.raises(TopologyError, match="x: is not a mapping"):
        recognised("words", "x")
    (tmp_path / "global_rank_table.json").write_text(json.dumps(GLOBAL))
    with pytest.raises(TopologyError, match=r"did you mean .*global_rank_table\.json"):
        read_any(tmp_path / "global_ranktable.json")


@pytest.mark.parametrize("text", ["", "a", "8088,", "0", "70000", "8088 8089", "²"])
def test_ports_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(TopologyError, match="write it like 8088,8089"):
        parse_ports(text)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("topology", ["gateway", "prefill-0", "decode-0"]),
        ("global", ["gateway", "prefill-0", "decode-0", "decode-1"]),
        ("local", ["instance-0"]),
        ("hccl", ["devices", "devices"]),
        ("mindie", ["controller", "gateway", "instance-0", "instance-1"]),
        ("vllm-ascend", ["devices", "devices"]),
        ("one-click", ["devices", "devices"]),
    ],
)
def test_every_format_is_drawn(tmp_path: Path, name: str, names: list[str]) -> None:
    (tmp_path / "file").write_text(
        yaml.safe_dump(TOPOLOGY) if name == "topology" else json.dumps(EXAMPLES[name]).replace("29.0.", "29.**.")
    )
    assert [row.name for row in read_rows(tmp_path / "file")] == names


# Every value that two formats can both express survives there and back.

HOSTS = ["10.0.0.1", "10.0.0.2", "2001:db8::7", "node-3"]


@st.composite
def inventories(draw: st.DrawFn, own: Format, single: bool) -> Inventory:
    """Anything that a format can say; with `single`, of one instance."""
    says = own.says
    hosts = draw(st.lists(st.sampled_from(HOSTS), min_size=1, max_size=1 if single else 3, unique=True))
    keyed = draw(st.booleans())

    def keys(kind: Kind, name: str, value: Any) -> dict[str, Any]:
        return {name: value} if keyed and kind in says else {}

    names = {host: f"id-{host}" if keyed and Kind.SERVER_ID in says else host for host in hosts}
    pods = {host: draw(st.sampled_from([None, "0", "1"])) if Kind.SUPER_POD in says else None for host in hosts}
    size = draw(st.integers(1, 3))
    cut = Kind.INSTANCES in says or own.name == "local"
    placements: list[Placement] = []
    for k, host in enumerate(hosts):
        count = 2 if not single and says & {Kind.ROLE, Kind.INSTANCES} else 1
        for j in range(count):
            role = None
            if Kind.ROLE in says:
                role = Role.BOTH if single and own.name == "topology" else (P if j == 0 else D)
            numbers = range(j * size, (j + 1) * size)
            device_keys = [
                keys(Kind.DEVICE_KEY, "device_port", draw(st.integers(1, 9) | st.text(max_size=3))) for _ in numbers
            ]
            placements.append(Placement(
                host=host, server_id=names[host], role=role, super_pod=pods[host],
                keys=keys(Kind.SERVER_KEY, "pod_name", f"pod of {host}"),
                group_keys=keys(Kind.GROUP_KEY, "zone", [1]),
                fields={"port": 8000 + len(placements), "name": f"i{k}{j}"} if own.name == "topology" and keyed else {},
                devices=tuple(
                    PlacedDevice(id=n, address=draw(st.sampled_from([f"29.0.{k}.{n}", "2001:db8::9"])), keys=extra)
                    for n, extra in zip(numbers, device_keys, strict=True)
                ),
            ))  # fmt: skip
    placements.sort(key=lambda one: one.role is D)
    if Kind.SCHEDULER in says and not single and (own.name == "mindie" or draw(st.booleans())):
        placements.insert(0, Placement(host="10.0.0.8", server_id="10.0.0.8", role=Role.GATEWAY))
    if own.name == "mindie" and single:
        placements.insert(0, Placement(host="10.0.0.8", server_id="10.0.0.8", role=Role.GATEWAY))
    controller = Placement(host="c", server_id="c", role=Role.GATEWAY) if own.name == "mindie" else None
    usual = "1.2" if any(pods.values()) else "1.0"
    version = draw(st.sampled_from([None, "1.0", "1.2"])) if Kind.VERSION in says else None
    return Inventory(
        placements=tuple(placements), controller=controller, cut=cut, version=None if version == usual else version,
        keys=keys(Kind.TABLE_KEY, "hardware_type", {"a": None}),
        fields={"model": "m"} if own.name == "topology" else {},
    )  # fmt: skip


def there(text: str, own: Format, target: Format, *, single: bool, added: bool = False) -> str:
    """One way, leaving out by name what the target cannot say and giving what it needs."""
    assert recognised(text, "in") is own
    reading = own.read(text, "in")
    left_out = {name for name, kind, _ in reading.inventory.said() if kind not in target.says}
    left_out |= {"scheduler"} if added else set()
    needed = {need for need, _, _ in lacks(reading.inventory.without(left_out))} & target.needs
    given = Supplement(
        instance_size=(len(reading.inventory.placements[0].devices) if single else 1)
        if "instances" in needed
        else None,
        roles=[Role.BOTH if target.name == "topology" else P] if "role" in needed else (),
        scheduler="10.0.0.8" if "scheduler" in needed else None,
        controller="c" if "controller" in needed else None,
        model="m" if "model" in needed else None,
    )
    return convert(reading, "in", target, leave_out=left_out, supplement=given)[1]


def facts(inventory: Inventory, kinds: frozenset[Kind]) -> list[str]:
    """What two formats can both say of a service, in an order that both keep."""
    kept = inventory.without({name for name, kind, _ in inventory.said() if kind not in kinds})
    said: list[Any] = [kept.keys, kept.fields, kept.version, kept.controller and kept.controller.host]
    rows: list[Any] = []
    for one in kept.placements:
        head = [one.role, one.host, one.server_id, one.super_pod, one.keys, one.group_keys, one.fields]
        placed = [[device.id, device.address or one.host, device.keys] for device in one.devices]
        rows += [[*head, placed]] if Kind.INSTANCES in kinds or not placed else [[*head, device] for device in placed]
    return [json.dumps(one, sort_keys=True) for one in said] + sorted(json.dumps(one, sort_keys=True) for one in rows)


@pytest.mark.parametrize("first", FORMATS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_what_both_can_say_survives_there_and_back(first: str, data: st.DataObject) -> None:
    one, single = FORMATS[first], first == "local" or data.draw(st.booleans())
    text = one.write(data.draw(inventories(one, single)))
    reading = one.read(text, "in")
    assert not reading.findings
    for other in FORMATS.values():
        both = one.says & other.says
        half = single and Kind.ROLE in both and "topology" in (first, other.name)  # a prefill instance and nothing else
        if other is not one and not half and (single or other.name != "local"):
            way = there(text, one, other, single=single)
            added = not reading.inventory.of(Role.GATEWAY) and "10.0.0.8" in way
            back = there(way, other, one, single=single, added=added)
            assert facts(one.read(back, "back").inventory, both) == facts(reading.inventory, both), other.name


def varied(data: st.DataObject, table: dict[str, Any]) -> dict[str, Any]:
    """A table with more of what the readers of its format know, or may stumble over."""
    if data.draw(st.booleans()):
        table["version"] = data.draw(st.sampled_from(["1.0", "1.2"]))
    for one in table.get("server_group_list", []):
        if data.draw(st.booleans()):
            one["deploy_server"] = data.draw(st.sampled_from(["0", "1"]))
        if data.draw(st.booleans()):
            members = [{"server_id": server["server_id"]} for server in one["server_list"][:1]]
            one["super_pod_list"] = [{"super_pod_id": "7", "server_list": members}]
    return table


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "topology"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_file_of_the_same_format_says_the_same_or_is_refused(name: str, data: st.DataObject) -> None:
    own = FORMATS[name]
    text = own.write(data.draw(inventories(own, name == "local" or data.draw(st.booleans()))))
    table = varied(data, json.loads(text))
    try:
        reading = own.read(json.dumps(table), "in")
        again = json.loads(convert(reading, "in", own)[1])
    except TopologyError:
        return
    assert again == table
