"""vLLM 0.5.0's flags: every one is known, and refused by name where it is not implemented."""

from __future__ import annotations

from pathlib import Path

import pytest

from tandem.cli import run
from tandem.errors import UsageError
from tandem.launch.flag import Flag
from tandem.launch.flag_page import page
from tandem.launch.flags import FLAGS
from tandem.launch.options import Options

DOCS = Path(__file__).parents[3] / "docs"

NAMES = """
    model tokenizer skip-tokenizer-init revision code-revision tokenizer-revision tokenizer-mode trust-remote-code
    download-dir load-format dtype kv-cache-dtype quantization-param-path max-model-len guided-decoding-backend
    distributed-executor-backend worker-use-ray pipeline-parallel-size tensor-parallel-size max-parallel-loading-workers
    ray-workers-use-nsight block-size enable-prefix-caching disable-sliding-window use-v2-block-manager
    num-lookahead-slots seed swap-space gpu-memory-utilization num-gpu-blocks-override max-num-batched-tokens
    max-num-seqs max-logprobs disable-log-stats quantization rope-scaling rope-theta enforce-eager
    max-context-len-to-capture max-seq-len-to-capture disable-custom-all-reduce tokenizer-pool-size tokenizer-pool-type
    tokenizer-pool-extra-config enable-lora max-loras max-lora-rank lora-extra-vocab-size lora-dtype
    long-lora-scaling-factors max-cpu-loras fully-sharded-loras device image-input-type image-token-id
    image-input-shape image-feature-size image-processor image-processor-revision disable-image-processor
    scheduler-delay-factor enable-chunked-prefill speculative-model num-speculative-tokens speculative-max-model-len
    speculative-disable-by-batch-size ngram-prompt-lookup-max ngram-prompt-lookup-min model-loader-extra-config
    preemption_mode served-model-name qlora-adapter-name-or-path engine-use-ray disable-log-requests max-log-len
    host port uvicorn-log-level allow-credentials allowed-origins allowed-methods allowed-headers api-key lora-modules
    chat-template response-role ssl-keyfile ssl-certfile ssl-ca-certs ssl-cert-reqs root-path middleware
"""
VLLM_050 = NAMES.split()
OWN = ["global-rank-table", "rank-table", "kv-cache-gib", "kv-port", "ready-timeout", "engine"]
REFUSED = [flag for flag in FLAGS if flag.status == "refused"]


def test_every_flag_of_vllm_is_in_the_table_once() -> None:
    assert sorted(flag.names[0] for flag in FLAGS) == sorted(f"--{name}" for name in VLLM_050 + OWN)


@pytest.mark.parametrize("flag", REFUSED, ids=lambda flag: flag.names[0])
def test_a_refused_flag_is_named_with_what_to_do_instead(flag: Flag) -> None:
    for name in flag.names:
        for words in ([name], [name, "s3cret"], [f"{name}=s3cret"]):
            with pytest.raises(UsageError) as refusal:
                Options.parse(["--model=m", *words])
            assert str(refusal.value).startswith(f"{flag.names[0]}: ")
            assert str(refusal.value).endswith(f"supported; {flag.says}")
            assert "s3cret" not in str(refusal.value)


def test_values_that_ask_for_nothing_are_accepted() -> None:
    words = [f"{flag.names[0]}={value}" for flag in REFUSED for value in flag.accepted]
    needless = [flag for flag in FLAGS if flag.status == "needless"]
    words += [flag.names[0] if flag.kind == "switch" else f"{flag.names[0]}=7" for flag in needless]
    assert len(words) > 20
    names = tuple(flag.names[0] for flag in needless)
    assert Options.parse(["--model=m", *words]) == Options(model="m", needless=names)


def test_implemented_flags_are_the_options() -> None:
    values = {"whole": "7", "number": "0.5", "texts": "a", "text": "cpu"}
    chosen = {"--dtype": "half", "--uvicorn-log-level": "debug", "--engine": "vllm"}
    for flag in FLAGS:
        if flag.status == "implemented":
            field = flag.names[0].strip("-").replace("-", "_")
            before = Options(model="m")
            words = [] if flag.kind == "switch" else [chosen.get(flag.names[0], values[flag.kind])]
            assert getattr(Options.parse(["--model=m", flag.names[-1], *words]), field) != getattr(before, field), field


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--modle=x"], "--modle: is no flag of vLLM 0.5.0 nor of tandem; see `tandem serve --from-rank-table --help`"),
        (["folder"], "folder: is no flag of vLLM 0.5.0 nor of tandem"),
        (["--max-model=5"], "--max-model: is no flag"),
        (["--port=x"], "--port: invalid whole value: 'x'; see"),
        (["--port=1_000"], "--port: invalid whole value: '1_000'; see"),
        (["--port=８０"], "--port: invalid whole value: '８０'; see"),
        (["--port=+80"], "--port: invalid whole value: '+80'; see"),
        (["--port=65536"], "--port 65536: is out of range; give a number from 0 to 65535"),
        (["--port=-1"], "--port -1: is out of range; give a number from 0 to 65535"),
        (["--kv-port=65536"], "--kv-port 65536: is out of range; give a number from 0 to 65535"),
        (["--max-model-len=0"], "--max-model-len 0: is out of range; give a number from 1"),
        (["--max-num-seqs=-5"], "--max-num-seqs -5: is out of range; give a number from 1"),
        (["--max-num-batched-tokens=0"], "--max-num-batched-tokens 0: is out of range; give a number from 1"),
        (["--tensor-parallel-size=0"], "--tensor-parallel-size 0: is out of range; give a number from 1"),
        (["--block-size=0"], "--block-size 0: is out of range; give a number from 1"),
        (["--ready-timeout=nan"], "--ready-timeout: invalid number value: 'nan'; see"),
        (["--ready-timeout=-1"], "--ready-timeout -1: is no time; give seconds, or leave it out"),
        (["--served-model-name", ""], "--served-model-name: is empty; give a name, or leave it out"),
        (["-t", "2"], "-t: is no flag of vLLM 0.5.0 nor of tandem"),
        (["-tp2"], "-tp2: is no flag of vLLM 0.5.0 nor of tandem"),
        (["--enforce-eager", "foo"], "foo: is no flag of vLLM 0.5.0 nor of tandem"),
        (["--trust-remote-code=false"], "--trust-remote-code: ignored explicit argument 'false'; see"),
        (["--max-log-len", "abc"], "--max-log-len: invalid whole value: 'abc'; see"),
        (["--seed", "0", "0"], "--seed: only 0 is supported"),
        (["--model"], "--model: expected one argument; see"),
        (["--device=tpu"], "--device tpu: unknown; choose auto, cpu, cuda, npu"),
        (["--uvicorn-log-level=loud"], "--uvicorn-log-level loud: unknown; choose critical, error"),
    ],
)
def test_what_is_wrong_is_named(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        Options.parse(["--model=m", *words])
    assert str(refusal.value).startswith(said)


def test_names_are_those_given_or_what_model_says() -> None:
    assert Options.parse(["--model", "/m/llama"]).names == ("/m/llama",)
    assert Options.parse(["--model=m", "--served-model-name", "a", "b", "--port=1"]).names == ("a", "b")


def test_the_page_is_what_the_table_says() -> None:
    assert (DOCS / "vllm-flags.md").read_text() == page(), "run python scripts/flag_page.py"


def test_help_lists_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(["serve", "--from-rank-table", "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(flag.names[0] in shown for flag in FLAGS if flag.status == "implemented")
    assert "--api-key" not in shown
