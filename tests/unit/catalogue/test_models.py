from __future__ import annotations

import math

import pytest

from tandem.catalogue.arithmetic import (
    active_parameters,
    flops_per_token,
    kv_bytes_per_token,
    parameters,
    weight_bytes,
)
from tandem.catalogue.config import GQA, MoE
from tandem.catalogue.models import MODELS, find_model
from tandem.catalogue.position import Llama3Scaling, QwenNTK, Rope
from tandem.errors import UsageError

# Typed from the documents' table: name, heading, repository.
DOCUMENTS = """
llama2-7b      llama2    meta-llama/Llama-2-7b-chat-hf
llama2-13b     llama2    meta-llama/Llama-2-13b-chat-hf
llama2-70b     llama2    meta-llama/Llama-2-70b-chat-hf
llama3-8b      llama3    meta-llama/Meta-Llama-3-8B-Instruct
llama3-70b     llama3    meta-llama/Meta-Llama-3-70B-Instruct
qwen-7b        Qwen      Qwen/Qwen-7B-Chat
qwen-14b       Qwen      Qwen/Qwen-14B-Chat
qwen-72b       Qwen      Qwen/Qwen-72B-Chat
qwen1.5-7b     Qwen1.5   Qwen/Qwen1.5-7B-Chat
qwen1.5-14b    Qwen1.5   Qwen/Qwen1.5-14B-Chat
qwen1.5-32b    Qwen1.5   Qwen/Qwen1.5-32B-Chat
qwen1.5-72b    Qwen1.5   Qwen/Qwen1.5-72B-Chat
yi-6b          Yi        01-ai/Yi-6B-Chat
yi-34b         Yi        01-ai/Yi-34B-Chat
glm3-6b        ChatGLMv3 THUDM/chatglm3-6b
baichuan2-13b  Baichuan2 baichuan-inc/Baichuan2-13B-Chat
qwen2-0.5b     Qwen2     Qwen/Qwen2-0.5B-Instruct
qwen2-1.5b     Qwen2     Qwen/Qwen2-1.5B-Instruct
qwen2-7b       Qwen2     Qwen/Qwen2-7B-Instruct
qwen2-72b      Qwen2     Qwen/Qwen2-72B-Instruct
glm4-9b        GLMv4     THUDM/glm-4-9b-chat
mistral-7b     mistral   mistralai/Mistral-7B-Instruct-v0.2
mixtral-8x7b   mixtral   mistralai/Mixtral-8x7B-Instruct-v0.1
llama3.1-8b    llama3.1  meta-llama/Meta-Llama-3.1-8B-Instruct
llama3.1-70b   llama3.1  meta-llama/Meta-Llama-3.1-70B-Instruct
qwen2.5-0.5b   Qwen2.5   Qwen/Qwen2.5-0.5B-Instruct
qwen2.5-7b     Qwen2.5   Qwen/Qwen2.5-7B-Instruct
qwen2.5-14b    Qwen2.5   Qwen/Qwen2.5-14B-Instruct
qwen2.5-32b    Qwen2.5   Qwen/Qwen2.5-32B-Instruct
qwen2.5-72b    Qwen2.5   Qwen/Qwen2.5-72B-Instruct
llama3.2-1b    llama3.2  meta-llama/Llama-3.2-1B-Instruct
llama3.2-3b    llama3.2  meta-llama/Llama-3.2-3B-Instruct
"""
BEYOND = {"deepseek-v3": "deepseek-ai/DeepSeek-V3", "deepseek-r1": "deepseek-ai/DeepSeek-R1"}

