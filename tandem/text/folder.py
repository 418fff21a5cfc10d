"""Which tokenizer a model folder has, and opening it.

Decided from the files alone, and from the names in `tokenizer_config.json` and `config.json`. What `auto_map` names is
Python that would be run; nothing here does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tandem.errors import ModelFolderError
from tandem.files import read_json_object, there
from tandem.text.backend import Backend
from tandem.text.rank_file import GLM4_TOKENS, GLM4_WORDS, QWEN_TOKENS, QWEN_WORDS, RankFile, RankRules, is_rank_file
from tandem.text.sentence_piece import CHATGLM_TOKENS, SentencePieceModel, SentencePieceRules
from tandem.text.special_tokens import SpecialToken, declared_tokens, spelling
from tandem.text.tokenizer_json import TokenizerJson

SENTENCE_PIECE_CLASSES = (
    "LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast", "YiTokenizer",
    "BaichuanTokenizer", "BaiChuanTokenizer", "PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend",
)  # fmt: skip
"""Classes that count ids as the SentencePiece model does; others shift them."""


@dataclass(frozen=True)
class TokenizerFolder:
    """The tokenizer's side of one model folder."""

    path: Path

    @cached_property
    def settings(self) -> dict[str, Any]:
        """`tokenizer_config.json`; empty where there is none."""
        return self._json("tokenizer_config.json")

    @cached_property
    def named_tokens(self) -> dict[str, Any]:
        """`bos_token` and the like, with their lists, as `special_tokens_map.json` and then the settings have them."""
        every = self._json("special_tokens_map.json") | self.settings
        named = {name: value for name, value in every.items() if name.endswith("_token") and _is_token(value)}
        lists = {name: every[name] for name in ("additional_special_tokens", "extra_special_tokens") if name in every}
        return named | {name: value for name, value in lists.items() if isinstance(value, list)}

    @cached_property
    def generation(self) -> dict[str, Any]:
        """`generation_config.json`; empty where there is none."""
        return self._json("generation_config.json")

    @cached_property
    def model_type(self) -> str:
        """`model_type` of `config.json`; empty where it is not said."""
        return str(self._json("config.json").get("model_type") or "")

    @cached_property
    def end_id(self) -> int | None:
        """The first `eos_token_id` of `generation_config.json` or `config.json`, for folders that spell no end."""
        for fields in (self.generation, self._json("config.json")):
            ids = fields.get("eos_token_id")
            if type(first := ids[0] if isinstance(ids, list) and ids else ids) is int:
                return first
        return None

    @property
    def tokenizer_class(self) -> str:
        """`tokenizer_class` of the settings; empty where it is not said."""
        return str(self.settings.get("tokenizer_class") or "")

    def spelling_of(self, name: str, default: str = "") -> str:
        """The text of a named token, such as `bos_token`."""
        return spelling(self.named_tokens.get(name, default))

    def declared(self) -> list[SpecialToken]:
        """Every token declared beside the vocabulary."""
        return declared_tokens(self.path, self.settings, self._json("added_tokens.json"), self.named_tokens)

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        return read_json_object(path, ModelFolderError) if there(path) else {}


def open_backend(folder: TokenizerFolder) -> Backend:
    """Open the tokenizer of a folder.

    `tokenizer.json` goes before a SentencePiece model beside it, except where it lost tokens that the model has.

    Raises:
        ModelFolderError: There is no tokenizer file, or it is broken, or its family is not known.
    """
    whole, model, ranks = (folder.path / name for name in ("tokenizer.json", "tokenizer.model", "qwen.tiktoken"))
    if there(whole):
        backend = TokenizerJson(whole, folder.settings, folder.declared())
        if there(model) and not is_rank_file(model):
            original = _sentence_piece(folder, model)
            return original if backend.token_count < original.token_count else backend
        return backend
    if there(ranks):
        return RankFile(ranks, RankRules(words=QWEN_WORDS, tokens=QWEN_TOKENS, found_in_text=True, composed=True))
    if there(model):
        return _glm4(folder, model) if is_rank_file(model) else _sentence_piece(folder, model)
    if not folder.path.is_dir():
        raise ModelFolderError(f"{folder.path}: is not there; give a folder with a model's tokenizer files")
    raise ModelFolderError(
        f"{folder.path}: has no tokenizer.json, tokenizer.model or qwen.tiktoken; copy the tokenizer files too"
    )


def _glm4(folder: TokenizerFolder, path: Path) -> RankFile:
    if folder.tokenizer_class not in ("ChatGLM4Tokenizer", "ChatGLMTokenizer") and folder.model_type != "chatglm":
        raise ModelFolderError(
            f"{path}: is a rank file of {folder.tokenizer_class or 'no named class'}, of which only GLM-4's "
            "(ChatGLM4Tokenizer) are read; copy tokenizer.json too"
        )
    declared = [(token.content, token.id) for token in folder.declared() if token.id is not None]
    return RankFile(
        path,
        RankRules(
            words=GLM4_WORDS,
            tokens=GLM4_TOKENS,
            declared=tuple(declared),
            found_in_text=bool(declared),
            first=("[gMASK]", "<sop>"),
        ),
    )


def _sentence_piece(folder: TokenizerFolder, path: Path) -> SentencePieceModel:
    kind = folder.tokenizer_class
    if kind == "ChatGLMTokenizer" or folder.model_type == "chatglm":
        return SentencePieceModel(path, _chatglm3_rules(folder))
    if kind and kind not in SENTENCE_PIECE_CLASSES:
        raise ModelFolderError(f"{path}: the SentencePiece model of a {kind} is not read; copy tokenizer.json too")
    return SentencePieceModel(path, _llama_rules(folder))


def _chatglm3_rules(folder: TokenizerFolder) -> SentencePieceRules:
    return SentencePieceRules(
        tokens=tuple(token for token in folder.declared() if token.id is not None),
        appended=CHATGLM_TOKENS,
        first=("[gMASK]", "sop"),
    )


def _llama_rules(folder: TokenizerFolder) -> SentencePieceRules:
    """LlamaTokenizer's own defaults where the settings say nothing."""
    settings = folder.settings
    bos, eos = folder.spelling_of("bos_token", "<s>"), folder.spelling_of("eos_token", "</s>")
    declared = {token.content: token for token in folder.declared()}
    for content in (bos, eos, folder.spelling_of("unk_token", "<unk>")):
        declared.setdefault(content, SpecialToken(content=content, id=None, special=True))
    return SentencePieceRules(
        tokens=tuple(declared.values()),
        first=(bos,) if settings.get("add_bos_token", True) else (),
        last=(eos,) if settings.get("add_eos_token", False) else (),
        legacy=settings.get("legacy") is not False,
        space_first=settings.get("add_prefix_space") is not False,
    )


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str))
