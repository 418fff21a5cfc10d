"""What settings may not say together, and what should be said about those that hold."""

from __future__ import annotations

from collections.abc import Iterator

from tandem.catalogue.config import MoE
from tandem.catalogue.named import NamedModel
from tandem.errors import UsageError
from tandem.training.data.rows.kinds import named_kind
from tandem.training.settings.run import Run


def contradictions(run: Run, model: NamedModel) -> Iterator[str]:
    """Everything that cannot be done, a line each."""
    yield from _data(run)
    yield from _length(run, model)
    yield from _beginning(run)
    if run.training.balance is not None and not isinstance(model.config.feed_forward, MoE):
        yield f"training.balance {run.training.balance} is for mixtures of experts, and {model.name} is none; remove it"
    if run.training.balance_bias is not None and not model.config.router_biases:
        yield (
            f"training.balance_bias {run.training.balance_bias} is for routers with biases (DeepSeek-V3's), and "
            f"{model.name} has none; remove it"
        )
    if run.hosts_apart and "rollback" in (run.training.guard.on_spike, run.training.guard.on_nan):
        yield (
            "training.guard rollback goes back to a checkpoint that every host has whole, and with CKPT_SAVE_PATH on "
            "an object store each of several has its own parts alone; use skip or stop, or a folder that they share"
        )


def remarks(run: Run, model: NamedModel) -> Iterator[str]:
    """What the user should know about a run that can be done, a line each."""
    if run.layout.wishes:
        yield (
            f"{run.layout.wishes}: taken as a wish; the weights are sharded over all ranks by FSDP instead, which does "
            "not change the result"
        )
    if run.length.steps and run.length.samples:
        yield f"{run.length.steps} steps are asked for by number; samples and epochs do not count"
    if run.training.seq_length > model.config.max_position:
        yield f"samples of {run.training.seq_length} tokens are longer than {model.name} was made for"
    if run.resume.auto and run.resume.checkpoint and not run.names_its_own:
        yield f"{run.resume.checkpoint} is taken only if {run.paths.checkpoints} holds no checkpoint"


def _data(run: Run) -> Iterator[str]:
    try:
        named_kind(run.data.kind, run.reads)
    except UsageError as error:
        yield f"{error} (data.kind, DATA_TYPE)"
    if run.lora is not None and run.stage != "lora":
        yield f"settings of lora are not for {run.stage}; remove them, or use the stage lora"
    if run.lora is None and run.stage == "lora":
        yield "lora: is empty, and the stage lora trains adapters; remove it, or use the stage sft"


def _length(run: Run, model: NamedModel) -> Iterator[str]:
    bound = run.max_position or model.config.max_position
    if run.training.seq_length > bound:
        whose = "max_position (MAX_PE) allows" if run.max_position else f"{model.name} was made for"
        yield (
            f"training.seq_length {run.training.seq_length} (SEQ_LEN) is above the {bound} that {whose}; lower it, or "
            "raise max_position (MAX_PE)"
        )
    yield from _descent(run)
    samples = run.length.samples
    if samples and not run.length.steps and samples * run.length.epochs < run.training.global_batch:
        yield (
            f"length.samples {samples} (SN) times {run.length.epochs} epochs (EPOCH) make no step of "
            f"{run.training.global_batch} samples (GBS); lower global_batch"
        )


def _descent(run: Run) -> Iterator[str]:
    decay, warmup, kind = run.length.decay, run.length.warmup, run.training.schedule
    if decay is not None and kind != "wsd":
        yield f"length.decay {decay} is for training.schedule wsd, not {kind}; remove it, or set that"
    if decay is not None and warmup + decay > 1:
        yield f"length.warmup {warmup} and length.decay {decay} are more than the whole run; lower them"


def _beginning(run: Run) -> Iterator[str]:
    if run.resume.load == 0 and run.stage != "pretrain":
        yield f"{run.stage} stands on trained weights, and resume.load 0 (CKPT_LOAD_TYPE) loads none; use 1 or 2"
    if run.resume.load == 0 and run.resume.checkpoint:
        yield (
            f"resume.checkpoint {run.resume.checkpoint} (USER_CONVERTED_CKPT_PATH) is not loaded with resume.load 0 "
            "(CKPT_LOAD_TYPE); use 1 or 2"
        )
    if run.resume.load == 2 and run.resume.auto is False and not run.resume.checkpoint:
        yield (
            "resume.load 2 (CKPT_LOAD_TYPE) goes on from a checkpoint, resume.auto false (train_auto_resume) does not, "
            "and resume.checkpoint (USER_CONVERTED_CKPT_PATH) names no other; change one"
        )
