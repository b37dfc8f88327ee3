"""`spec.checkpoint`, `spec.evaluation`, `spec.output` and `spec.storage`."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field

from .base import ENDPOINT_PATTERN, ApiModel, Duration, S3Uri, SecretName, matching
from .baselines import SimpleBaseline
from .data import DataFormat, Source
from .promotion import Promotion
from .scope import Scope

DEFAULT_MAX_LOST_WORK = "10m"
"""Value of `checkpoint.maxLostWork` if neither it nor `everySteps` is set."""


class Checkpoint(ApiModel, scope=Scope.ATTEMPT):
    """When checkpoints are saved, and which are kept. At most one of `maxLostWork` and `everySteps`."""

    max_lost_work: Duration | None = None
    """Save often enough that a crash loses at most this much work. If saves would then take more than 3.5 % of the
    time, they are less frequent and a warning reports it. Absent, and no `everySteps`: 10m."""

    every_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Save after this many optimizer steps."""

    upload_timeout: Duration | None = None
    """Fail the attempt, which is then retried, if a checkpoint has not been stored within this time after its snapshot
    was taken. Absent: continue training during an outage of storage."""

    keep_last: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Keep this many of the newest checkpoints. If the newest is damaged, the run resumes from the one before it."""

    keep_best: Annotated[int, Field(ge=0, le=10_000)] = 1
    """Also keep this many of the checkpoints that were the best so far when they were saved, by the metric of
    `training.earlyStopping`, which requires at least 1."""

    keep_every: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Never delete the first checkpoint at or after every multiple of this many steps. 1 keeps all. Absent: none."""

    def without_fixed_defaults(self) -> Self:
        """Without `maxLostWork` if it is set to its default and applies."""
        is_default = self.max_lost_work == DEFAULT_MAX_LOST_WORK and self.every_steps is None
        return self.model_copy(update={"max_lost_work": None}) if is_default else self


class RegressionSource(Source, scope=Scope.EVALUATION):
    """Files of a regression set, which must not be trained on."""


class RegressionSet(ApiModel, scope=Scope.EVALUATION):
    """Records on which the trained model should not be worse than the base model, such as general text."""

    name: Annotated[
        str, matching(r"^[a-z0-9]+(-[a-z0-9]+)*$", "a name of a-z, 0-9 and '-', such as general", max_length=32)
    ]
    """Name in status and report."""

    sources: Annotated[tuple[RegressionSource, ...], Field(min_length=1, max_length=64)]
    """Files of a regression set, which must not be trained on."""

    format: DataFormat | None = None
    """How a record becomes an example. It must be a format of the task. `data.columns` applies. Absent: the format of
    the training data."""


class Evaluation(ApiModel, scope=Scope.EVALUATION):
    """How the model is evaluated, during and after training."""

    every_steps: Annotated[Annotated[int, Field(ge=1, le=10_000_000)] | None, Scope.RUN] = None
    """Evaluate the validation split after this many optimizer steps. Absent: at the end of every epoch."""

    base_model: bool = True
    """Also evaluate the base model on the test split, with the same code."""

    simple_baselines: Annotated[tuple[SimpleBaseline, ...], Field(max_length=8)] | None = None
    """Simple models that are fitted to the training split and compared with the trained model on the test split.
    MajorityClass always predicts the most frequent label; TfidfLogisticRegression is a linear model on the TF-IDF
    weights of the tokens, SequenceClassification only. Absent: all that the task supports. []: none."""

    regression_sets: Annotated[tuple[RegressionSet, ...], Field(max_length=4)] = ()
    """Sets of other records on which base and trained model are compared, to find out what the model has forgotten. The
    rules of `data.cleaning` that change texts apply; the others do not compare training records with these."""

    prompts: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=8192)], ...], Field(max_length=32)] = ()
    """Prompts that are answered before and after training, for the report. CausalLM only."""

    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    """Maximum length of these answers, in tokens."""

    promote: Promotion | None = None
    """Promote the model to `<output.uri>/promoted/` if it meets these conditions. Absent: models are promoted only by
    `finetune promote`."""


class ArtifactFormat(StrEnum):
    """Format in which the model is exported."""

    MERGED = "Merged"
    ADAPTER = "Adapter"
    INT8 = "Int8"
    GGUF = "GGUF"
    COMPRESSED_TENSORS = "CompressedTensors"

    @property
    def is_quantized(self) -> bool:
        """Whether the weights are quantized. Such a format is made from the complete model, without training."""
        return self not in (ArtifactFormat.MERGED, ArtifactFormat.ADAPTER)


