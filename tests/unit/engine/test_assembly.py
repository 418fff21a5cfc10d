"""What comes out when an instance is put together: its words, and that blocks are shared only where they are equal."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tandem
from tandem.catalogue.config import ModelConfig
from tandem.catalogue.models import MODELS
from tandem.catalogue.named import TokenizerKind
from tandem.catalogue.position import DynamicNTK, Rope
from tandem.catalogue.shrink import shrink
from tandem.engine import placement
from tandem.engine.assembly import _generation_defaults, assemble
from tandem.engine.config import InstanceConfig
from tandem.engine.engine import Engine
from tandem.engine.request import Request
from tandem.engine.sampling import SamplingParams
from tandem.errors import UsageError
from tandem.kv import nixl, shared_memory
from tandem.model.context import CausalContext
from tandem.model.folder import load
from tandem.model.random_folder import write_random_folder
from tandem.text.tokenizer import Tokenizer


def test_a_default_that_is_not_applied_is_one_line_of_a_log(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"eos_token_id": 2, "bad_words_ids": [[1, 2]] * 5000, "suppress_tokens": "two\nlines"}
    (tmp_path / "generation_config.json").write_text(json.dumps(fields))
    with caplog.at_level(logging.WARNING):
        _generation_defaults(tmp_path, Tokenizer.from_folder(tiny_model), MODELS["llama3-8b"].config)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert all("is not applied" in line and "\n" not in line and len(line) < 500 for line in said)


def engine_of(folder: Path, **options) -> Engine:
    fields = {"dtype": "float32", "device": "cpu", "kv_cache_gib": 0.02, "max_num_batched_tokens": 96}
    driver, _, _ = assemble(InstanceConfig(model=folder, **(fields | options)), 1)
    return driver.engine


def answers(engine: Engine, prompts: list[list[int]], count: int, salt: str | None = None) -> list[list[int]]:
    """Greedy answers to prompts that are asked at once."""
    told: dict[str, list[int]] = {str(number): [] for number in range(len(prompts))}
    for name, prompt in zip(told, prompts, strict=True):
        engine.submit(Request(id=name, prompt=prompt, sampling=SamplingParams(max_tokens=count), salt=salt))
    while engine.scheduler.waiting or engine.scheduler.running:
        plan, _, updates = engine.plan()
        for name, update in [*updates, *engine.commit(plan, engine.run(plan))]:
            assert update.error is None
            told[name] += update.tokens
    return list(told.values())


def test_what_comes_out_is_told_in_one_line(tiny_model: Path) -> None:
    config = InstanceConfig(model=tiny_model, device="cpu", dtype="float32", kv_cache_gib=0.001, max_model_len=200)
    driver, _, sizes = assemble(config, 7)
    # 3 layers, keys and values, 2 heads of 16 numbers of 4 bytes, 16 tokens in a block.
    assert driver.engine.pool.count == int(0.001 * 2**30) // (3 * 2 * 2 * 16 * 4 * 16)
    assert sizes == f"cpu float32, {driver.engine.pool.count} KV blocks of 16 tokens, max_model_len 200"
    assert driver.engine.identity.port == 7


def test_memory_for_not_even_one_request_is_refused_by_option(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match=r"--kv-cache-gib 0.0001: one request of 512 tokens needs"):
        engine_of(tiny_model, kv_cache_gib=0.0001)


def test_memory_that_the_machine_has_not_is_refused_by_option(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match=r"--kv-cache-gib 100000: of this machine's memory .*; lower it"):
        engine_of(tiny_model, kv_cache_gib=1e5)


def test_memory_that_a_device_has_not_is_refused_by_option(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tandem.engine.placement.block_count", lambda *_: 2**40)
    with pytest.raises(UsageError, match=r"cpu has no .* GiB for keys and values .*lower --kv-cache-gib"):
        engine_of(tiny_model)


@pytest.mark.parametrize(
    ("transport", "message"),
    [
        ("nixl", "--kv-transport nixl: its package is missing; run `pip install -e '.\\[nixl]'`"),
        ("shm", "--kv-transport shm: processes of this system cannot share memory on cpu; choose auto or tcp"),
    ],
)
def test_a_transport_that_cannot_be_had_is_refused_before_the_model_is_loaded(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, transport: str, message: str
) -> None:
    monkeypatch.setattr(nixl, "installed", lambda: False)
    monkeypatch.setattr(shared_memory, "CAN_SHARE", False)
    monkeypatch.setattr(placement, "start_model", lambda *_: pytest.fail("the model is loaded"))
    with pytest.raises(UsageError, match=message):
        engine_of(tiny_model, kv_transport=transport)


def test_instances_exchange_blocks_only_with_their_like(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(**options) -> str:
        return engine_of(tiny_model, **options).identity.digest

    def other(name: str, config: ModelConfig, seed: int) -> str:
        write_random_folder(config, MODELS["llama3.2-1b"].tokenizer, tmp_path / name, dtype="float32", seed=seed)
        return engine_of(tmp_path / name).identity.digest

    assert digest() == digest(max_num_seqs=3)
    found = [digest(), digest(block_size=8), digest(dtype="bfloat16")]
    found += [other("first", LLAMA, 0), other("weights", LLAMA, 1), other("config", replace(LLAMA, norm_eps=1e-3), 0)]
    monkeypatch.setattr(tandem, "__version__", "99.0")
    found.append(digest())
    assert len(set(found)) == 7


def test_blocks_of_caches_of_different_dtypes_have_different_roots(tiny_model: Path) -> None:
    request = Request(id="", prompt=[1], sampling=SamplingParams())
    assert len({engine_of(tiny_model, dtype=name).options.root(request) for name in ("float32", "bfloat16")}) == 2


NAMES = (
    "llama3.2-1b",
    "yi-6b",
    "mistral-7b",
    "mixtral-8x7b",
    "qwen-7b",
    "qwen2.5-0.5b",
    "glm3-6b",
    "glm4-9b",
    "baichuan2-13b",
    "deepseek-v3",
)
LLAMA = shrink(MODELS["llama3.2-1b"].config)
assert isinstance(LLAMA.position, Rope)
DYNAMIC = replace(LLAMA, max_position=64, position=replace(LLAMA.position, scaling=DynamicNTK(factor=4.0, trained=64)))

CASES: dict[str, tuple[ModelConfig, TokenizerKind]] = {
    **{name: (shrink(MODELS[name].config), MODELS[name].tokenizer) for name in NAMES},
    "glm-hf": (shrink(replace(MODELS["glm4-9b"].config, family="glm", norm_weight_wide=False)), "glm"),
    "dynamic": (DYNAMIC, MODELS["llama3.2-1b"].tokenizer),
}

TOKENS = [(place * 37 + place * place) % 200 for place in range(320)]
LENGTHS = (40, 64, 65, 100, 128, 129, 200, 300)
"""On both sides of what the small models were trained on, 64 or 128, and of Qwen's next alphas."""
PROMPTS = [TOKENS[:length] for length in LENGTHS]
COUNT = 6
"""Tokens of an answer: what a wrong block changes shows at once."""
ALIKE = ("mistral-7b", "qwen2.5-0.5b", "glm-hf")
"""Models whose blocks depend on nothing that those of another do not."""


