"""TrainerConfig: the resolved configuration of one stage of a run. The operator writes it to a ConfigMap as JSON."""

import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from .constants import Stage
from .run_layout import RunLayout, run_name
from .v1alpha1 import ArtifactFormat, AttemptPlan, AttemptStatus, Batching, DataFormat, Dtype, Offload, Spec, Task
from .v1alpha1.training import DEFAULT_EPOCHS


class Message(BaseModel):
    """A block of the contract between operator and trainer: frozen, plain snake_case JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Exchanged(Message):
    """A block that operator and trainer send each other.

    The two may have adjacent versions. Unknown fields are ignored, and fields with their default value are not written.
    Therefore the default of a new field must preserve the previous behavior, and defaults must never change.
    """

    model_config = ConfigDict(extra="ignore")


CONFIG_VERSION = 1
"""Version of the TrainerConfig file. A trainer rejects a file with a higher version."""


class JobRef(Exchanged):
    """The FineTuneJob that the stage belongs to."""

    namespace: str
    name: str
    uid: str


class StorageSettings(Exchanged):
    """How to connect to object storage, with all defaults resolved. boto3 finds the credentials."""

    endpoint: str | None = None
    region: str = "us-east-1"
    path_style: bool = False


class World(Exchanged):
    """The processes of a stage."""

    nodes: int = 1
    processes_per_node: int = 1
    gpus: bool = False
    """True: CUDA and nccl. False: CPU and gloo."""

    @property
    def size(self) -> int:
        """Total number of processes."""
        return self.nodes * self.processes_per_node

    @property
    def gpu_count(self) -> int:
        """Total number of GPUs."""
        return self.size if self.gpus else 0


class BatchPlan(Exchanged):
    """One optimizer step: global_size = world size * micro_size * accumulation. The sizes count rows of the model's
    input: examples, or packs of several examples with `spec.training.batching` Packed."""

    global_size: int
    micro_size: int
    accumulation: int


class SplitCounts(Exchanged):
    """Rows of each split of a prepared dataset."""

    train: int
    validation: int = 0
    test: int = 0


class ExtendedVocabulary(Exchanged):
    """Tokens that `spec.model.vocabulary` has added to the base model."""

    added: int
    """Number of new tokens."""
    original_digest: str
    """Digest of the base model without them."""
    positions: int | None = None
    """Maximum number of tokens that the base model reads at once. Absent: no limit."""
    tokens_per_word: tuple[float, float] = (0.0, 0.0)
    """Of the training split, with the tokenizer of the base model and with the new tokens; a word is a run of
    letters and digits."""


class RuleCounts(Exchanged):
    """What one optional step of the data, for example a rule of `spec.data.cleaning`, did to the records."""

    rule: str
    changed: int = 0
    """Records with other text than in their file."""
    dropped: int = 0
    """Records that are in no split."""
    added: int = 0
    """Changed copies of records in the training split."""


class Prepared(Exchanged):
    """Result of the prepare stage, in its termination message and in the record of the run, which later stages read."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    dataset_uri: str
    """Folder of the prepared dataset, which contains `dataset.json`."""
    dataset_digest: str
    model_digest: str
    """SHA-256 over the names and contents of the base model's files; names their copy under the output prefix. With
    `vocabulary`, of the model with the new tokens."""
    model_revision: str = ""
    """Commit on the hub that the revision of the base model pointed to; empty if the model is not from the hub."""
    requested_revision: str | None = None
    """Revision as written in `spec.model.uri`; empty: the default branch. None: the model is not from the hub."""
    source_digest: str = ""
    """Digest of the listing of the source files before they were read. Empty: written by an older trainer."""
    reused: bool = False
    """True: the prepared dataset already existed."""
    format: DataFormat
    task: Task
    dtype: Dtype
    batching: Annotated[Batching, Field(alias="packing")]
    """How examples share a batch. In the file, the field has the name of its first version."""
    packs: int | None = None
    """Packs of the training split. Absent: the examples are not packed."""
    zero_stage: int
    counts: SplitCounts
    labels: tuple[str, ...] = ()
    """Label names in the order of their ids; empty for language models, and in the termination message."""
    parameters: int = 0
    """Parameters of the base model."""
    frozen_parameters: int = 0
    """Those of them that `spec.method.full.freeze` excludes from the training."""
    trained_parameters: int = 0
    """Parameters that the method trains, as estimated before the model is loaded. 0: written by an older trainer."""
    quantized_parameters: int = 0
    """Parameters of the base model that `spec.model.quantization` quantizes."""
    quantized_bytes: int = 0
    """Size of the weights of the quantized base model, including those that are not quantized."""
    rules: tuple[RuleCounts, ...] = ()
    """Of the optional steps of the data, in their order."""
    test_tokens: int | None = None
    """Tokens of the test split. Absent: written by an older trainer."""
    regression_tokens: int = 0
    """Tokens of all sets of `spec.evaluation.regressionSets`."""
    memory_estimate_bytes: int = 0
    """Estimated memory of one training process; with GPUs, that of its GPU."""
    memory_fingerprint: str = ""
    """The settings that it was estimated for, from `rules.memory_fingerprint`."""
    host_estimate_bytes: int = 0
    """Estimated host memory of one worker with GPUs. 0: without GPUs, or written by an older trainer."""
    offload: Offload = Offload.NONE
    """What is kept in host memory, if `spec.deepspeed.offload` is absent."""
    micro_batch_limit: int | None = None
    """Largest micro-batch that fits in the memory. Absent: the one that `batch` of the configuration has does."""
    micro_batch_memory: str | None = None
    """The memory of the workers or of their GPUs that it was computed for, as in `rules.limiting_memory`."""
    supports_gradient_checkpointing: bool = True
    """False: the base model cannot recompute its activations, so gradient checkpointing is disabled regardless of the
    spec."""
    vocabulary: ExtendedVocabulary | None = None
    """Absent: training uses the vocabulary of the base model."""
    notes: tuple[str, ...] = ()
    """Warnings and counts for the user, one line each."""
    warnings: tuple[str, ...] = ()
    """Warnings about the base model that affect the result or override the spec; also in status and report."""

    @property
    def original_model_digest(self) -> str:
        """Digest of the base model as it is at `spec.model.uri`."""
        return self.model_digest if self.vocabulary is None else self.vocabulary.original_digest

    @property
    def training_rows(self) -> int:
        """Rows of the model's input in an epoch, which the batch sizes count: examples or packs."""
        return self.counts.train if self.packs is None else self.packs


