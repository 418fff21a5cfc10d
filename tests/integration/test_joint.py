"""The joint of the house: train a tiny model, export it, serve it apart; the same numbers come out everywhere."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tandem.deploy.service import local_topology, running
from tandem.model.context import CausalContext
from tandem.model.decoder import Decoder
from tandem.model.families import read_config
from tandem.model.folder import load
from tandem.text.tokenizer import Tokenizer
from tandem.topology.topology import Role
from tandem.training.pipeline import prepare_and_train
from tandem.training.progress import Silence
from tandem.training.settings.config import build_recipe

STAGE = {"steps": 25, "seq_length": 64, "global_batch": 4, "micro_batch": 4, "lr": 0.01, "min_lr": 0.001,
         "warmup_steps": 2, "save_every": 25}  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run on a handful of functions."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("run")
    functions = "".join(f'def f{n}(a, b):\n    """Add {n} to both."""\n    return a + b + {n}\n' for n in range(200))
    (source / "adding.py").write_text(f'"""Functions that add."""\n{functions}')
    fields = {
        "name": "joint",
        "model": {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "feed_forward_size": 64,
                  "max_position": 256},
        "tokenizer": {"vocab_size": 300},
        "data": {"source": str(source)},
        "pretrain": STAGE,
        "sft": STAGE | {"replay_every": 2},
    }  # fmt: skip
    prepare_and_train(build_recipe(fields, "test"), out, Silence())
    return out


@pytest.fixture(scope="module")
def trained(run_folder: Path) -> Decoder:
    """The model as the trainer last had it: its final checkpoint, not the exported folder."""
    (checkpoint,) = (run_folder / "sft" / "checkpoints").glob("iter_0000025")
    decoder = Decoder(read_config(run_folder / "sft" / "model"))
    stored = load_file(checkpoint / "rank_00000.safetensors")
    decoder.load_state_dict({name[6:]: tensor for name, tensor in stored.items() if name.startswith("model.")})
    return decoder.eval()


def logits(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return decoder(torch.tensor([tokens]), CausalContext(1, len(tokens), torch.device("cpu")))[0]


def test_the_exported_folder_computes_what_was_trained(run_folder: Path, trained: Decoder) -> None:
    folder = run_folder / "sft" / "model"
    tokens = Tokenizer.from_folder(folder).encode("def f7(a, b):\n    return")
    served = load(folder, torch.device("cpu"))
    torch.testing.assert_close(logits(served, tokens), logits(trained, tokens), atol=1e-4, rtol=0)


def test_the_service_says_what_the_trained_model_would(run_folder: Path, trained: Decoder, tmp_path: Path) -> None:
    folder = run_folder / "sft" / "model"
    tokenizer = Tokenizer.from_folder(folder)
    topology = local_topology(folder, prefill=1, decode=1, port=0, served_model_name="joint")
    with running(topology, tmp_path, timeout=120):
        for prompt in ("def f7(a, b):\n", "def f150(a, b):\n    return"):
            ids = tokenizer.encode(prompt)
            for _ in range(30):
                ids.append(int(logits(trained, ids)[-1].argmax()))
            body = {"model": "joint", "prompt": prompt, "max_tokens": 30, "temperature": 0, "ignore_eos": True}
            answer = _post(f"{topology.of(Role.GATEWAY)[0].url}/v1/completions", body)
            assert answer["choices"][0]["text"] == tokenizer.decode(ids[-30:])
            assert answer["usage"]["completion_tokens"] == 30


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=60) as answer:
        return json.load(answer)