# What the public says: the tensors' own metadata on huggingface.co, or the count that loading prints. Only Baichuan2's
# was found nowhere and is the sum over its published shapes.
PUBLISHED = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "qwen-7b": 7_721_324_544,
    "qwen-14b": 14_167_290_880,
    "qwen-72b": 72_287_920_128,
    "qwen1.5-7b": 7_721_324_544,
    "qwen1.5-14b": 14_167_290_880,
    "qwen1.5-32b": 32_512_218_112,
    "qwen1.5-72b": 72_287_920_128,
    "yi-6b": 6_061_035_520,
    "yi-34b": 34_388_917_248,
    "glm3-6b": 6_243_584_000,
    "glm4-9b": 9_399_951_360,
    "baichuan2-13b": 13_896_668_160,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "deepseek-v3": 671_026_419_200,
    "deepseek-r1": 671_026_419_200,
}


def test_the_documents_names_and_no_others() -> None:
    rows = [row.split() for row in DOCUMENTS.strip().splitlines()]
    assert len(rows) == 32
    assert set(MODELS) == {name for name, _, _ in rows} | set(BEYOND)
    for name, series, repository in rows:
        assert (MODELS[name].name, MODELS[name].series, MODELS[name].repository) == (name, series, repository)
    for name, repository in BEYOND.items():
        assert MODELS[name].repository == repository
    assert MODELS["llama2-70b"].also == ("meta-llama/Llama-2-70b-hf",)


def test_only_glm4_is_pinned() -> None:
    pinned = {name: model.revision for name, model in MODELS.items() if model.revision}
    assert pinned == {"glm4-9b": "4b556ad4d70c38924cb8c120adbf21a0012de6ce"}
    assert "--revision 4b556ad4d70c38924cb8c120adbf21a0012de6ce" in MODELS["glm4-9b"].download


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_the_published_ones(name: str) -> None:
    assert parameters(MODELS[name].config) == PUBLISHED[name]


def test_active_parameters_of_the_mixtures() -> None:
    # Published without and with the embedding table.
    assert active_parameters(MODELS["mixtral-8x7b"].config) == 12_748_853_248
    assert active_parameters(MODELS["deepseek-v3"].config) + 129280 * 7168 == 37_552_297_472


def test_cache_bytes() -> None:
    assert kv_bytes_per_token(MODELS["llama2-7b"].config, 2) == 512 * 1024
    assert kv_bytes_per_token(MODELS["llama3.1-8b"].config, 2) == 128 * 1024
    assert kv_bytes_per_token(MODELS["deepseek-v3"].config, 2) == 576 * 61 * 2


def test_bytes_and_operations() -> None:
    config = MODELS["qwen2-0.5b"].config
    assert weight_bytes(config, "bfloat16") == 988_065_536
    assert weight_bytes(config, "int8") == weight_bytes(config, "float8_e4m3fn") == 494_032_768
    assert flops_per_token(config, 0) == 2 * 494_032_768
    assert flops_per_token(config, 100) - flops_per_token(config, 0) == 4 * 24 * 896 * 100


def test_the_tied_are_the_small() -> None:
    tied = {name for name, model in MODELS.items() if model.config.tied_embeddings}
    assert tied == {"qwen2-0.5b", "qwen2-1.5b", "qwen2.5-0.5b", "llama3.2-1b", "llama3.2-3b"}


def test_rotary_scalings() -> None:
    positions = {name: model.config.position for name, model in MODELS.items()}
    scalings = {name: position.scaling for name, position in positions.items() if isinstance(position, Rope)}
    llama = {name: scaling for name, scaling in scalings.items() if isinstance(scaling, Llama3Scaling)}
    factors = {name: (scaling.factor, scaling.low, scaling.high, scaling.trained) for name, scaling in llama.items()}
    assert factors == {
        "llama3.1-8b": (8, 1, 4, 8192), "llama3.1-70b": (8, 1, 4, 8192),
        "llama3.2-1b": (32, 1, 4, 8192), "llama3.2-3b": (32, 1, 4, 8192),
    }  # fmt: skip
    assert {name: scaling.trained for name, scaling in scalings.items() if isinstance(scaling, QwenNTK)} == {
        "qwen-7b": 8192, "qwen-14b": 2048,
    }  # fmt: skip
    assert positions.keys() - scalings.keys() == {"baichuan2-13b"}


