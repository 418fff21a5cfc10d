"""The models that have names: the 32 that the documents train, and the two that they serve on several machines.

Sizes were read from copies of each `config.json`; the tests hold them against published parameter counts.
"""

from __future__ import annotations

from difflib import get_close_matches

from tandem.catalogue.models.baichuan import BAICHUAN2_13B
from tandem.catalogue.models.chatglm import CHATGLM3, GLM4
from tandem.catalogue.models.deepseek import DEEPSEEK
from tandem.catalogue.models.llama import LLAMA2, LLAMA3, YI
from tandem.catalogue.models.mistral import MISTRAL_7B, MIXTRAL_8X7B
from tandem.catalogue.models.qwen import QWEN
from tandem.catalogue.models.qwen2 import QWEN2, QWEN15, QWEN25
from tandem.catalogue.named import NamedModel
from tandem.errors import UsageError

MODELS: dict[str, NamedModel] = {
    model.name: model
    for model in (
        *LLAMA2,
        *LLAMA3,
        *QWEN,
        *QWEN15,
        *YI,
        CHATGLM3,
        BAICHUAN2_13B,
        *QWEN2,
        GLM4,
        MISTRAL_7B,
        MIXTRAL_8X7B,
        *QWEN25,
        *DEEPSEEK,
    )
}
"""Name -> model."""


def find_model(name: str) -> NamedModel:
    """The model of this name, in whatever case it is written.

    Raises:
        UsageError: There is none; names that look alike are listed.
    """
    model = MODELS.get(name.lower())
    if model is None:
        alike = get_close_matches(name.lower(), MODELS, n=4, cutoff=0.5)
        hint = f"did you mean {', '.join(alike)}?" if alike else "`tandem model list` shows all"
        raise UsageError(f"model {name}: is not known; {hint}")
    return model
