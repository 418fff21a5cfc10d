"""`/metrics` of an instance: every name, and the numbers an engine's life leaves behind."""

from __future__ import annotations

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from reference.ledger import LedgerModel

from tandem.engine.engine import Engine, EngineOptions
from tandem.engine.metrics import InstanceMetrics
from tandem.engine.request import Request
from tandem.engine.runner import Runner
from tandem.engine.sampling import SamplingParams
from tandem.engine.scheduler import SchedulerLimits
from tandem.engine.step import Step
from tandem.engine.tickets import EngineIdentity
from tandem.errors import TransferError
from tandem.kv.blocks import BlockPool
from tandem.kv.messages import Pull
from tandem.kv.prefix import BlockKeys
from tandem.protocol.kv import KVTransferParams

PROMPT = list(range(9))


class Letters:
    """A tokenizer of one letter per token."""

    drops_first_space = False

    def bytes_of(self, token: int) -> bytes:
        return bytes([97 + token])


class Instance:
    """An engine of eight blocks of four tokens, 100 bytes each."""

    def __init__(self) -> None:
        self.now = 0.0
        options = EngineOptions(
            limits=SchedulerLimits(max_num_seqs=4, max_num_batched_tokens=32),
            root=lambda request: b"root",
            block_bytes=100,
        )
        identity = EngineIdentity(engine_id="e", digest="d", host="here", port=1)
        self.engine = Engine(Runner(LedgerModel(4)), BlockPool(8, 4), Letters(), options, identity, lambda: self.now)
        self.metrics = InstanceMetrics(self.engine)

    def ask(self, name: str, count: int = 3, prompt: list[int] = PROMPT, **fields) -> None:
        self.engine.submit(Request(id=name, prompt=prompt, sampling=SamplingParams(max_tokens=count), **fields))

    def steps(self, count: int = 30) -> None:
        for _ in range(count):
            plan, fetches, _ = self.engine.plan()
            for fetch in fetches:
                self.engine.miss(fetch, "no wire")
                self.engine.end_fetch(fetch)
            if plan.works:
                self.engine.commit(plan, self.engine.run(plan))

    def values(self) -> dict[str, float]:
        """Without the parts of histograms."""
        families = text_string_to_metric_families(self.metrics.text().decode())
        samples = [sample for family in families for sample in family.samples if "_seconds" not in sample.name]
        labels = ["".join(f"[{value}]" for value in sample.labels.values()) for sample in samples]
        names = [sample.name.removeprefix("tandem_") + label for sample, label in zip(samples, labels, strict=True)]
        return dict(zip(names, [sample.value for sample in samples], strict=True))


NEW = {
    "prompt_tokens_computed_total": 0,
    "tokens_generated_total": 0,
    "engine_steps_total": 0,
    "preemptions_total": 0,
    "prefix_cache_queries_total": 0,
    "prefix_cache_hits_total": 0,
    "prefix_cache_evictions_total": 0,
    "kv_bytes_sent_total": 0,
    "kv_bytes_received_total": 0,
    "kv_transfers_sent_total": 0,
    "kv_transfers_received_total": 0,
    "kv_transfers_refused_total": 0,
    "kv_transfers_failed_total": 0,
    "kv_leases_expired_total": 0,
    "kv_reservations_expired_total": 0,
    "requests_waiting": 0,
    "requests_running": 0,
    "kv_blocks_total": 8,
    "kv_blocks_free": 8,
    "kv_block_tokens": 4,
    "kv_blocks_known": 0,
    "kv_leases": 0,
    "kv_reservations": 0,
    "requests_ended_total[aborted]": 0,
    "requests_ended_total[failed]": 0,
    "requests_ended_total[finished]": 0,
}


@pytest.fixture
def there() -> Instance:
    return Instance()


def test_a_new_instance_shows_every_name(there: Instance) -> None:
    assert there.values() == NEW