def test_grouped_heads() -> None:
    attentions = {name: model.config.attention for name, model in MODELS.items()}
    grouped = {n: a.kv_heads for n, a in attentions.items() if isinstance(a, GQA) and a.kv_heads < a.heads}
    assert grouped == {
        "llama2-70b": 8, "llama3-8b": 8, "llama3-70b": 8, "llama3.1-8b": 8, "llama3.1-70b": 8, "llama3.2-1b": 8,
        "llama3.2-3b": 8, "qwen1.5-32b": 8, "yi-6b": 4, "yi-34b": 8, "glm3-6b": 2, "glm4-9b": 2, "qwen2-0.5b": 2,
        "qwen2-1.5b": 2, "qwen2-7b": 4, "qwen2-72b": 8, "qwen2.5-0.5b": 2, "qwen2.5-7b": 4, "qwen2.5-14b": 8,
        "qwen2.5-32b": 8, "qwen2.5-72b": 8, "mistral-7b": 8, "mixtral-8x7b": 8,
    }  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_layouts_divide_the_model(name: str) -> None:
    model = MODELS[name]
    assert model.layouts or name in BEYOND
    for layout in model.layouts:
        assert model.config.attention.heads % layout.tp == 0
        assert model.config.layers % layout.pp == 0
        fewest = [
            least.cards
            for least in model.minimum_cards
            if least.tuning != "lora" and (least.seq_length or math.inf) >= layout.seq_length
        ]
        assert layout.cards >= min(fewest, default=1)
        assert layout.basis


def test_the_documents_layouts() -> None:
    stated = {
        (name, layout.seq_length, layout.tp, layout.pp, layout.cards)
        for name, model in MODELS.items()
        for layout in model.layouts
        if layout.source == "document"
    }
    assert stated == {
        ("llama2-7b", 4096, 1, 4, 4), ("llama2-7b", 4096, 1, 4, 8), ("llama2-7b", 8192, 2, 4, 8),
        ("llama2-13b", 4096, 8, 1, 8), ("llama2-13b", 8192, 8, 1, 8),
        ("llama2-70b", 4096, 8, 4, 32), ("llama2-70b", 8192, 8, 8, 64),
        ("llama3-8b", 4096, 4, 1, 4), ("llama3-8b", 8192, 4, 1, 4),
        ("llama3-70b", 4096, 8, 4, 32), ("llama3-70b", 8192, 8, 8, 64),
        ("qwen-7b", 4096, 4, 1, 4), ("qwen-7b", 8192, 4, 1, 4), ("qwen-14b", 4096, 8, 1, 8),
    }  # fmt: skip


@pytest.mark.parametrize(("name", "layout"), [("glm3-6b", (8192, 2, 4, 8)), ("baichuan2-13b", (4096, 8, 1, 8))])
def test_layouts_of_which_the_documents_state_a_part_are_marked(name: str, layout: tuple[int, ...]) -> None:
    first = MODELS[name].layouts[0]
    assert (first.seq_length, first.tp, first.pp, first.cards) == layout
    assert first.source == "derived"
    assert first.basis == "TP and PP stated by the documents of an earlier release"


def test_mixtures() -> None:
    mixtures = {n: m.config.feed_forward for n, m in MODELS.items() if isinstance(m.config.feed_forward, MoE)}
    assert mixtures.keys() == {"mixtral-8x7b", *BEYOND}


def test_names_are_found_in_any_case_and_near_ones_listed() -> None:
    assert find_model("Qwen2.5-0.5B") is MODELS["qwen2.5-0.5b"]
    with pytest.raises(UsageError, match=r"model llama3\.1-7b: is not known; did you mean llama3\.1-70b"):
        find_model("llama3.1-7b")
    with pytest.raises(UsageError, match="model list"):
        find_model("zzzz")
