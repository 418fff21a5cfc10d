from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.errors import TopologyError
from tandem.topology.file import read_topology, write_topology
from tandem.topology.topology import Device, Instance, Role, Topology

P = {"name": "p", "role": "prefill", "host": "h", "port": 1}
D = {"name": "d", "role": "decode", "host": "h", "port": 2}
G = {"name": "g", "role": "gateway", "host": "h", "port": 3}
B = {"name": "b", "role": "both", "host": "h", "port": 4}


def topology(*instances: dict[str, Any], **fields: Any) -> Topology:
    return Topology(**{"model": "m", "instances": list(instances), **fields})


def test_reads_roles_and_urls() -> None:
    one = topology(P, D, {**G, "host": "::1"})
    assert [i.name for i in one.of(Role.DECODE)] == ["d"]
    assert [i.url for i in one.instances] == ["http://h:1", "http://h:2", "http://[::1]:3"]
    assert Instance(name="x", role=Role.BOTH, host="h").url == "http://h"
    assert one.epoch == 1


def test_accepts_only_both() -> None:
    assert topology(B, G).of(Role.BOTH)[0].name == "b"


RULES = [
    ("same name", (P, {**D, "name": "p"}), ("instances[0].name", "instances[1].name", "both p", "its own name")),
    ("same port", (P, {**D, "port": 1}), ("instances[1].port", "h port 1", "its own port")),
    (
        "same device",
        ({**P, "devices": [{"id": 4}]}, {**D, "devices": [{"id": 3}, {"id": 4}]}),
        ("instances[0].devices[0]", "instances[1].devices[1]", "h device 4", "one instance only"),
    ),
    ("two gateways", (P, D, G, {**G, "name": "g2", "port": 9}), ("2 gateways (g, g2)", "keep one")),
    ("gateway with devices", (P, D, {**G, "devices": [{"id": 1}]}), ("gateway g", "remove")),
    ("no decode", (P, G), ("1 prefill, 0 decode", "add at least one")),
    ("nothing", (), ("0 prefill, 0 decode and 0 both", "add at least one")),
    ("mixed", (P, D, B), ("1 both", "only both")),
    ("port range", (P, {**D, "port": 70000}), ("instances[1].port is 70000", "write a number of at most 65535")),
    ("role", (P, {**D, "role": "queen"}), ("instances[1].role is 'queen'", "'gateway'")),
    ("unknown field", (P, {**D, "color": 1}), ("instances[1].color", "remove it")),
    ("missing field", (P, {"name": "d", "role": "decode"}), ("instances[1].host is missing", "add it")),
    ("path as name", (P, {**D, "name": "../d"}), ("instances[1].name is '../d'", "write at most 64 letters, digits")),
    (
        "device id",
        ({**P, "devices": [{"id": -1}]}, D),
        ("instances[0].devices[0].id is -1", "write a number of at least 0"),
    ),
    ("host", (P, {**D, "host": "a b"}), ("instances[1].host is 'a b'", "write it like 10.0.0.18")),
    ("engine", (P, {**D, "engine": "x"}), ("instances[1].engine is 'x'", "'native'")),
    (
        "argument",
        (P, {**D, "arguments": {"a b": "1"}}),
        ("instances[1].arguments.a b is 'a b'", "write an option's name without"),
    ),
]


@pytest.mark.parametrize(("instances", "parts"), [r[1:] for r in RULES], ids=[r[0] for r in RULES])
def test_broken_rule_is_one_line_with_place_and_fix(instances: tuple[dict[str, Any], ...], parts: tuple[str]) -> None:
    with pytest.raises(TopologyError) as raised:
        topology(*instances)
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_instance_alone_maps_its_errors() -> None:
    with pytest.raises(TopologyError, match="port is 0; write a number of at least 1"):
        Instance(name="x", role=Role.BOTH, host="h", port=0)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("model: [", "line 1, column 9"),
        ("- a", "not a mapping"),
        (
            "model: m\ninstances:\n- {name: p, role: both, host: h, port: x}\n",
            "$.instances[0].port: is 'x'; write a whole number",
        ),
        ("model: m\nself: 1\ninstances: []\n", "$.self: is not a known field"),
        ("model: m\n1: 1\n", "not a mapping"),
        ("a: \x00", "mend the YAML"),
    ],
)
def test_bad_file_is_named(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(TopologyError) as raised:
        read_topology(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert part in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_folder_and_binary_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="no such file"):
        read_topology(tmp_path / "none.yaml")
    with pytest.raises(TopologyError, match="cannot be read"):
        read_topology(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(TopologyError, match="not UTF-8"):
        read_topology(tmp_path / "b.yaml")


def test_write_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "t.yaml"
    write_topology(topology(P, D), path)
    assert [p.name for p in path.parent.iterdir()] == ["t.yaml"]
    (tmp_path / "file").write_text("")
    with pytest.raises(TopologyError, match="cannot be written"):
        write_topology(topology(P, D), tmp_path / "file" / "t.yaml")


def test_numbers_in_arguments_become_text(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("model: m\ninstances:\n- {name: 1, role: both, host: h, arguments: {max-num-seqs: 8}}\n")
    assert read_topology(path).instances[0].arguments == {"max-num-seqs": "8"}


words = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=12)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    prefill, decode = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    roles = [Role.PREFILL] * prefill + [Role.DECODE] * decode
    if draw(st.booleans()):
        roles = [Role.BOTH] * prefill
    if draw(st.booleans()):
        roles.append(Role.GATEWAY)
    instances = [
        Instance(
            name=f"{role}-{i}",
            role=role,
            host=draw(st.sampled_from(["10.0.0.1", "::1", "node-1"])),
            port=draw(st.sampled_from([None, 1000 + i])),
            devices=()
            if role is Role.GATEWAY
            else tuple(Device(id=100 * i + j, address=draw(st.sampled_from([None, "10.1.1.1"]))) for j in range(2)),
            arguments=draw(st.dictionaries(st.sampled_from(["a", "max-len", "b_c"]), words | st.just(""), max_size=2)),
        )
        for i, role in enumerate(roles)
    ]
    name = draw(st.none() | words)
    return Topology(model=draw(words), served_model_name=name, instances=tuple(instances), epoch=draw(st.integers(1)))


@given(one=topologies())
@settings(max_examples=40, deadline=None)
def test_yaml_round_trip(tmp_path_factory: pytest.TempPathFactory, one: Topology) -> None:
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    write_topology(one, path)
    assert read_topology(path) == one
