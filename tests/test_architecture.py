"""The house's walls: imports go down, never sideways or up, and the torch-free rooms stay free of torch.

The allowed arrows are the same as the table in docs/architecture.md; a change to one is a change to the other.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "tandem"

FLOORS = {
    "errors": 0, "files": 0,
    "protocol": 1, "topology": 1, "text": 1, "catalogue": 1, "curves": 1, "storage": 1,
    "parallel": 2, "kernels": 2,
    "model": 3, "kv": 3,
    "gateway": 4, "engine": 4, "training": 4, "deploy": 4, "compat": 4, "launch": 4,
    "cli": 5,
}  # fmt: skip

TORCH_FREE = [
    "errors", "files", "protocol", "topology", "text", "catalogue", "curves", "storage",
    "gateway", "deploy", "compat", "launch", "cli",
]  # fmt: skip

TRAINING_ROOMS = [
    "data", "settings", "adapters", "compute", "checkpoints", "guard", "watch", "launch", "plan", "staging", "named",
    "preflight",
]  # fmt: skip
GATEWAY_ROOMS = [
    "processes", "wire", "request", "workers", "observability", "admission", "delivery", "door", "fleet",
]  # fmt: skip

HEAVY = {"torch", "transformers", "matplotlib"}


def room_of(module: str) -> str | None:
    """`tandem.kv.blocks` -> `kv`; None for anything that is not ours."""
    parts = module.split(".")
    return parts[1] if parts[0] == "tandem" and len(parts) > 1 else None


def imports(path: Path) -> Iterator[str]:
    """Every absolute module a file imports, inside functions too, each `from tandem import x` as `tandem.x`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; the house is read by absolute names"
            yield node.module or ""
            if node.module == "tandem":
                yield from (f"tandem.{alias.name}" for alias in node.names)


def python_files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def test_the_documented_floors_are_these() -> None:
    table = re.findall(r"^\| (\d) \| (`.+?`) \|", (ROOT.parent / "docs" / "architecture.md").read_text(), re.M)
    documented = {name: int(floor) for floor, names in table for name in re.findall(r"`(\w+)`", names)}
    assert documented == FLOORS


def test_every_room_stands_on_a_floor() -> None:
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert rooms | {"errors", "files"} == set(FLOORS)


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    here = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if here in ("__init__", "__main__"):
        return
    for module in imports(path):
        there = room_of(module)
        if there is None or there == here or there not in FLOORS or (here, there) == ("files", "errors"):
            continue
        assert FLOORS[there] < FLOORS[here], f"{path.relative_to(ROOT)} (room {here}) may not import {module}"


def test_the_documented_rooms_of_the_gateway_are_these() -> None:
    check_documented("gateway", GATEWAY_ROOMS)


@pytest.mark.parametrize("room", GATEWAY_ROOMS)
def test_a_room_of_the_gateway_imports_those_before_it(room: str) -> None:
    check_walls("gateway", room, GATEWAY_ROOMS[: GATEWAY_ROOMS.index(room) + 1])


def test_the_documented_rooms_of_training_are_these() -> None:
    check_documented("training", TRAINING_ROOMS)


@pytest.mark.parametrize("room", TRAINING_ROOMS)
def test_a_room_of_training_imports_those_before_it(room: str) -> None:
    above = {"named": ["stage"], "preflight": ["job", "pipeline"]}.get(room, [])
    before = TRAINING_ROOMS[: TRAINING_ROOMS.index(room) + 1]
    check_walls("training", room, [*before, "progress", "inputs", "interruption", "alone", *above])


def check_documented(package: str, expected: list[str]) -> None:
    text = (ROOT.parent / "docs" / "architecture.md").read_text()
    section = text.partition(f"### Rooms of {'the ' if package == 'gateway' else ''}{package}")[2].partition("\n### ")[
        0
    ]
    there = {path.name for path in (ROOT / package).iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert re.findall(r"^\| `(\w+)` \|", section, re.M) == expected
    assert there == set(expected)


def check_walls(package: str, room: str, allowed: list[str]) -> None:
    for path in (ROOT / package / room).rglob("*.py"):
        for module in imports(path):
            if module.startswith(f"tandem.{package}."):
                assert module.split(".")[2] in allowed, f"{path.relative_to(ROOT)} may not import {module}"


@pytest.mark.parametrize("room", TORCH_FREE)
def test_room_is_free_of_torch(room: str) -> None:
    modules = [
        "tandem." + str(path.relative_to(ROOT).with_suffix("")).replace(os.sep, ".").removesuffix(".__init__")
        for path in python_files()
        if path.relative_to(ROOT).parts[0].removesuffix(".py") == room
    ]
    assert modules
    code = f"import sys\nfor m in {modules!r}: __import__(m)\nprint(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", f"importing {room} pulls in {done.stdout.strip()}"


def test_no_pickle_no_shell_no_remote_code() -> None:
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("shell") != "True", f"{path}:{node.lineno} runs a shell string"
                assert "trust_remote_code" not in keywords, f"{path}:{node.lineno}"
                if name == "torch.load":
                    assert keywords.get("weights_only") == "True", f"{path}:{node.lineno} loads without weights_only"
                assert name not in ("os.system", "os.popen", "eval", "exec"), f"{path}:{node.lineno} runs text"
                assert keywords.get("allow_pickle") != "True", f"{path}:{node.lineno} unpickles"
        assert not {"pickle", "marshal", "shelve", "dill"} & {m.split(".")[0] for m in imports(path)}, path
