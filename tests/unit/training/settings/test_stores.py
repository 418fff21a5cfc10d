from __future__ import annotations

from pathlib import Path

import pytest

from tandem.errors import RecipeError, UsageError
from tandem.training.settings.choice import choose
from tandem.training.settings.resolve import Resolved, assignments, resolve

GIVEN = {"ORIGINAL_TRAIN_DATA_PATH": "s3://work/data/alpaca.parquet", "ORIGINAL_HF_WEIGHT": "/models/qwen2"}


def resolved(root: str | Path = "/home/run", **variables: str) -> Resolved:
    environment = GIVEN | {"TANDEM_STORE_CACHE": "/cache"} | variables
    return resolve("qwen2-0.5b", "sft", environment=environment, options={}, root=root)


def test_what_is_on_a_store_is_a_path_in_the_cache_and_back() -> None:
    given = resolved(OUTPUT_SAVE_DIR="obs://work/out")
    paths = given.run.paths
    assert paths.data == Path("/cache/host-0/s3/work/data/alpaca.parquet")
    assert paths.weights == Path("/models/qwen2")
    assert paths.processed == Path("/home/run/processed_for_input/qwen2-0.5b")
    assert paths.checkpoints == Path("/cache/host-0/obs/work/out/saved_models/qwen2-0.5b")
    assert given.origins["paths.data"] == "ORIGINAL_TRAIN_DATA_PATH: s3://work/data/alpaca.parquet"
    assert given.run.mirror is not None
    assert str(given.run.mirror.location(paths.logs)) == "obs://work/out/saved_models/qwen2-0.5b/log"
    assert given.run.mirror.location(paths.processed) is None
    assert not given.run.hosts_apart


def test_the_folder_of_the_run_may_be_on_a_store_whole() -> None:
    paths = resolved("s3://work/run").run.paths
    assert paths.processed == Path("/cache/host-0/s3/work/run/processed_for_input/qwen2-0.5b")
    assert paths.process_logs == Path("/cache/host-0/s3/work/run/saved_dir_for_output/plog")


def test_every_host_has_a_cache_of_its_own() -> None:
    hosts = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}
    run = resolved("s3://work/run", **hosts).run
    assert run.paths.data == Path("/cache/host-1/s3/work/data/alpaca.parquet")
    assert run.hosts_apart
    assert not resolved("/mnt/sfs", **hosts).run.hosts_apart, "inputs alone are on the store, checkpoints are shared"


def test_without_a_location_there_is_no_cache() -> None:
    run = resolved(ORIGINAL_TRAIN_DATA_PATH="/data/alpaca.parquet", TANDEM_STORE_CACHE="").run
    assert run.mirror is None


def test_what_cannot_be_there_is_refused() -> None:
    hosts = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}
    with pytest.raises(RecipeError, match="rollback goes back to a checkpoint that every host has whole"):
        resolve(
            "qwen2-0.5b", "sft", environment=GIVEN | hosts, root="s3://work/run",
            options=assignments(["training.guard.on_nan=rollback"]),
        )  # fmt: skip
    with pytest.raises(UsageError, match="gs:// is no storage that is known"):
        resolved(ORIGINAL_HF_WEIGHT="gs://work/models")
    with pytest.raises(RecipeError, match="makes a new model in a folder; give --out one"):
        choose("quickstart", "pretrain", environment={}, options={}, root="s3://work/run")