def test_requests_leave_their_numbers(there: Instance) -> None:
    for name in ("first", "again"):
        there.ask(name)
        there.steps()
    assert there.values() == NEW | {
        "prompt_tokens_computed_total": 10,
        "tokens_generated_total": 6,
        "engine_steps_total": 6,
        "prefix_cache_queries_total": 18,
        "prefix_cache_hits_total": 8,
        "kv_blocks_known": 2,
        "requests_ended_total[finished]": 2,
    }


def test_time_in_steps_is_told_apart_by_phase(there: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(model: LedgerModel, step: Step) -> torch.Tensor | None:
        there.now += 2.0
        return logits(model, step)

    logits = LedgerModel.logits
    monkeypatch.setattr(LedgerModel, "logits", slow)
    there.ask("first", 3)
    there.steps(2)
    there.ask("second", 3)
    there.steps()
    text = there.metrics.text().decode()
    assert 'tandem_engine_step_seconds_total{phase="prefill"} 4.0' in text
    assert 'tandem_engine_step_seconds_total{phase="decode"} 6.0' in text


def test_what_is_going_on_is_seen(there: Instance) -> None:
    there.engine.reserve(8)
    there.ask("running", 9)
    there.ask("waiting", 9, [7] * 20)
    there.steps(1)
    seen = there.values()
    assert (seen["requests_running"], seen["requests_waiting"]) == (1, 1)
    assert (seen["kv_blocks_free"], seen["kv_reservations"]) == (3, 1)
    there.engine.abort("running")
    there.now = 31.0
    there.steps()
    seen = there.values()
    assert (seen["requests_ended_total[aborted]"], seen["requests_ended_total[finished]"]) == (1, 1)
    assert (seen["kv_reservations"], seen["kv_reservations_expired_total"]) == (0, 1)


def test_pressure_is_counted(there: Instance) -> None:
    there.ask("a", 14)
    there.ask("b", 14, [5] * 9)
    there.steps(60)
    seen = there.values()
    assert seen["preemptions_total"] == there.engine.scheduler.preemptions > 0
    assert seen["prefix_cache_evictions_total"] == there.engine.pool.evictions > 0
    assert seen["requests_ended_total[finished]"] == 2


def test_hand_overs_are_counted(there: Instance) -> None:
    for name in ("used", "lost"):
        there.ask(name, 1, keep_for_remote=True)
        there.steps()
    assert there.values()["kv_leases"] == 2
    ticket, _ = there.engine.tickets.open_ones
    content = BlockKeys(b"root", 4).content(PROMPT, 9)
    for engine_id in ("e", "earlier"):
        asked = Pull(ticket=ticket.name, engine_id=engine_id, digest="d", content=content, first=1)
        try:
            pull = there.engine.open_pull(asked)
        except TransferError:
            continue
        there.engine.next_blocks(pull)
        there.engine.close_pull(there.engine.open_pull(asked))
        there.engine.confirm_pull(pull)
        there.engine.close_pull(pull)
    there.now = 31.0
    there.ask("pulls", fetch_from=KVTransferParams(do_remote_prefill=True))
    there.steps()
    seen = there.values()
    expected = {
        "kv_transfers_sent_total": 1,
        "kv_bytes_sent_total": 200,
        "kv_transfers_refused_total": 1,
        "kv_transfers_failed_total": 2,
        "kv_leases_expired_total": 1,
        "kv_leases": 0,
        "requests_ended_total[failed]": 1,
        "requests_ended_total[finished]": 2,
    }
    assert {name: seen[name] for name in expected} == expected


def test_latencies_are_histograms(there: Instance) -> None:
    there.metrics.first_token.observe(0.3)
    there.metrics.between_tokens.observe(0.004)
    text = there.metrics.text().decode()
    assert 'tandem_time_to_first_token_seconds_bucket{le="0.25"} 0.0' in text
    assert 'tandem_time_to_first_token_seconds_bucket{le="0.5"} 1.0' in text
    assert 'tandem_inter_token_seconds_bucket{le="0.005"} 1.0' in text