class GgufType(StrEnum):
    """How a GGUF file stores the matrices of the transformer layers."""

    F16 = "F16"
    BF16 = "BF16"
    Q8_0 = "Q8_0"
    Q5_0 = "Q5_0"
    Q4_0 = "Q4_0"


class Gguf(ApiModel, scope=Scope.EVALUATION):
    """The files of the format GGUF."""

    types: Annotated[tuple[GgufType, ...], Field(min_length=1, max_length=5)] = (GgufType.Q8_0,)
    """One file for each type. F16 and BF16 have 16 bits for each weight; Q8_0, Q5_0 and Q4_0 have 8, 5 and 4 bits, and
    a scale of 16 bits for 32 weights. With Q5_0 and Q4_0, the embeddings and the output matrix are Q8_0."""


class CompressedTensorsScheme(StrEnum):
    """How the weights of the linear layers are quantized. The names are those of compressed-tensors."""

    W8A16 = "W8A16"
    """8 bits for each weight, and a scale for each row."""
    W4A16 = "W4A16"
    """4 bits for each weight, and a scale for 128 weights of a row. The number of inputs of every layer must be a
    multiple of 128."""


class CompressedTensors(ApiModel, scope=Scope.EVALUATION):
    """The folder of the format CompressedTensors."""

    scheme: CompressedTensorsScheme = CompressedTensorsScheme.W8A16
    """How the weights of the linear layers are quantized. Embeddings and head keep their type. Weights are rounded to
    the nearest level, without calibration data."""


class Output(ApiModel, scope=Scope.RUN):
    """Where the output of the job is stored."""

    uri: S3Uri
    """Prefix for datasets, checkpoints, models and reports."""

    formats: Annotated[tuple[ArtifactFormat, ...], Field(min_length=1, max_length=5), Scope.EVALUATION] = (
        ArtifactFormat.MERGED,
    )
    """Merged is a complete model in Hugging Face layout; Adapter is the PEFT adapter alone; Int8 is a complete model in
    Hugging Face layout with weights of 8 bits (bitsandbytes); GGUF is a folder of files for llama.cpp, for language
    models of the types llama, qwen2 and qwen3; CompressedTensors is a complete model in Hugging Face layout with
    weights of 8 or 4 bits for vLLM. The size, speed and accuracy of Int8, GGUF and CompressedTensors are in the
    report."""

    gguf: Annotated[Gguf | None, Scope.EVALUATION] = None
    """Types of the format GGUF. Absent: Q8_0."""

    @property
    def gguf_types(self) -> tuple[GgufType, ...]:
        """Types of the GGUF files; empty without the format."""
        if ArtifactFormat.GGUF not in self.formats:
            return ()
        return (self.gguf or Gguf()).types

    compressed_tensors: Annotated[CompressedTensors | None, Scope.EVALUATION] = None
    """Scheme of the format CompressedTensors. Absent: W8A16."""

    @property
    def compressed_tensors_scheme(self) -> CompressedTensorsScheme:
        """Scheme of the format CompressedTensors, if it is in `formats`."""
        return (self.compressed_tensors or CompressedTensors()).scheme

    keep_runs: Annotated[Annotated[int, Field(ge=1, le=10_000)] | None, Scope.ATTEMPT] = None
    """After each evaluation, keep only the files of the current run and of the newest others, this many in total. The
    runs of the promoted model and of the one before it are always kept. Absent: keep all."""


class Storage(ApiModel, scope=Scope.ATTEMPT):
    """How to connect to object storage. Absent fields: the operator's settings."""

    endpoint: (
        Annotated[
            str,
            matching(
                ENDPOINT_PATTERN,
                "a URL such as https://s3.example.com or https://host/storage/v1/s3",
                max_length=512,
            ),
        ]
        | None
    ) = None
    """URL of an S3-compatible server, including the path before the bucket, if any. Absent: AWS."""

    region: Annotated[str, matching(r"^[a-z0-9-]+$", "a region such as us-east-1", max_length=64)] | None = None
    """Region that requests are signed for. Absent: us-east-1."""

    path_style: bool | None = None
    """`endpoint/bucket/key` instead of `bucket.endpoint/key`. Absent: true where `endpoint` is set."""

    credentials_secret: SecretName | None = None
    """Secret with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and optionally AWS_SESSION_TOKEN and HF_TOKEN.

    It is mounted into the pods as files. Absent: the operator's default, or the workload identity of the service
    account. Local runs use the credentials of the environment.
    """
