"""Which files of a folder are its weights, and one clear line for each way they can contradict each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tandem.errors import ModelFolderError
from tandem.model.weights.files import stored_tensors


def put(folder: Path, *names: str) -> None:
    """Files that each hold a tensor named after themselves."""
    for name in names:
        tensors = {name: torch.ones(2)}
        if name.endswith(".bin"):
            torch.save(tensors, folder / name)
        else:
            save_file(tensors, folder / name)


def put_index(folder: Path, weight_map: object, ending: str = "safetensors") -> None:
    stem = {"safetensors": "model", "bin": "pytorch_model"}[ending]
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize(
    ("there", "read"),
    [
        (["model.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "other.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["a.safetensors", "b.safetensors"], ["a.safetensors", "b.safetensors"]),
        (["a.safetensors", "consolidated.safetensors", "adapter_model.safetensors"], ["a.safetensors"]),
        (["pytorch_model.bin", "training_args.bin", "optimizer.bin"], ["pytorch_model.bin"]),
        (["model-1.bin", "model-2.bin", "scheduler.bin", "rng_state.bin"], ["model-1.bin", "model-2.bin"]),
    ],
)
def test_the_weights_are_found(there: list[str], read: list[str], tmp_path: Path) -> None:
    put(tmp_path, *there)
    assert list(stored_tensors(tmp_path)) == read


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_an_index_decides(ending: str, tmp_path: Path) -> None:
    names = [f"x-{number}.{ending}" for number in (1, 2)]
    put(tmp_path, *names, f"y.{ending}", f"pytorch_model.{ending}")
    put_index(tmp_path, {name: name for name in names}, ending)
    assert sorted(stored_tensors(tmp_path)) == names


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    put(tmp_path / "blobs", "model.safetensors")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(tmp_path / "blobs" / "model.safetensors")
    assert list(stored_tensors(tmp_path / "snapshot")) == ["model.safetensors"]


def double(folder: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"x": torch.ones(2)}, folder / name)


def pointer(folder: Path, name: str) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")


FAULTY: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda f: None, r"has no \*.safetensors and no \*.bin file"),
    "only training state": (lambda f: put(f, "optimizer.bin"), r"has no \*.safetensors and no \*.bin file"),
    "tensor twice": (double, "b.safetensors: holds x, and so does a.safetensors"),
    "index is no JSON": (lambda f: (f / "model.safetensors.index.json").write_text("{"), "cannot be read as JSON"),
    "index without a map": (lambda f: put_index(f, None), "weight_map is no map"),
    "index with a list": (lambda f: put_index(f, ["a"]), "weight_map is no map"),
    "index of numbers": (lambda f: put_index(f, {"a": 1}), "weight_map is no map"),
    "empty index": (lambda f: put_index(f, {}), "weight_map is no map"),
    "absent shard": (lambda f: put_index(f, {"a": "x-1.bin"}, "bin"), "names x-1.bin, which is not in this folder;"),
    "absent shards": (lambda f: put_index(f, {"a": "1", "b": "2", "c": "3"}), "names 1, .* folder, and 2 more;"),
    "outside": (lambda f: put_index(f, {"a": "../x.safetensors"}), "names ../x.safetensors, which is not in this"),
    "absolute": (lambda f: put_index(f, {"a": "/etc/passwd"}), "names /etc/passwd, which is not in this folder"),
    "long name": (lambda f: put_index(f, {"a": "x" * 5000}), "names 'x{200}', which is not in this folder"),
    "name of many lines": (lambda f: put_index(f, {"a": "a\nb"}), r"names 'a\\nb', which is not in this folder"),
    "tensor elsewhere": (
        lambda f: (put(f, "a.safetensors", "b.safetensors"), put_index(f, {"a.safetensors": "b.safetensors"})),
        "puts a.safetensors into b.safetensors, which does not hold it",
    ),
    "tensor nowhere": (
        lambda f: (put(f, "a.safetensors"), put_index(f, {"a.safetensors": "a.safetensors", "x": "a.safetensors"})),
        "puts x into a.safetensors, which does not hold it",
    ),
    "tensor left out": (
        lambda f: (
            save_file({"x": torch.ones(2), "y": torch.ones(2)}, f / "a.safetensors"),
            put_index(f, {"x": "a.safetensors"}),
        ),
        "leaves out y of a.safetensors",
    ),
    "no weights but a pointer": (lambda f: pointer(f, "model.safetensors"), "git lfs pull"),
    "no .bin but a pointer": (lambda f: pointer(f, "pytorch_model.bin"), "git lfs pull"),
    "weights are a folder": (lambda f: (f / "model.safetensors").mkdir(), "model.safetensors: cannot be read"),
}


@pytest.mark.parametrize("case", FAULTY)
def test_each_fault_gives_one_clear_line(case: str, tmp_path: Path) -> None:
    spoil, message = FAULTY[case]
    spoil(tmp_path)
    with pytest.raises(ModelFolderError, match=message) as caught:
        stored_tensors(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)
