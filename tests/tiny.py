"""Small models for tests, with a tokenizer that was trained on this machine's own texts."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.generation import GenerationDefaults
from tandem.catalogue.position import Rope
from tandem.model.folder import save
from tandem.model.random_weights import random_decoder
from tandem.text.tokenizer import tokenizer_files
from tandem.text.trainer import BOS, EOS, SPECIAL_TOKENS, train_tokenizer

TINY = ModelConfig(
    family="llama",
    vocab_size=512,
    hidden_size=64,
    layers=3,
    attention=GQA(heads=4, kv_heads=2, head_dim=16),
    position=Rope(theta=1e4, dims=16),
    feed_forward=SwiGLU(size=128),
    norm_eps=1e-5,
    tied_embeddings=False,
    max_position=512,
)


def write_model(config: ModelConfig, base: Path) -> Path:
    """A folder with random weights, which lies in `base` beside its tokenizer's."""
    standard_library = Path(sysconfig.get_paths()["stdlib"])
    texts = [(standard_library / name).read_text() for name in ("argparse.py", "textwrap.py", "typing.py")]
    train_tokenizer(texts, config.vocab_size, base / "tokenizer", config.max_position)
    ids = {token: SPECIAL_TOKENS.index(token) for token in (BOS, EOS)}
    defaults = GenerationDefaults(eos_token_ids=(ids[EOS],), bos_token_id=ids[BOS])
    save(random_decoder(config, torch.float32, 0), base / "tiny", defaults, tokenizer_files(base / "tokenizer"))
    return base / "tiny"
