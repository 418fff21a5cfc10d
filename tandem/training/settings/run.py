"""`Run`: one stage of one named model, with everything it depends on; what recipes, variables and options lead to.

    section     says                                      the documents' variables
    paths       what is read, what is written             ORIGINAL_TRAIN_DATA_PATH ... ASCEND_PROCESS_LOG_PATH
    data        how rows become samples                   DATA_TYPE
    training    batch, learning rate, saving              MBS, GBS, SEQ_LEN, LR, MIN_LR, SAVE_INTERVAL
    length      steps, or samples and epochs              SN, EPOCH, TRAIN_ITERS
    layout      over how many cards                       TP, PP, CP
    resume      what the weights are and where it begins  CKPT_LOAD_TYPE, USER_CONVERTED_CKPT_PATH
    launch      which processes, where                    MASTER_ADDR, NNODES, NODE_RANK

No torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from tandem.storage.mirror import Mirror, mirror_of
from tandem.training.data.rows.kinds import AUTO
from tandem.training.settings.config import Launch, LoraConfig, Section, StageConfig, StepConfig

StageName = Literal["pretrain", "sft", "lora"]


class Paths(Section):
    """Files and folders; where one is not given, the documents' rule says where it is (`paths.py`)."""

    data: Path | None = Field(default=None, description="Raw data: a file or a folder.")
    weights: Path = Field(description="Model folder in Hugging Face format.")
    tokenizer: Path = Field(description="Folder of the tokenizer files.")
    processed: Path = Field(description="Gets the prepared data.")
    prepared: Path | None = Field(default=None, description="Data prepared before, as a prefix or the folder with it.")
    out: Path = Field(description="Parent of checkpoints, logs and process logs.")
    checkpoints: Path = Field(description="Gets checkpoints and the exported model.")
    logs: Path = Field(description="Gets metrics and pictures.")
    process_logs: Path = Field(description="Gets what each process says, and its stacks.")
    cache: Path | None = Field(default=None, description="Keeps here what is on an object store.")


class DataOptions(Section):
    """How rows become samples."""

    kind: str = Field(
        default=AUTO, description="Kind of rows, or the documents' handler; by default what they look like."
    )
    text_key: str = Field(default="text", min_length=1, description="Key of the text to pretrain on.")
    row_megabytes: int = Field(
        default=8, gt=0, description="Longest text or conversation, in MB; a process takes 120 times as much for it."
    )
    pack: bool = Field(default=True, description="Several conversations share a sample, blind to each other.")
    documents_apart: bool = Field(default=True, description="Texts of a sample are blind to each other, too.")
    workers: int | None = Field(
        default=None, gt=0, le=1024, description="Processes that tokenise; by default as many as it is worth."
    )


class Length(Section):
    """How long a run is: its steps, or the samples that they follow from."""

    steps: int | None = Field(default=None, gt=0, description="Optimisation steps; outranks samples and epochs.")
    samples: int | None = Field(default=None, gt=0, description="Samples of the data; counted by default.")
    epochs: int = Field(gt=0, description="Times every sample is seen.")
    warmup: float = Field(ge=0, le=1, description="Share of the steps in which the learning rate rises.")
    decay: float | None = Field(
        default=None, gt=0, le=1, description="Share, the last steps, in which schedule wsd falls; a tenth by default."
    )

    def count(self, global_batch: int, counted: int) -> int:
        """Steps of a run over `counted` samples: SAMPLES * EPOCHS / GLOBAL_BATCH without the rest, and at least one."""
        samples = self.samples or counted
        return self.steps or max(1, samples * self.epochs // global_batch)


class Layout(Section):
    """The layout wished for. The result does not depend on it."""

    tp: int = Field(default=1, gt=0, description="Tensor parallel.")
    pp: int = Field(default=1, gt=0, description="Pipeline parallel.")
    cp: int = Field(default=1, gt=0, description="Context parallel.")
    cards: int = Field(default=1, gt=0, description="Recommended number of cards.")

    @property
    def wishes(self) -> str:
        """What is above 1, such as `TP 8, PP 4`; empty where nothing is."""
        return ", ".join(f"{name.upper()} {size}" for name in ("tp", "pp", "cp") if (size := getattr(self, name)) > 1)


class Resume(Section):
    """What a run begins from."""

    load: Literal[0, 1, 2] = Field(
        default=1, description="0: random weights; 1: weights only; 2: a checkpoint with optimizer and position."
    )
    checkpoint: Path | None = Field(
        default=None, description="Folder of another run's checkpoints, its export, or an adapter, to begin from."
    )
    auto: bool | None = Field(
        default=None,
        description="Go on from the latest own checkpoint. Outranks `checkpoint`. Not given: go on if there is one.",
    )


class Run(Section):
    """One stage of one named model."""

    model: str = Field(description="A name of `tandem train list`.")
    stage: StageName = Field(description="The command's.")
    seed: int = Field(default=1234, ge=0, lt=1 << 63, description="Of data order and random weights.")
    threads: int | None = Field(default=None, gt=0, le=1024, description="CPU threads; left as they are by default.")
    max_position: int | None = Field(default=None, gt=1, description="Bound on seq_length; by default the model's own.")
    export: bool = Field(default=True, description="Write a model folder in Hugging Face format at the end.")
    paths: Paths
    data: DataOptions = DataOptions()
    training: StepConfig
    length: Length
    lora: LoraConfig | None = Field(default=None, description="The adapters; for the stage lora alone.")
    layout: Layout = Layout()
    resume: Resume = Resume()
    launch: Launch = Launch()

    @property
    def mirror(self) -> Mirror | None:
        """Where this host has what is on an object store; None for a run that has nothing there."""
        return None if self.paths.cache is None else mirror_of(self.paths.cache, self.launch.node_rank)

    @property
    def hosts_apart(self) -> bool:
        """Whether each of several hosts has a folder of checkpoints of its own, and they meet on an object store."""
        return self.launch.nodes > 1 and bool(self.mirror and self.mirror.location(self.paths.checkpoints))

    @property
    def names_its_own(self) -> bool:
        """Whether the checkpoints to load from are its own, as the documents have it of a run that goes on."""
        other = self.resume.checkpoint
        return other is not None and os.path.realpath(other) == os.path.realpath(self.paths.checkpoints)

    @property
    def reads(self) -> Literal["pretrain", "sft"]:
        """What the data of the stage is."""
        return "pretrain" if self.stage == "pretrain" else "sft"

    @property
    def exported(self) -> Path:
        """Where the exported model goes."""
        return self.paths.checkpoints / f"{self.stage}_hf"

    @property
    def adapter(self) -> Path:
        """Where adapters go, in PEFT's format."""
        return self.paths.checkpoints / f"{self.stage}_adapter"

    @property
    def mark(self) -> Path:
        """The file that says what the exported model was made from."""
        return self.paths.checkpoints / f"{self.stage}_hf.json"

    def stage_config(self, samples: int) -> StageConfig:
        """The stage with its length, for so many samples in the data.

        Args:
            samples: Counted in the prepared data; not looked at where the run says how long it is.
        """
        steps = self.length.count(self.training.global_batch, samples)
        warmup, share = int(self.length.warmup * steps), self.length.decay
        decay = None if share is None else max(1, int(share * steps))
        return StageConfig(steps=steps, warmup_steps=warmup, decay_steps=decay, **self.training.model_dump())
