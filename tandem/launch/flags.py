"""Every flag of vLLM 0.5.0's command line, and those of our own beside them.

`docs/start-from-rank-tables.md` explains the command; `docs/vllm-flags.md` is this table, generated.

Source: vLLM 0.5.0, `engine/arg_utils.py` and `entrypoints/openai/cli_args.py`.
"""

from __future__ import annotations

from typing import Final

from tandem.launch.flag import Flag, Kind, Section


def implemented(section: Section, names: str, says: str, kind: Kind = "text") -> Flag:
    """A flag that does what it says; names between spaces."""
    return Flag(section=section, names=tuple(names.split()), status="implemented", says=says, kind=kind)


def needless(section: Section, names: str, says: str, kind: Kind = "switch") -> Flag:
    """A flag that asks for what is so anyway."""
    return Flag(section=section, names=tuple(names.split()), status="needless", says=says, kind=kind)


def refused(section: Section, names: str, says: str, accepted: str = "") -> Flag:
    """A flag that is refused, but for some values."""
    return Flag(
        section=section, names=tuple(names.split()), status="refused", says=says, accepted=tuple(accepted.split())
    )


NO_RAY = "ranks are processes of one host; leave it out"
NO_LORA = "merge the adapter into the weights and serve the result"
NO_SPECULATION = "tokens are drawn one at a time; leave it out"
NO_IMAGES = "only text is served; leave it out"
NO_TLS = "put a proxy that speaks TLS in front of the scheduler"
NO_CORS = "put a proxy that sets CORS headers in front of the scheduler"
ONE_FOLDER = "give --model the folder that holds the revision wanted"
ONE_TOKENIZER = "copy the tokenizer into the model folder"
ONE_POOL = "prompts are turned into tokens in threads; leave it out"
IN_CONFIG = "write it into the folder's config.json"

