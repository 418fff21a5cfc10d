"""Work counted from batches, peaks, and the fields that come of them."""

from __future__ import annotations

import pytest
import torch
from tiny import TINY

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.operations import Operations
from tandem.model.decoder import Decoder
from tandem.training.data.batch import Batch
from tandem.training.data.labels import IGNORED
from tandem.training.data.sequences import real_lengths
from tandem.training.watch.meter import Meter, tokens_per_device, trained_adapters
from tandem.training.watch.peak import Peak, peak_of, sheet_peak
from tandem.training.watch.work import Work, work_of

METER = Meter(operations=Operations.of(TINY), peak=Peak(1e9, "a sheet"), device=torch.device("cpu"), devices=2)


def batch_of(targets: list[list[int]], segments: list[list[int]] | None = None) -> Batch:
    wanted = torch.tensor(targets)
    return Batch(tokens=torch.ones_like(wanted), targets=wanted,
                 segments=None if segments is None else torch.tensor(segments))  # fmt: skip


def test_text_without_padding_is_all_real() -> None:
    batch = batch_of([[1, 2, 3], [4, 5, 6]])
    assert real_lengths(batch).tolist() == [3, 3]
    assert work_of(batch, TINY) == Work(6, 6, 6, TINY.layers * 12)


def test_what_follows_the_last_learnt_token_is_padding() -> None:
    batch = batch_of([[IGNORED, 7, 8, IGNORED, IGNORED, IGNORED], [IGNORED] * 6])
    assert real_lengths(batch).tolist() == [4, 0]
    assert work_of(batch, TINY) == Work(12, 4, 2, TINY.layers * 10)


def test_packed_conversations_count_each_for_itself() -> None:
    segments = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0, 0]])
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    ends = begins.roll(-1, dims=1)
    targets = torch.where(ends | (segments == 0), IGNORED, 5)
    batch = Batch(tokens=torch.full_like(segments, 5), targets=targets, segments=segments)
    assert work_of(batch, TINY) == Work(18, 13, 3 + 2 + 5, TINY.layers * (10 + 6 + 21))


def test_speed_is_the_documents_formula() -> None:
    # GBS 64 x SEQ_LEN 4096 / (8 cards x 14,013 ms) x 1000
    assert tokens_per_device(64 * 4096, 8, 14.013) == pytest.approx(64 * 4096 / (8 * 14013) * 1000)
    fields = METER.measure(Work(100, 80, 40, 900), 0.5, 120)
    assert fields["tokens_per_s"] == 200
    assert fields["tokens_per_s_device"] == 120
    assert fields["real_tokens_per_s"] == 160
    assert fields["learnt_tokens_per_s"] == 80
    operations = 6 * METER.operations.active * 80 + 6 * 4 * 2 * 16 * 900
    assert fields["mfu"] == pytest.approx(operations / (0.5 * 2 * 1e9))
    assert fields["memory_peak"] > 2**20


def test_the_formula_names_devices_and_peak() -> None:
    assert METER.formula().endswith("\n  devices = 2\n  peak = 0.001 TFLOP/s (a sheet) of each")


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA GB200", 2500e12),
    ],
)
def test_data_sheets_go_by_name(name: str, flops: float) -> None:
    peak = sheet_peak(name, torch.bfloat16)
    assert peak is not None
    assert peak.flops == flops


def test_what_no_sheet_says_is_measured() -> None:
    assert sheet_peak("Ascend910B3", torch.bfloat16) is None
    assert sheet_peak("NVIDIA H200", torch.float32) is None
    peak = peak_of(torch.device("cpu"), torch.float32)
    assert 1e8 < peak.flops < 1e15
    assert "measured" in peak.source
    assert peak_of(torch.device("cpu"), torch.float32) is peak


def small(config: ModelConfig) -> Decoder:
    with torch.device("meta"):
        return Decoder(config)


def test_adapters_are_what_is_trained_beside_a_frozen_model() -> None:
    model = small(TINY)
    assert trained_adapters(model) == 0
    model.requires_grad_(False)
    assert trained_adapters(model) == 0
    model.layers[0].attention.q.lora_A = torch.nn.Parameter(torch.zeros(4, 64))
    assert trained_adapters(model) == 256
