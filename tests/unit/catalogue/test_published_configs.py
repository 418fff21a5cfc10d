"""Published `config.json` files read as the catalogue's configurations.

`published_configs.json` holds copies, without `auto_map`, of what lies beside the weights, as they were found in

    github.com/intel/xFasterTransformer, examples/model_config/
        llama3-8b, llama3-70b, qwen1.5-72b (qwen2-72b there), qwen2.5-14b (qwen2-14b there), deepseek-r1
    github.com/inference-sim/inference-sim, model_configs/
        llama2-7b, llama3.1-70b, yi-34b, mixtral-8x7b, qwen2.5-7b
    github.com/sgl-project/ome, pkg/hfutil/modelconfig/testdata/
        qwen-7b, qwen2.5-0.5b
    github.com/DannyMeb/iShrink-LLM-Compression-Framework, models/Llama-3.2-1B-Instruct/
        llama3.2-1b
    github.com/vkeilo/GlmStateVisualization, THUDM/chatglm3-6b/
        glm3-6b
    a log of LLaMA-Factory, which prints what it loaded of THUDM/glm-4-9b-chat (August 2024)
        glm4-9b

Some are those of the base models, whose configurations say the same of the decoder as those of the tuned ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tandem.catalogue.models import MODELS
from tandem.model.families import understand

PUBLISHED: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("published_configs.json").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_the_catalogues(name: str) -> None:
    family, config = understand(PUBLISHED[name], "config.json")
    assert config == MODELS[name].config
    assert family.name == MODELS[name].config.family