FLAGS: Final = (
    implemented("engine", "--model", "the model folder, or a name that is in the Hugging Face cache; required"),
    refused("engine", "--tokenizer", ONE_TOKENIZER),
    refused("engine", "--skip-tokenizer-init", "instances speak text; leave it out"),
    refused("engine", "--revision", ONE_FOLDER),
    refused("engine", "--code-revision", "code in a model folder is never run; leave it out"),
    refused("engine", "--tokenizer-revision", ONE_FOLDER),
    refused("engine", "--tokenizer-mode", "there is one tokenizer for every folder; leave it out", "auto"),
    needless("engine", "--trust-remote-code", "code in a model folder is never run, and none is needed"),
    refused("engine", "--download-dir", "nothing is downloaded at a start; use `tandem model fetch` and HF_HOME"),
    refused(
        "engine", "--load-format", "the folder's files say it; for random weights use `tandem model random`", "auto"
    ),
    implemented("engine", "--dtype", "auto (the folder's own), half, float16, bfloat16, float or float32"),
    refused("engine", "--kv-cache-dtype", "keys and values have the weights' type; leave it out", "auto"),
    refused("engine", "--quantization-param-path", "keys and values are not quantised; leave it out"),
    implemented("engine", "--max-model-len", "most tokens of prompt plus answer; the model's own by default", "whole"),
    refused("engine", "--guided-decoding-backend", "answers cannot be guided yet; leave it out"),
    refused("engine", "--distributed-executor-backend", NO_RAY, "mp"),
    refused("engine", "--worker-use-ray", NO_RAY),
    refused("engine", "--pipeline-parallel-size -pp", "use --tensor-parallel-size", "1"),
    implemented("engine", "--tensor-parallel-size -tp", "must be the number of devices in the local table", "whole"),
    refused("engine", "--max-parallel-loading-workers", "every rank reads its own part at once; leave it out"),
    refused("engine", "--ray-workers-use-nsight", NO_RAY),
    implemented("engine", "--block-size", "tokens in a KV block; 16 by default", "whole"),
    implemented("engine", "--enable-prefix-caching", "use KV blocks again whose tokens are known", "switch"),
    refused("engine", "--disable-sliding-window", f"a window is kept as the model has it; to change that, {IN_CONFIG}"),
    needless("engine", "--use-v2-block-manager", "there is one block manager"),
    refused("engine", "--num-lookahead-slots", NO_SPECULATION, "0"),
    refused("engine", "--seed", "give each request a seed, which makes it the same on every instance", "0"),
    refused("engine", "--swap-space", "preempted requests are computed again; leave it out", "0"),
    implemented("engine", "--gpu-memory-utilization", "part of a device's memory that may be used; 0.9", "number"),
    refused("engine", "--num-gpu-blocks-override", "use --kv-cache-gib"),
    implemented(
        "engine",
        "--max-num-batched-tokens",
        "most tokens in a step; at least --max-model-len, unless there is --enable-chunked-prefill",
        "whole",
    ),
    implemented("engine", "--max-num-seqs", "most requests computed at a time; 256 by default", "whole"),
    refused("engine", "--max-logprobs", "a request may ask for 20 at most", "20"),
    needless("engine", "--disable-log-stats", "counts are not logged, they are at /metrics"),
    implemented(
        "engine", "--quantization -q", "must be what the folder's config.json says; fp8 is served; None by default"
    ),
    refused("engine", "--rope-scaling", IN_CONFIG),
    refused("engine", "--rope-theta", IN_CONFIG),
    needless("engine", "--enforce-eager", "no graphs are captured"),
    refused("engine", "--max-context-len-to-capture", "no graphs are captured; leave it out"),
    refused("engine", "--max-seq-len-to-capture", "no graphs are captured; leave it out"),
    needless("engine", "--disable-custom-all-reduce", "sums are NCCL's, HCCL's or gloo's"),
    refused("engine", "--tokenizer-pool-size", ONE_POOL, "0"),
    refused("engine", "--tokenizer-pool-type", ONE_POOL),
    refused("engine", "--tokenizer-pool-extra-config", ONE_POOL),
    refused("engine", "--enable-lora", NO_LORA),
    refused("engine", "--max-loras", NO_LORA),
    refused("engine", "--max-lora-rank", NO_LORA),
    refused("engine", "--lora-extra-vocab-size", NO_LORA),
    refused("engine", "--lora-dtype", NO_LORA),
    refused("engine", "--long-lora-scaling-factors", NO_LORA),
    refused("engine", "--max-cpu-loras", NO_LORA),
    refused("engine", "--fully-sharded-loras", NO_LORA),
    refused("engine", "--qlora-adapter-name-or-path", NO_LORA),
    implemented("engine", "--device", "cuda, npu, or cpu; auto takes an accelerator and never the CPU"),
    refused("engine", "--image-input-type", NO_IMAGES),
    refused("engine", "--image-token-id", NO_IMAGES),
    refused("engine", "--image-input-shape", NO_IMAGES),
    refused("engine", "--image-feature-size", NO_IMAGES),
    refused("engine", "--image-processor", NO_IMAGES),
    refused("engine", "--image-processor-revision", NO_IMAGES),
    refused("engine", "--disable-image-processor", NO_IMAGES),
    refused("engine", "--scheduler-delay-factor", "steps are never delayed; leave it out", "0 0.0"),
    implemented(
        "engine", "--enable-chunked-prefill", "lets --max-num-batched-tokens be under --max-model-len", "switch"
    ),
    refused("engine", "--speculative-model", NO_SPECULATION),
    refused("engine", "--num-speculative-tokens", NO_SPECULATION),
    refused("engine", "--speculative-max-model-len", NO_SPECULATION),
    refused("engine", "--speculative-disable-by-batch-size", NO_SPECULATION),
    refused("engine", "--ngram-prompt-lookup-max", NO_SPECULATION),
    refused("engine", "--ngram-prompt-lookup-min", NO_SPECULATION),
    refused("engine", "--model-loader-extra-config", "the folder's files are read as they are; leave it out"),
    refused("engine", "--preemption_mode", "preempted requests are computed again; leave it out", "recompute"),
    implemented("engine", "--served-model-name", "names clients may ask for; what --model says by default", "texts"),
    refused("async engine", "--engine-use-ray", NO_RAY),
    needless("async engine", "--disable-log-requests", "requests are not logged"),
    needless("async engine", "--max-log-len", "requests are not logged", "whole"),
    implemented("OpenAI server", "--host", "address to listen on; the rank table's by default"),
    implemented("OpenAI server", "--port", "HTTP port; 8000 by default", "whole"),
    implemented("OpenAI server", "--uvicorn-log-level --log-level", "critical, error, warning, info, debug or trace"),
    refused("OpenAI server", "--allow-credentials", NO_CORS),
    refused("OpenAI server", "--allowed-origins", NO_CORS),
    refused("OpenAI server", "--allowed-methods", NO_CORS),
    refused("OpenAI server", "--allowed-headers", NO_CORS),
    refused(
        "OpenAI server",
        "--api-key",
        "a key in a command line is seen by every user of the host; put a proxy that checks keys in front",
    ),
    refused("OpenAI server", "--lora-modules", NO_LORA),
    refused("OpenAI server", "--chat-template", "put it into the model folder as chat_template.jinja"),
    refused("OpenAI server", "--response-role", "answers are the assistant's; leave it out", "assistant"),
    refused("OpenAI server", "--ssl-keyfile", NO_TLS),
    refused("OpenAI server", "--ssl-certfile", NO_TLS),
    refused("OpenAI server", "--ssl-ca-certs", NO_TLS),
    refused("OpenAI server", "--ssl-cert-reqs", NO_TLS),
    refused("OpenAI server", "--root-path", "let the proxy in front take the prefix away"),
    refused("OpenAI server", "--middleware", "no foreign code is run in the server; put a proxy in front"),
    implemented("tandem", "--global-rank-table", "the global rank table; GLOBAL_RANK_TABLE_FILE_PATH by default"),
    implemented("tandem", "--rank-table", "the local rank table; RANK_TABLE_FILE_PATH by default"),
    implemented("tandem", "--kv-cache-gib", "memory for keys and values, in GiB; 1 by default on a CPU", "number"),
    implemented(
        "tandem",
        "--kv-port",
        "port at which blocks are fetched; by default a free one, of vLLM's side channel 5600 and up",
        "whole",
    ),
    implemented("tandem", "--engine", "native, the default, or vllm: run `vllm serve`; its own flags may follow a --"),
    implemented(
        "tandem", "--ready-timeout", "seconds the scheduler waits for the instances; for ever by default", "number"
    ),
)
