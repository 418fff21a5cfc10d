"""Which built-in chat format a folder's model speaks, where the folder brings no template.

Decided by `model_type` in `config.json`, or the tokenizer's class where there is no such file, and by the special
tokens the tokenizer has. A model with no chat tokens has no format.
"""

from __future__ import annotations

from tandem.text.backend import Backend
from tandem.text.built_in_templates import BY_MODEL, BY_TOKENS, QWEN2_TEMPLATE
from tandem.text.chat import ChatFormat
from tandem.text.folder import TokenizerFolder
from tandem.text.piecewise import BaichuanChat, GlmChat, QwenChat
from tandem.text.template import ChatTemplate, TemplateFormat

MODEL_OF_CLASS = {
    "QWenTokenizer": "qwen",
    "ChatGLMTokenizer": "chatglm",
    "ChatGLM4Tokenizer": "chatglm",
    "BaichuanTokenizer": "baichuan",
    "BaiChuanTokenizer": "baichuan",
}
GLM_ROLES = ("system", "user", "assistant", "observation")
BAICHUAN_ROLES = {"user": (195, "<reserved_106>"), "assistant": (196, "<reserved_107>")}
"""Id and spelling where `generation_config.json` names none."""


def built_in_chat(folder: TokenizerFolder, backend: Backend) -> ChatFormat | None:
    """The format of the folder's family, or None where it has none."""
    model = folder.model_type or MODEL_OF_CLASS.get(folder.tokenizer_class, "")
    if model == "qwen":
        return _qwen(backend)
    if model in ("chatglm", "glm", "glm4"):
        return _glm(backend)
    if model == "baichuan":
        return _baichuan(folder, backend)
    return _template(folder, backend, model)


def _qwen(backend: Backend) -> ChatFormat | None:
    ids = _ids(backend, "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return QwenChat(backend, *ids) if ids else None


def _glm(backend: Backend) -> ChatFormat | None:
    roles = _ids(backend, *(f"<|{role}|>" for role in GLM_ROLES))
    for start, end in (("<sop>", "<|endoftext|>"), ("sop", "</s>")):
        prefix, ends = _ids(backend, "[gMASK]", start), _ids(backend, end)
        if roles and prefix and ends:
            return GlmChat(backend, ends[0], prefix, dict(zip(GLM_ROLES, roles, strict=True)))
    return None


def _baichuan(folder: TokenizerFolder, backend: Backend) -> ChatFormat | None:
    roles = [_baichuan_role(folder, backend, role) for role in ("user", "assistant")]
    end = _ids(backend, folder.spelling_of("eos_token", "</s>"))
    return BaichuanChat(backend, end[0], *roles) if end and max(roles) < backend.vocab_size else None


def _baichuan_role(folder: TokenizerFolder, backend: Backend, role: str) -> int:
    default, spelled = BAICHUAN_ROLES[role]
    named = folder.generation.get(f"{role}_token_id")
    if type(named) is int and named >= 0:
        return named
    known = backend.id_of(spelled)
    return default if known is None else known


def _template(folder: TokenizerFolder, backend: Backend, model: str) -> ChatFormat | None:
    """Formats that are text: known by their tokens, or by the model's type where they have none of their own."""
    first = [QWEN2_TEMPLATE] if model.startswith("qwen") else []
    last = [BY_MODEL[model]] if model in BY_MODEL else []
    for format_ in (*first, *BY_TOKENS, *last):
        names = {"bos_token": format_.bos, "eos_token": format_.eos}
        names = {name: folder.spelling_of(name, default) for name, default in names.items()}
        ends = _ids(backend, format_.end or names["eos_token"])
        if ends and _ids(backend, *format_.marks):
            return TemplateFormat(ChatTemplate(format_.source, names, "built-in template"), backend, tuple(ends))
    return None


def _ids(backend: Backend, *tokens: str) -> list[int] | None:
    """The ids of all these tokens, or None if one is missing."""
    ids = [number for token in tokens if (number := backend.id_of(token)) is not None]
    return ids if len(ids) == len(tokens) else None
