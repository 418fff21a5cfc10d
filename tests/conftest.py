"""A small model folder that many tests serve: random weights, a real tokenizer, no network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Tests share two cores between several processes; threads that spin for tiny matrices only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from certificates import Authority, Pair
from hypothesis import HealthCheck, settings
from tiny import TINY, write_model

# What a busy machine does slowly is no failure; time is measured in benchmarks.
settings.register_profile("tandem", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tandem")


@pytest.fixture(autouse=True, scope="session")
def no_device_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tables of tests are about devices that this machine need not have, though it may have others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tandem.topology.visible_devices.DEV", tmp_path_factory.mktemp("dev"))
        yield


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where certificates lie."""
    return tmp_path_factory.mktemp("pki")


@pytest.fixture(scope="session")
def authority(pki: Path) -> Authority:
    return Authority.new(pki)


@pytest.fixture(scope="session")
def pair(pki: Path, authority: Authority) -> Pair:
    """Of a server on this host."""
    return authority.signs(pki, "server")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose greedy answers are varied: large random weights, norms included."""
    return write_model(TINY, tmp_path_factory.mktemp("tiny"))