class TrainerConfig(Exchanged):
    """Configuration of one stage of a run."""

    version: int = CONFIG_VERSION
    """Version of the file's format."""
    job: JobRef
    run: int
    stage: Stage
    attempt: int = 0
    """Attempt at the stage, from 1."""
    generation: int | None = None
    """How often the processes of this attempt were started before; absent: never. A higher number fences a lower one.

    The operator does not set it, because each of its attempts starts its processes once. It is for a supervisor that
    restarts its ranks within an attempt."""
    spec: Spec
    storage: StorageSettings
    world: World
    batch: BatchPlan
    plan: AttemptPlan | None = None
    """Plan of a training attempt, from which `world` and `batch` follow."""
    prepared: Prepared | None = None
    """Absent in the file; train and evaluate read it from the run's record in storage."""
    attempts: tuple[AttemptStatus, ...] = ()
    """The attempts so far, for the report; evaluate stage only."""

    def to_json(self) -> str:
        """Encode without fields that have their default, so that an older trainer can read it.

        It cannot if the spec uses a field that it does not support.
        """
        content = {"version": self.version, **self.model_dump(mode="json", exclude_defaults=True)}
        return json.dumps(content, indent=2, ensure_ascii=False)

    @property
    def run_name(self) -> str:
        """`r0001`."""
        return run_name(self.run)

    @property
    def output_uri(self) -> str:
        """`spec.output.uri` without a trailing slash."""
        return self.spec.output.uri.rstrip("/")

    @property
    def layout(self) -> RunLayout:
        """Addresses of this run in object storage."""
        return RunLayout.of(self.output_uri, self.run, self.job.uid)

    @property
    def run_uri(self) -> str:
        """Folder of this run in object storage."""
        return self.layout.uri

    @property
    def model_uri(self) -> str:
        """Folder of the exported model."""
        return self.layout.artifact(ArtifactFormat.MERGED)


class PreparedConfig(TrainerConfig):
    """Configuration of a stage after prepare, with the result of prepare."""

    prepared: Prepared

    @classmethod
    def of(cls, config: TrainerConfig, prepared: Prepared) -> "PreparedConfig":
        """Add the result of prepare to a configuration."""
        return cls.model_validate(dict(config) | {"prepared": prepared})

    def with_learning_rate(self, rate: float) -> "PreparedConfig":
        """Set `spec.training.learningRate`, which is absent if the train stage chooses it."""
        training = self.spec.training.model_copy(update={"learning_rate": rate})
        return self.model_copy(update={"spec": self.spec.model_copy(update={"training": training})})

    def with_micro_batch(self, size: int) -> "PreparedConfig":
        """Divide a step into micro-batches of this size, which must divide the rows of a process per step."""
        total = self.batch.global_size
        batch = BatchPlan(global_size=total, micro_size=size, accumulation=total // self.world.size // size)
        return self.model_copy(update={"batch": batch})

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; the last batch has padding rows. A pack is one row."""
        return -(-self.prepared.training_rows // self.batch.global_size)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training, unless early stopping ends it."""
        training = self.spec.training
        return training.max_steps or self.steps_per_epoch * (training.epochs or DEFAULT_EPOCHS)