def write(name: str, folder: Path) -> Path:
    config, tokenizer = CASES[name]
    write_random_folder(config, tokenizer, folder, dtype="float32", seed=0)
    return folder


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.full] * (name in ALIKE)) for name in CASES])
def test_answers_with_shared_blocks_equal_those_without(name: str, tmp_path: Path) -> None:
    folder = write(name, tmp_path / name)
    expected = [answers(engine_of(folder, enable_prefix_caching=False), [prompt], COUNT)[0] for prompt in PROMPTS]
    assert len({tuple(answer) for answer in expected}) > len(PROMPTS) // 2, "the model answers everything alike"
    sharing = engine_of(folder)
    for _ in range(2):
        assert [answers(sharing, [prompt], COUNT)[0] for prompt in PROMPTS] == expected
    assert answers(sharing, PROMPTS, COUNT) == expected
    assert sharing.scheduler.prefix_hits > 1000


STRETCHES = {
    "llama3.2-1b": [0, 0, 0, 0, 0, 0, 0, 0],
    "baichuan2-13b": [0, 0, 0, 0, 0, 0, 0, 0],
    "dynamic": [0, 0, 65, 100, 128, 129, 200, 300],
}


@pytest.mark.parametrize("name", ["qwen-7b", *STRETCHES])
def test_prompts_of_different_stretch_share_no_block(name: str, tmp_path: Path) -> None:
    engine = engine_of(write(name, tmp_path / name))
    position = CASES[name][0].position
    stretches = [position.stretch(length) if isinstance(position, Rope) else 0 for length in LENGTHS]
    assert stretches == STRETCHES.get(name, stretches)
    for first, of_first in zip(PROMPTS, stretches, strict=True):
        for second, of_second in zip(PROMPTS, stretches, strict=True):
            salt = f"{len(first)} {len(second)}"
            answers(engine, [first], 1, salt)
            before = engine.scheduler.prefix_hits
            answers(engine, [second], 1, salt)
            shared = (min(len(first), len(second) - 1) // 16) * 16 if of_first == of_second else 0
            assert engine.scheduler.prefix_hits - before == shared


class OfPrompt(CausalContext):
    """A whole text of which only the beginning is prompt."""

    def __init__(self, length: int, prompt: int) -> None:
        super().__init__(1, length, torch.device("cpu"))
        self._prompt = prompt

    @property
    def prompts(self) -> torch.Tensor:
        return torch.full_like(self.positions, self._prompt)


@pytest.mark.parametrize("name", ["qwen-7b", "dynamic", "llama3.2-1b"])
def test_an_answer_that_outgrows_what_the_model_was_trained_on_is_a_plain_forwards(name: str, tmp_path: Path) -> None:
    """Its rotation goes by the prompt's length, not by what has been said since."""
    folder = write(name, tmp_path / name)
    decoder, engine = load(folder, torch.device("cpu")), engine_of(folder)
    for prompt in (TOKENS[:50], TOKENS[:100], TOKENS[:127]):
        text = list(prompt)
        with torch.inference_mode():
            for _ in range(30):
                text.append(int(decoder(torch.tensor([text]), OfPrompt(len(text), len(prompt)))[0, -1].argmax()))
        assert answers(engine, [prompt], 30) == [text[len(prompt) :]]


@pytest.mark.parametrize("name", ["qwen-7b", "dynamic"])
def test_blocks_of_different_stretch_would_give_other_answers(name: str, tmp_path: Path) -> None:
    """So the two tests above can fail."""
    folder = write(name, tmp_path / name)
    expected = [answers(engine_of(folder, enable_prefix_caching=False), [prompt], COUNT)[0] for prompt in PROMPTS]
    careless = engine_of(folder)
    careless.options = replace(careless.options, root=lambda request: b"all alike")
    assert [answers(careless, [prompt], COUNT)[0] for prompt in PROMPTS] != expected
