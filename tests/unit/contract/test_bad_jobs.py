"""All violations of invalid input are reported with path, value and fix."""

from typing import Any

import pytest

from finetune_api.v1alpha1 import Method
from finetune_api.validation import InvalidJobError, parse_job

METHODS = ", ".join(Method.blocks())


CLASSIFIED = {"train": [{"uri": "s3://bucket/train.jsonl"}], "format": "Classification"}
TEXTS = {"train": [{"uri": "s3://bucket/train.jsonl"}], "format": "Text"}


def job_with(path: str, value: Any) -> dict[str, Any]:
    """A minimal job with one field set, `spec.training.learningRate` style; None removes the field."""
    manifest: dict[str, Any] = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "example"},
        "spec": {
            "model": {"uri": "s3://bucket/model"},
            "data": {"train": [{"uri": "s3://bucket/train.jsonl"}]},
            "training": {"learningRate": 2e-5},
            "output": {"uri": "s3://bucket/out"},
        },
    }
    *parents, last = path.split(".")
    target = manifest
    for part in parents:
        target = target.setdefault(part, {})
    if value is None:
        del target[last]
    else:
        target[last] = value
    return manifest


def _preference_with(path: str, value: Any) -> dict[str, Any]:
    """The spec of a minimal job for preferences with one field set."""
    spec: dict[str, Any] = job_with(path, value)["spec"]
    spec["data"] = spec["data"] | {"format": "Preference"}
    return {"method": {"lora": {}}} | spec


def complaints(manifest: dict[str, Any], *, local: bool = False) -> list[str]:
    with pytest.raises(InvalidJobError) as caught:
        parse_job(manifest, local=local)
    return [str(violation) for violation in caught.value.violations]


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("spec.training.learningrate", 1e-4, "spec.training.learningrate: unknown field; did you mean learningRate?"),
        ("spec.training.epoch", 3, "spec.training.epoch: unknown field; did you mean epochs?"),
        ("spec.trainig", {}, "spec.trainig: unknown field; did you mean training?"),
        ("spec.method.lora.rnak", 8, "spec.method.lora.rnak: unknown field; did you mean rank?"),
        ("spec.model.zzz", 1, "spec.model.zzz: unknown field; known fields: uri, task, vocabulary, dtype"),
        ("spec.output.uri", None, "spec.output.uri must be set to"),
        (
            "spec.training.learningRate",
            "2e-4",
            'spec.training.learningRate must be a number, not "2e-4"; write it without quotes',
        ),
        ("spec.training.epochs", 0, "spec.training.epochs must be at least 1, not 0"),
        ("spec.training.epochs", 2.5, "spec.training.epochs must be an integer, not 2.5"),
        ("spec.training.learningRateSchedule", "cosine", "did you mean Cosine?"),
        ("spec.data.format", "Chatt", "did you mean Chat?"),
        (
            "spec.model.uri",
            "bucket/model",
            "spec.model.uri must be s3://bucket/prefix, hf://",
        ),
        (
            "spec.output.uri",
            "s3://My_Bucket/x",
            "spec.output.uri must be an address such as s3://bucket/prefix (a bucket's name has 3 to",
        ),
        ("spec.data.train", [], "spec.data.train must have at least 1 entry, not 0"),
        (
            "spec.checkpoint.keepLast",
            0,
            "spec.checkpoint.keepLast must be at least 1, not 0",
        ),
        ("spec.checkpoint.keepBest", -1, "spec.checkpoint.keepBest must be at least 0, not -1"),
        ("spec.checkpoint.keepEvery", 0, "spec.checkpoint.keepEvery must be at least 1, not 0"),
        (
            "metadata.name",
            "Upper",
            "metadata.name must be a name of a-z, 0-9 and '-', with a letter or digit at both ends, not \"Upper\"",
        ),
        ("metadata.name", "x" * 41, "metadata.name must have at most 40 characters"),
        ("kind", "Job", 'kind must be FineTuneJob, not "Job"'),
        ("spec.data.test", [], "spec.data.test must be an object with sources or fraction, not a list"),
        ("spec.data.train", {}, "spec.data.train must be a list of objects with uri, not an object"),
        (
            "spec.output.formats",
            "Merged",
            "spec.output.formats must be a list, each entry one of Merged, Adapter, Int8, GGUF or CompressedTensors",
        ),
        ("spec.evaluation.prompts", "Hi", 'spec.evaluation.prompts must be a list, each entry text, not "Hi"'),
        (
            "spec.workers.imagePullSecrets",
            "x",
            "must be a list, each entry the name of an object in the job's namespace",
        ),
        (
            "spec.method.full",
            {"rank": 1},
            "spec.method.full.rank: unknown field; known fields: freeze, pruning, layerLearningRateDecay, "
            "gradualUnfreezing",
        ),
        ("spec.training.learning_rate", 1, "spec.training.learning_rate: unknown field; did you mean learningRate?"),
        ("spec.suspend", "true", 'spec.suspend must be true or false, not "true"; write it without quotes'),
        ("spec.runId", "a", "spec.runId: unknown field; it is called runNonce now"),
        (
            "spec.training.schedule",
            "Cosine",
            "spec.training.schedule: unknown field; it is called learningRateSchedule",
        ),
        ("spec.evaluation.baselines", [], "spec.evaluation.baselines: unknown field; it is called simpleBaselines now"),
        ("spec.evaluation.baseline", False, "spec.evaluation.baseline: unknown field; it is called baseModel now"),
        ("spec.data.packing", "Packed", "spec.data.packing: unknown field; it is called spec.training.batching now"),
        (
            "spec.checkpoint.maxStaleness",
            "1m",
            "spec.checkpoint.maxStaleness: unknown field; it is called uploadTimeout",
        ),
        (
            "spec.method",
            {"lora": {"targets": ["q"]}},
            "spec.method.lora.targets: unknown field; did you mean targetModules",
        ),
        ("spec.runNonce", 7, "spec.runNonce must be letters, digits, '.', '_' and '-', not 7"),
        ("spec.checkpoint.maxLostWork", 5, "spec.checkpoint.maxLostWork must be a duration such as 90s, 10m or 1h30m"),
        ("spec.workers", 2, "spec.workers must be an object with nodes, minNodes"),
        ("spec.workers.resources.limits", {"cpu": "many"}, "limits.cpu must be a quantity such as 500m, 0.5, 2"),
        ("spec.workers.nodeSelector", {"zone": 1}, "spec.workers.nodeSelector.zone must be text, not 1; write it in"),
        ("spec.model", None, "spec.model must be set to an object with uri"),
    ],
)
def test_a_wrong_field_is_reported_with_its_value_and_the_fix(path: str, value: Any, expected: str) -> None:
    assert any(expected in complaint for complaint in complaints(job_with(path, value)))


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("spec.method", {}, f"spec.method must have exactly one of {METHODS}, not none"),
        (
            "spec.method",
            {"full": {}, "lora": {}},
            f"spec.method must have exactly one of {METHODS}, not both",
        ),
        (
            "spec.training",
            {"learningRate": 1, "epochs": 1, "maxSteps": 5},
            "spec.training must not have both epochs and maxSteps",
        ),
        ("spec.training.warmup", {"ratio": 0.1, "steps": 5}, "spec.training.warmup must not have both ratio and steps"),
        (
            "spec.method",
            {"full": {"freeze": {"embeddings": False}}},
            "spec.method.full.freeze must have at least one of embeddings, firstLayers, patterns; write one of them",
        ),
        ("spec.method", {"full": {"freeze": {"firstLayers": 1}}}, None),
        *(
            (
                "spec.method",
                {"full": {"gradualUnfreezing": dict.fromkeys(given, 2)}},
                "spec.method.full.gradualUnfreezing must have exactly one of epochsPerPhase, stepsPerPhase, not "
                f"{found}; write one of them",
            )
            for given, found in (((), "none"), (("epochsPerPhase", "stepsPerPhase"), "both"))
        ),
        ("spec.method", {"full": {"gradualUnfreezing": {"epochsPerPhase": 1, "startLayers": 4}}}, None),
        (
            "spec.method",
            {"full": {"pruning": {"algorithm": "Wanda"}}},
            "spec.method.full.pruning.sparsity must be set for the algorithm Wanda; write a value",
        ),
        (
            "spec.method",
            {"full": {"pruning": {"algorithm": "DropLayers", "layers": 1, "sparsity": 0.5}}},
            "spec.method.full.pruning.sparsity must be absent for the algorithm DropLayers; remove it, or write "
            "algorithm: Magnitude or Wanda",
        ),
        (
            "spec.method",
            {"full": {"pruning": {"algorithm": "Magnitude", "sparsity": 0.5, "layers": 1}}},
            "spec.method.full.pruning.layers must be absent for the algorithm Magnitude; remove it, or write "
            "algorithm: DropLayers",
        ),
        ("spec.method", {"full": {"pruning": {"algorithm": "DropLayers", "layers": 1}}}, None),
        (
            "spec.checkpoint",
            {"maxLostWork": "5m", "everySteps": 3},
            "spec.checkpoint must not have both maxLostWork and everySteps",
        ),
        (
            "spec.training",
            {"learningRate": 1, "maxSteps": 5, "warmup": {"steps": 5}},
            "spec.training.warmup.steps must be less than spec.training.maxSteps, 5, not 5",
        ),
        (
            "spec.training",
            {"learningRate": 1, "scheduleOptions": {"power": 3.0}},
            "spec.training.scheduleOptions.power must be absent with learningRateSchedule Linear, which does not use "
            "it; remove it, or set spec.training.learningRateSchedule to Polynomial",
        ),
        (
            "spec.training",
            {
                "learningRate": 1,
                "learningRateSchedule": "Constant",
                "scheduleOptions": {"minLearningRateRatio": 0.1},
            },
            "to Linear, Cosine, Polynomial, CosineWithRestarts, WarmupStableDecay or ReduceOnPlateau",
        ),
        *(
            (
                "spec.training",
                {
                    "learningRate": 1,
                    "maxSteps": 10,
                    "learningRateSchedule": "WarmupStableDecay",
                    "warmup": {"steps": steps},
                    "scheduleOptions": {"decayRatio": ratio},
                },
                expected and "spec.training.scheduleOptions.decayRatio must be at most " + expected,
            )
            for steps, ratio, expected in (
                (8, 0.9, "1 - spec.training.warmup.steps / maxSteps, 0.2, not 0.9; lower one of them"),
                (1, 0.91, "1 - spec.training.warmup.steps / maxSteps, 0.9, not 0.91; lower one of them"),
                *((steps, (10 - steps) / 10, None) for steps in range(10)),
            )
        ),
        (
            "spec.training",
            {"learningRate": 1, "learningRateSchedule": "WarmupStableDecay", "warmup": {"ratio": 0.85}},
            "spec.training.scheduleOptions.decayRatio must be at most 1 - spec.training.warmup.ratio, 0.15, not 0.2; "
            "lower one of them",
        ),
        (
            "spec.training",
            {
                "learningRate": 1,
                "learningRateSchedule": "CosineWithRestarts",
                "scheduleOptions": {"minLearningRateRatio": 0.1},
            },
            None,
        ),
        ("spec.training", {"maxSteps": 3, "gradientCheckpointingEveryNLayers": 4}, None),
        ("spec.training", {"gradientCheckpointing": False, "gradientCheckpointingEveryNLayers": 1}, None),
        (
            "spec.training",
            {"gradientCheckpointing": False, "gradientCheckpointingEveryNLayers": 4},
            "spec.training.gradientCheckpointingEveryNLayers must be absent or 1 with gradientCheckpointing: false, "
            "which recomputes no layer, not 4; remove it, or write gradientCheckpointing: true",
        ),
        (
            "spec.training.gradientCheckpointingEveryNLayers",
            0,
            "spec.training.gradientCheckpointingEveryNLayers must be at least 1, not 0",
        ),
        (
            "spec",
            job_with("spec.training.chunkedLoss", True)["spec"] | {"deepspeed": {"zeroStage": 3}},
            "spec.training.chunkedLoss must be false with ZeRO stage 3",
        ),
        (
            "spec",
            job_with("spec.training.chunkedLoss", True)["spec"] | {"data": CLASSIFIED},
            "spec.training.chunkedLoss must be false for SequenceClassification, which has few logits; remove it",
        ),
        (
            "spec",
            job_with("spec.training.earlyStopping", {})["spec"] | {"checkpoint": {"keepBest": 0}},
            "spec.checkpoint.keepBest must be at least 1, not 0: early stopping exports the best checkpoint; write 1,",
        ),
        ("spec.checkpoint", {"keepBest": 0}, None),
        (
            "spec",
            job_with("spec.training.overfitting", {"action": "Stop"})["spec"] | {"checkpoint": {"keepBest": 0}},
            "spec.checkpoint.keepBest must be at least 1, not 0: overfitting with action Stop exports the best "
            "checkpoint; write 1, or set spec.training.overfitting.action to Warn",
        ),
        (
            "spec",
            job_with("spec.training.overfitting", {})["spec"]
            | {"data": {"train": [{"uri": "s3://bucket/t.csv"}], "validation": {"fraction": 0}}},
            "spec.training.overfitting must have a validation split; set spec.data.validation.fraction above 0",
        ),
        (
            "spec",
            job_with("spec.training.learningRateSchedule", "ReduceOnPlateau")["spec"]
            | {"data": {"train": [{"uri": "s3://bucket/t.csv"}], "validation": {"fraction": 0}}},
            "spec.training.learningRateSchedule must not be ReduceOnPlateau without a validation split; set",
        ),
        (
            "spec.workers",
            {"nodes": 2, "minNodes": 4},
            "spec.workers.minNodes must be at most spec.workers.nodes, 2, not 4; write 2",
        ),
        (
            "spec.workers",
            {"nodes": 4, "minNodes": 3},
            "spec.workers.minNodes must be a number of workers that divides the global batch of 16 evenly, not 3; "
            "write 1 or 2 or 4",
        ),
        (
            "spec.workers",
            {"nodes": 4, "startTimeout": "1m"},
            "spec.workers.startTimeout must be absent without minNodes",
        ),
        ("spec.workers", {"nodes": 4, "minNodes": 2, "startTimeout": "1m"}, None),
        ("spec.data.test", {}, "spec.data.test must have exactly one of sources, fraction, not none"),
        (
            "spec.data.test",
            {"sources": [{"uri": "s3://bucket/t.jsonl"}], "stratify": True},
            "spec.data.test.stratify must be absent without fraction",
        ),
        *(
            (
                "spec.data",
                CLASSIFIED
                | {"columns": columns}
                | {name: {"fraction": 0.1, "groupBy": column} for name in ("validation", "test")},
                expected,
            )
            for columns, column, expected in (
                (
                    {},
                    "label",
                    "spec.data.test.groupBy must not be the column of the labels, label, because all records",
                ),
                ({"label": "kind"}, "kind", "spec.data.validation.groupBy must not be the column of the labels, kind"),
                ({"label": "kind"}, "label", None),
                ({}, "text", None),
            )
        ),
        (
            "spec.data.test",
            {"sources": [{"uri": "s3://bucket/t.jsonl"}], "groupBy": "user"},
            "spec.data.test.groupBy must be absent unless fraction is above 0",
        ),
        (
            "spec.data.test",
            {"fraction": 0.1, "groupBy": "user", "stratify": True},
            "spec.data.test.stratify must not be true with groupBy",
        ),
        (
            "spec.data.test",
            {"fraction": 0.1, "groupBy": "user"},
            "groupBy must be the same column for validation and test",
        ),
        (
            "spec.data.cleaning",
            {"minChars": 5, "maxChars": 4},
            "spec.data.cleaning.minChars must be at most maxChars, 4, not 5; lower it, or raise maxChars",
        ),
        ("spec.data.cleaning", {"minChars": 5, "maxChars": 5, "testOverlap": True}, None),
        ("spec.data.cleaning", {"languages": ["en", "zh", "sdh"]}, None),
        (
            "spec.data.cleaning",
            {"languages": ["en", "xx"]},
            "spec.data.cleaning.languages[1] must be the ISO 639 code of a known language, such as en or de, not "
            '"xx": the known codes are ace, af, am, an, ar,',
        ),
        ("spec.data.cleaning", {"languages": ["en_US"]}, 'such as en or de, not "en_US": write en'),
        ("spec.data.cleaning", {"languages": ["DE"]}, 'such as en or de, not "DE": write de'),
        ("spec.data.cleaning", {"quality": {}}, None),
        ("spec.data", {**TEXTS, "format": None, "trainOnInputs": True}, None),
        ("spec.data", {**TEXTS, "format": "Instruction", "trainOnInputs": True}, None),
        ("spec.data", {**TEXTS, "format": "Chat", "trainOnInputs": True}, None),
        ("spec.data", {**TEXTS, "trainOnInputs": False}, None),
        (
            "spec.data",
            {**TEXTS, "trainOnInputs": True},
            "spec.data.trainOnInputs must be absent or false for the format Text, of which every token carries loss "
            "anyway; remove it",
        ),
        (
            "spec.data",
            {**CLASSIFIED, "trainOnInputs": True},
            "spec.data.trainOnInputs must be absent or false for the format Classification, whose targets are labels "
            "instead of tokens; remove it",
        ),
        ("spec.data", {**TEXTS, "cleaning": {"quality": {"minWords": 5}, "maxChars": 9, "languages": ["en"]}}, None),
        (
            "spec.data",
            {**CLASSIFIED, "cleaning": {"quality": {}}},
            "spec.data.cleaning.quality must be absent with the format Classification, because its limits are for",
        ),
        (
            "spec.data.cleaning",
            {"quality": {"minWords": 60, "maxWords": 59}},
            "spec.data.cleaning.quality.minWords must be at most maxWords, 59, not 60; lower it, or raise maxWords",
        ),
        (
            "spec.data.cleaning",
            {"quality": {"minMeanWordLength": 5, "maxMeanWordLength": 4.5}},
            "spec.data.cleaning.quality.minMeanWordLength must be at most maxMeanWordLength, 4.5, not 5.0; lower it,",
        ),
        (
            "spec.data.cleaning",
            {"quality": {}, "maxChars": 98},
            "spec.data.cleaning.quality.minWords must fit into maxChars, 98, but 50 words with spaces have at least 99 "
            "characters; lower it, or raise maxChars",
        ),
        (
            "spec.data.cleaning",
            {"quality": {}, "languages": ["en", "de"]},
            "spec.data.cleaning.quality.minStopWords must be 0 with languages other than en, not 2, because the stop",
        ),
        ("spec.data.cleaning", {"quality": {"minStopWords": 0}, "languages": ["en", "de"]}, None),
        (
            "spec.data.cleaning",
            {"quality": {"minStopWords": 0}, "languages": ["zh", "en", "ja"]},
            "spec.data.cleaning.quality must be absent with the language ja, whose words are not separated by spaces; "
            "remove it, or remove ja, zh from languages",
        ),
        (
            "spec.data.cleaning.quality",
            {"maxTopNgrams": [0.2, 0.1]},
            "spec.data.cleaning.quality.maxTopNgrams must have at least 3 entries, not 2",
        ),
        (
            "spec.data",
            {
                "train": [{"uri": "s3://bucket/t.jsonl"}],
                "validation": {"fraction": 0},
                "test": {"fraction": 0},
                "cleaning": {"testOverlap": True},
            },
            "spec.data.cleaning.testOverlap must be false without held-out records",
        ),
        (
            "spec.data",
            {
                "train": [{"uri": "s3://bucket/t.jsonl"}],
                "format": "TokenClassification",
                "cleaning": {"redact": ["Email", "Phone", "Iban"]},
            },
            "spec.data.cleaning.redact must not have Phone, Iban with the format TokenClassification",
        ),
        (
            "spec.data.validation",
            {"fraction": 0.9},
            "spec.data must leave data to train on, but validation.fraction and test.fraction add up to 1",
        ),
        (
            "spec.workers.nodes",
            3,
            "globalBatchSize must be divisible by the number of training processes, 3, not 16; write 15 or 18",
        ),
        (
            "spec.workers",
            {"nodes": 4, "gpusPerNode": 8},
            "must be divisible by the number of training processes, 32, not 16; write 32",
        ),
        (
            "spec.training.microBatchSize",
            5,
            "spec.training.microBatchSize must divide the 16 examples that each process gets per step, not 5",
        ),
        (
            "spec",
            job_with("spec.model.task", "CausalLM")["spec"]
            | {"data": {"train": [{"uri": "s3://bucket/t.csv"}], "format": "Classification"}},
            "spec.model.task must fit spec.data.format, Classification, and CausalLM does not",
        ),
        (
            "spec",
            job_with("spec.model.task", "SequenceClassification")["spec"] | {"evaluation": {"prompts": ["Hi"]}},
            "spec.evaluation.prompts must be empty for a classifier",
        ),
        ("spec.evaluation.promote", {}, None),
        ("spec.evaluation.promote", {"metric": "MacroF1", "thresholds": [{"metric": "Loss", "max": 1}]}, None),
        ("spec.evaluation.promote", {"thresholds": [{"metric": "Accuracy", "min": 0.8, "max": 0.8}]}, None),
        (
            "spec",
            job_with("spec.model.task", "SequenceClassification")["spec"]
            | {"evaluation": {"promote": {"metric": "Perplexity"}}},
            "spec.evaluation.promote.metric must be a metric of classifiers, not Perplexity; write Loss, Accuracy",
        ),
        (
            "spec",
            job_with("spec.model.task", "SequenceClassification")["spec"]
            | {"evaluation": {"promote": {"thresholds": [{"metric": "EntityF1", "min": 0.5}]}}},
            "spec.evaluation.promote.thresholds[].metric must be a metric of classifiers, not EntityF1; write Loss",
        ),
        (
            "spec.evaluation.promote",
            {"thresholds": [{"metric": "Accuracy", "min": 90}]},
            "spec.evaluation.promote.thresholds[0].min must be between 0 and 1, a share, not 90; write 0.9 for 90 %",
        ),
        (
            "spec.evaluation.promote",
            {"thresholds": [{"metric": "Loss", "max": 1}, {"metric": "Loss"}]},
            "spec.evaluation.promote.thresholds[1] must have at least one of min, max; write one of them",
        ),
        (
            "spec.evaluation.promote",
            {"thresholds": [{"metric": "Loss", "min": 2, "max": 1.5}]},
            "spec.evaluation.promote.thresholds[0].min must be at most max, 1.5, not 2; exchange them, or remove one",
        ),
        (
            "spec.evaluation.promote",
            {"minGainOverPromoted": float("nan")},
            "spec.evaluation.promote.minGainOverPromoted must be a finite number, not NaN",
        ),
        (
            "spec",
            job_with("spec.model.task", "CausalLM")["spec"]
            | {
                "data": {"train": [{"uri": "s3://bucket/t.csv"}], "format": "Text"},
                "evaluation": {"simpleBaselines": ["MajorityClass"]},
            },
            "spec.evaluation.simpleBaselines must not have MajorityClass for a language model; remove it",
        ),
        (
            "spec",
            job_with("spec.model.task", "TokenClassification")["spec"]
            | {
                "data": {"train": [{"uri": "s3://bucket/t.csv"}], "format": "TokenClassification"},
                "evaluation": {"simpleBaselines": ["MajorityClass", "TfidfLogisticRegression"]},
            },
            "spec.evaluation.simpleBaselines must not have TfidfLogisticRegression for a token classifier; write",
        ),
        ("spec.evaluation", {"simpleBaselines": []}, None),
        (
            "spec.method",
            {"lora": {"init": "PiSSA", "variant": "DoRA"}},
            "spec.method.lora.init must not be PiSSA with variant DoRA, whose update the exported adapter of twice the "
            "rank would not have; remove init or variant",
        ),
        (
            "spec",
            job_with("spec.model", {"uri": "s3://bucket/m", "quantization": "NF4"})["spec"]
            | {"method": {"lora": {"init": "PiSSA"}}},
            "spec.method.lora.init must not be PiSSA with spec.model.quantization, because its singular vectors",
        ),
        ("spec.method", {"lora": {"init": "PiSSA"}}, None),
        (
            "spec",
            job_with("spec.model", {"uri": "s3://bucket/m", "task": "MaskedLM", "vocabulary": {"add": ["a"]}})["spec"]
            | {"data": {"train": [{"uri": "s3://bucket/t.csv"}], "format": "Text"}},
            "spec.model.vocabulary must be absent with task MaskedLM, because base model and trained model would be",
        ),
        (
            "spec",
            job_with("spec.model.task", "MaskedLM")["spec"]
            | {"data": {"train": [{"uri": "s3://bucket/t.csv"}], "format": "Instruction"}},
            "spec.model.task must fit spec.data.format, Instruction, and MaskedLM does not; remove task, or set format "
            "to Text",
        ),
        (
            "spec",
            job_with("spec.model.task", "MaskedLM")["spec"]
            | {
                "data": {"train": [{"uri": "s3://bucket/t.csv"}], "format": "Text"},
                "evaluation": {"prompts": ["a"]},
            },
            "spec.evaluation.prompts must be empty for a masked language model, which does not answer prompts",
        ),
        ("spec.model.vocabulary", {}, "spec.model.vocabulary must have at least one of add, learn; write one of them"),
        ("spec.model.vocabulary", {"add": ["ab", "c", "ab"]}, "vocabulary.add[2] must not have the word of spec.model"),
        ("spec.model.vocabulary", {"add": ["a\u200bb"]}, "vocabulary.add[0] must not have spaces, control characters"),
        ("spec.model.vocabulary", {"add": ["a\u2003b"]}, "vocabulary.add[0] must not have spaces, control characters"),
        ("spec.model.vocabulary", {"add": ["a b"]}, "must be a word without spaces, such as myocarditis"),
        ("spec.model.vocabulary", {"add": [""]}, "spec.model.vocabulary.add[0] must"),
        ("spec.model.vocabulary", {"add": ["x" * 65]}, "spec.model.vocabulary.add[0] must"),
        ("spec.model.vocabulary", {"add": [f"w{n}" for n in range(1001)]}, "spec.model.vocabulary.add must"),
        ("spec.model.vocabulary", {"learn": 0}, "spec.model.vocabulary.learn must"),
        ("spec.model.vocabulary", {"add": ["myocarditis", "COVID-19", "C\u00f6liac"], "learn": 5}, None),
        (
            "spec",
            job_with("spec.model.vocabulary", {"learn": 5})["spec"] | {"method": {"layerNormTuning": {}}},
            "spec.model.vocabulary must be absent with spec.method.layerNormTuning, which does not train the",
        ),
        ("spec", job_with("spec.model.vocabulary", {"learn": 5})["spec"] | {"method": {"lora": {}}}, None),
        ("spec.method", {"setFit": {}}, None),
        (
            "spec",
            job_with("spec.data.fewShot", {"perClass": 1})["spec"] | {"method": {"setFit": {}}},
            "spec.data.fewShot.perClass must be at least 2 with spec.method.setFit, which needs pairs",
        ),
        *(
            ("spec", job_with(field, value)["spec"] | {"method": {"setFit": {}}}, f"{field} {requirement}")
            for field, value, requirement in (
                ("spec.training.labelSmoothing", 0.1, "must be 0 with spec.method.setFit, which trains on pairs"),
                ("spec.training.overfitting", {}, "must be absent with spec.method.setFit, whose training loss"),
                ("spec.model.vocabulary", {"learn": 5}, "must be absent with spec.method.setFit, which has too few"),
                ("spec.deepspeed.zeroStage", 3, "must be 0 or 1 or 2 with method.setFit, not 3"),
                ("spec.output.formats", ["Adapter"], "must not have Adapter without"),
                ("spec.training.batching", "Packed", "must be Padded or LengthGrouped with method.setFit, not Packed"),
                ("spec.model.task", "CausalLM", "must be SequenceClassification with method.setFit, not CausalLM"),
            )
        ),
        ("spec", _preference_with("spec.training.dpo", {"beta": 0.3}), None),
        (
            "spec",
            job_with("spec.training.dpo", {})["spec"] | {"model": {"uri": "s3://bucket/m", "task": "CausalLM"}},
            "spec.training.dpo must be absent with task CausalLM; remove it",
        ),
        *(
            ("spec", _preference_with(field, value), f"{field} {requirement}")
            for field, value, requirement in (
                ("spec.training.labelSmoothing", 0.1, "must be 0 with task Preference, not 0.1"),
                ("spec.training.overfitting", {}, "must be absent with task Preference, whose training loss"),
                ("spec.training.chunkedLoss", True, "must be"),
                ("spec.training.batching", "Packed", "must be Padded for a preference-tuned language model"),
                ("spec.model.vocabulary", {"learn": 5}, "must be absent with task Preference, because the base"),
                ("spec.model.quantization", "NF4", "must be absent with task Preference, because the reference"),
                ("spec.method.lora.init", "PiSSA", "must be Kaiming or Gaussian with task Preference, not PiSSA"),
                ("spec.deepspeed.zeroStage", 3, "must be 0 or 1 or 2 for a preference-tuned language model, because"),
                ("spec.deepspeed.offload", "OptimizerAndParameters", "must be None or Optimizer for a preference-"),
                ("spec.data.trainOnInputs", True, "must be"),
            )
        ),
        (
            "spec",
            _preference_with("spec.method", {"full": {}}),
            ", or method: {lora: {}} for Preference, because the reference model of DPO is the base model",
        ),
        *(
            (
                "spec",
                job_with("spec.model.vocabulary", {"learn": 5})["spec"] | {"method": {"lora": {}}} | block,
                f"{path} {requirement} with spec.method.lora and spec.model.vocabulary",
            )
            for block, path, requirement in (
                ({"deepspeed": {"zeroStage": 3}}, "spec.deepspeed.zeroStage", "must be 0 or 1 or 2"),
                (
                    {"deepspeed": {"offload": "OptimizerAndParameters"}},
                    "spec.deepspeed.offload",
                    "must be None or Optimizer",
                ),
                (
                    {"training": {"learningRate": 1e-4, "chunkedLoss": True}},
                    "spec.training.chunkedLoss",
                    "must be false",
                ),
                (
                    {"output": {"uri": "s3://bucket/out", "formats": ["Merged", "Adapter"]}},
                    "spec.output.formats",
                    "must not have Adapter",
                ),
            )
        ),
        (
            "spec",
            job_with("spec.model.vocabulary", {"learn": 5})["spec"]
            | {"method": {"full": {"freeze": {"embeddings": True}}}},
            "spec.method.full.freeze.embeddings must be false with spec.model.vocabulary, whose new embeddings",
        ),
        (
            "spec.data.train",
            [{"uri": "s3://bucket/t.csv", "weight": 0}],
            "spec.data.train[0].weight must be at least 0.0001, not 0",
        ),
        (
            "spec.data.train",
            [{"uri": "s3://bucket/t.csv", "weight": 101}],
            "spec.data.train[0].weight must be at most 100, not 101",
        ),
        (
            "spec.data.test",
            {"sources": [{"uri": "s3://bucket/t.csv", "weight": 2}]},
            "spec.data.test.sources[0].weight",
        ),
        (
            "spec.data.train",
            [{"uri": "s3://bucket/a.csv"}, {"uri": "s3://bucket/b.csv"}, {"uri": "s3://bucket/a.csv", "weight": 2}],
            "spec.data.train[2].uri must not be that of spec.data.train[0], because a file has one weight; remove one",
        ),
        (
            "spec.data.train",
            [{"uri": "hf://datasets/o/n/a.csv", "weight": 2}, {"uri": "hf://datasets/o/n@main/a.csv"}],
            "spec.data.train[1].uri must not be that of spec.data.train[0]",
        ),
        ("spec.data.train", [{"uri": "s3://bucket/a.csv"}, {"uri": "s3://bucket/a.csv"}], None),
        *(
            (
                f"spec.data.{split}",
                {"sources": [{"uri": "s3://bucket/other.jsonl"}, {"uri": "s3://bucket/train.jsonl"}]},
                f"spec.data.{split}.sources[1].uri must not be that of spec.data.train[0], because the model has "
                "learned these records; name other files, or remove sources and write fraction: 0.1",
            )
            for split in ("validation", "test")
        ),
        (
            "spec.data",
            {
                "train": [{"uri": "hf://datasets/o/n/a.csv"}],
                "test": {"sources": [{"uri": "hf://datasets/o/n@main/a.csv"}]},
            },
            "spec.data.test.sources[0].uri must not be that of spec.data.train[0]",
        ),
        *(
            (
                path,
                value,
                f"{place} must not have an empty name, '.' or '..' in the path, because object stores disagree on "
                f"which object it names; write s3://bucket/{written}",
            )
            for path, value, place, written in (
                (
                    "spec.data.train",
                    [{"uri": "s3://bucket/./a.jsonl"}],
                    "spec.data.train[0].uri",
                    "a.jsonl",
                ),
                (
                    "spec.data.train",
                    [{"uri": "s3://bucket/a.jsonl"}, {"uri": "s3://bucket//x/a.jsonl", "weight": 2}],
                    "spec.data.train[1].uri",
                    "x/a.jsonl",
                ),
                (
                    "spec.data.test",
                    {"sources": [{"uri": "s3://bucket/x/../a.jsonl"}]},
                    "spec.data.test.sources[0].uri",
                    "a.jsonl",
                ),
                (
                    "spec.data.validation",
                    {"sources": [{"uri": "s3://bucket/x/./*.jsonl"}]},
                    "spec.data.validation.sources[0].uri",
                    "x/*.jsonl",
                ),
                ("spec.model.uri", "s3://bucket/x//model", "spec.model.uri", "x/model"),
                ("spec.output.uri", "s3://bucket//out", "spec.output.uri", "out"),
                ("spec.output.uri", "s3://bucket/../out/", "spec.output.uri", "out"),
                ("spec.output.uri", "s3://bucket//", "spec.output.uri", ""),
                (
                    "spec.evaluation.regressionSets",
                    [{"name": "general", "sources": [{"uri": "s3://bucket/a/./b.csv"}]}],
                    "spec.evaluation.regressionSets[0].sources[0].uri",
                    "a/b.csv",
                ),
                (
                    "spec.data.augmentation",
                    {"methods": ["Synonym"], "synonyms": {"uri": "s3://bucket//s.csv"}},
                    "spec.data.augmentation.synonyms.uri",
                    "s.csv",
                ),
            )
        ),
        ("spec.output.uri", "s3://bucket/out/", None),
        ("spec.output.uri", "s3://bucket/", None),
        ("spec.data.train", [{"uri": "s3://bucket/.hidden/..a/b...jsonl"}], None),
        ("spec.data.train", [{"uri": "s3://bucket/a.csv", "weight": 3}, {"uri": "s3://bucket/b.csv"}], None),
        (
            "spec.data",
            {"train": [{"uri": "s3://bucket/a.csv", "weight": 2}], "fewShot": {"examples": 5}},
            "spec.data.train[0].weight must be absent with spec.data.fewShot, which selects a fixed number of records",
        ),
        ("spec.data.fewShot", {}, "spec.data.fewShot must have exactly one of perClass, examples, not none; keep one"),
        ("spec.data.fewShot", {"perClass": 1, "examples": 1}, "exactly one of perClass, examples, not both; keep one"),
        (
            "spec",
            job_with("spec.model.task", "SequenceClassification")["spec"]
            | {
                "data": {
                    "train": [{"uri": "s3://bucket/t.csv"}],
                    "augmentation": {
                        "methods": ["Synonym"],
                        "synonyms": {"uri": "file:///etc/passwd"},
                    },
                }
            },
            "spec.data.augmentation.synonyms.uri must be an address that every node can reach",
        ),
        (
            "spec.data.augmentation",
            {"methods": ["Synonym"]},
            "spec.data.augmentation.synonyms must name a file for the method Synonym",
        ),
        (
            "spec.data.augmentation",
            {"methods": ["WordSwap"], "synonyms": {"uri": "s3://bucket/s.csv"}},
            "spec.data.augmentation.synonyms must be absent without the method Synonym",
        ),
        (
            "spec.data",
            {
                "train": [{"uri": "s3://bucket/t.txt"}],
                "format": "Text",
                "augmentation": {"methods": ["WordSwap"], "minPerClass": 9},
            },
            "spec.data.augmentation.minPerClass must be absent for the format Text, which has no classes; remove it",
        ),
        (
            "spec.data.augmentation",
            {"methods": ["WordSwap", "WordSwap"]},
            "spec.data.augmentation.methods must not list a method twice",
        ),
        (
            "spec.evaluation.regressionSets",
            [{"name": "General", "sources": [{"uri": "s3://bucket/g.csv"}]}],
            "spec.evaluation.regressionSets[0].name must be a name of a-z, 0-9 and '-', such as general",
        ),
        (
            "spec.evaluation.regressionSets",
            [{"name": "general", "sources": [{"uri": f"s3://bucket/{number}.csv"}]} for number in range(2)],
            "spec.evaluation.regressionSets[1].name must be unique, not general again; choose another name",
        ),
        (
            "spec.evaluation.regressionSets",
            [{"name": "general", "sources": [{"uri": "s3://bucket/train.jsonl"}]}],
            "spec.evaluation.regressionSets[0].sources[0].uri must not be that of spec.data.train[0], because the",
        ),
        (
            "spec.evaluation.regressionSets",
            [{"name": "general", "sources": [{"uri": "file:///general.jsonl"}]}],
            "spec.evaluation.regressionSets[0].sources[0].uri must be an address that every node can reach",
        ),
        (
            "spec.evaluation.regressionSets",
            [{"name": f"set-{number}", "sources": [{"uri": "s3://bucket/g.csv"}]} for number in range(5)],
            "spec.evaluation.regressionSets must have at most 4 entries, not 5",
        ),
        (
            "spec",
            job_with("spec.data.format", "Chat")["spec"]
            | {
                "data": {"train": [{"uri": "s3://bucket/t.jsonl"}], "format": "Chat"},
                "evaluation": {
                    "regressionSets": [
                        {"name": "general", "sources": [{"uri": "s3://bucket/g.csv"}], "format": "Classification"}
                    ]
                },
            },
            "spec.evaluation.regressionSets[0].format must be a format of CausalLM, not Classification; write Text",
        ),
        (
            "spec.evaluation",
            {"promote": {"maxRegression": 0.1}},
            "spec.evaluation.promote.maxRegression must be absent unless the base model is evaluated on regression",
        ),
        (
            "spec.evaluation",
            {"baseModel": False, "promote": {"minGainOverBaseModel": 0.1}},
            "spec.evaluation.promote.minGainOverBaseModel must be absent if the base model is not evaluated; remove it",
        ),
        ("spec.evaluation", {"baseModel": False, "promote": {}}, None),
        (
            "spec",
            job_with("spec.evaluation.promote", {})["spec"]
            | {"data": {"train": [{"uri": "s3://bucket/t.csv"}], "test": {"fraction": 0}}},
            "spec.evaluation.promote must have a test split; set spec.data.test.fraction above 0",
        ),
        (
            "spec",
            job_with("spec.evaluation.promote", {})["spec"]
            | {"method": {"lora": {"rank": 4}}, "output": {"uri": "s3://bucket/out", "formats": ["Adapter"]}},
            "spec.evaluation.promote must have a complete model to promote; add Merged to spec.output.formats",
        ),
        ("spec.output.formats", ["Adapter"], "spec.output.formats must not have Adapter without spec.method.lora"),
        ("spec.output.formats", ["Merged", "Int8", "GGUF", "CompressedTensors"], None),
        (
            "spec",
            job_with("spec.data.format", "Classification")["spec"]
            | {"output": {"uri": "s3://bucket/out", "formats": ["GGUF"]}},
            "spec.output.formats must not have GGUF for a classifier; write Merged, Adapter, Int8 or CompressedTensors",
        ),
        ("spec.output.gguf", {}, "spec.output.gguf must be absent without GGUF in spec.output.formats"),
        (
            "spec.output.compressedTensors",
            {"scheme": "W4A16"},
            "spec.output.compressedTensors must be absent without CompressedTensors in spec.output.formats",
        ),
        (
            "spec.output.gguf",
            {"types": ["Q8_0", "F16", "Q8_0"]},
            "spec.output.gguf.types[2] must not have the type of spec.output.gguf.types[0]",
        ),
        (
            "spec.training.earlyStopping",
            {"metric": "Accuracy"},
            None,
        ),
        (
            "spec.deepspeed",
            {"zeroStage": 2, "offload": "OptimizerAndParameters"},
            "spec.deepspeed.zeroStage must be 3 for offload OptimizerAndParameters, not 2",
        ),
        (
            "spec.deepspeed",
            {"zeroStage": 0, "offload": "Optimizer"},
            "must be 1 or 2 or 3 for offload Optimizer, not 0",
        ),
        ("spec.deepspeed", {"offload": "OptimizerAndParameters"}, None),
        (
            "spec.deepspeed.config",
            {"zero_optimization": {"offload_param": {"device": "cpu"}}},
            "zero_optimization.offload_param must be absent, because the job sets it; remove it and use spec.",
        ),
        ("spec.deepspeed.config", {"optimizer": {}}, "spec.deepspeed.config.optimizer must be absent"),
        ("spec.deepspeed.config", {"wandb": {"enabled": True}}, "remove it and use spec.tracking.wandb"),
        ("spec.deepspeed.config", {"tensorboard": {"enabled": True}}, "remove it and use spec.tracking.tensorBoard"),
        ("spec.deepspeed.config", {"comet": {"enabled": True}}, "remove it and use spec.tracking"),
        (
            "spec.deepspeed.config",
            {"zero_optimization": {"stage": 3}},
            "zero_optimization.stage must be absent, because the job sets it; remove it and use spec.deepspeed.zero",
        ),
        (
            "spec.model.uri",
            "file:///models/x",
            "spec.model.uri must be an address that every node can reach, not file:///models/x",
        ),
        (
            "spec.workers.tolerations",
            [{"key": "gpu", "operator": "Exists", "value": "x"}],
            "spec.workers.tolerations[0].value must be empty with operator Exists",
        ),
        (
            "spec.workers.tolerations",
            [{"value": "x"}],
            "spec.workers.tolerations[0].key must be set with operator Equal",
        ),
        (
            "spec.workers.tolerations",
            [{"key": "gpu", "tolerationSeconds": 5}],
            "spec.workers.tolerations[0].effect must be NoExecute if tolerationSeconds is set",
        ),
        ("spec.workers.tolerations", [{"operator": "Exists"}], None),
        (
            "spec.workers.env",
            [{"name": "A", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
            "spec.workers.env[0] must not have both value and valueFrom; keep one",
        ),
        (
            "spec.workers.env",
            [{"name": "A", "valueFrom": {}}],
            "spec.workers.env[0].valueFrom must have exactly one of secretKeyRef, configMapKeyRef, not none",
        ),
        ("spec.workers.env", [{"name": "A"}], None),
        (
            "spec.workers.env",
            [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k.e_y", "optional": True}}}],
            None,
        ),
    ],
)
def test_a_wrong_combination_is_reported_with_the_fix(path: str, value: Any, expected: str | None) -> None:
    manifest = job_with(path, value)
    if expected is None:
        parse_job(manifest)
    else:
        assert any(expected in complaint for complaint in complaints(manifest))


DATA = {"name": "data", "emptyDir": {}}
SPREAD = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
LONG_KEY = f"{'a.' * 130}b/name"
POD_FAULTS: list[tuple[dict[str, Any], str | None]] = [
    ({"labels": {"team": "nlp", "example.com/Cost_Centre": "a.b", "empty": ""}}, None),
    ({"labels": {"finetune.dev/job": "x"}}, "labels.finetune.dev/job must be absent, because the operator and Jobs"),
    ({"labels": {"app.kubernetes.io/managed-by": "me"}}, "labels.app.kubernetes.io/managed-by must be absent"),
    ({"labels": {"job-name": "x"}}, "labels.job-name must be absent"),
    ({"labels": {"controller-uid": "x"}}, "labels.controller-uid must be absent"),
    ({"labels": {"batch.kubernetes.io/job-name": "x"}}, "labels.batch.kubernetes.io/job-name must be absent"),
    ({"labels": {"my.finetune.dev/job": "x"}}, None),
    ({"labels": {"a b": "x"}}, "labels.a b must be a key such as team or example.com/team"),
    ({"labels": {"a/b/c": "x"}}, "labels.a/b/c must be a key such as"),
    ({"labels": {"team\n": "x"}}, "must be a key such as"),
    ({"labels": {LONG_KEY: "x"}}, "must be a key such as"),
    ({"labels": {"team": "a b"}}, "labels.team must be a value of a label: letters, digits, '-', '_' and '.'"),
    ({"labels": {"team": "a" * 64}}, "labels.team must have at most 63 characters"),
    ({"annotations": {"sidecar.istio.io/inject": "false"}}, None),
    ({"annotations": {"finetune.dev/attempt-plan": "{}"}}, "annotations.finetune.dev/attempt-plan must be absent"),
    ({"annotations": {"batch.kubernetes.io/job-completion-index": "1"}}, "job-completion-index must be absent"),
    ({"annotations": {"/x": "1"}}, "annotations./x must be a key such as"),
    ({"tolerations": [{"value": "x"}]}, "tolerations[0].key must be set with operator Equal"),
    ({"topologySpreadConstraints": [SPREAD, {**SPREAD, "whenUnsatisfiable": "DoNotSchedule"}]}, None),
    (
        {"topologySpreadConstraints": [SPREAD, {**SPREAD, "maxSkew": 2}]},
        "topologySpreadConstraints[1] must not have the topologyKey and whenUnsatisfiable of ",
    ),
    (
        {"topologySpreadConstraints": [{**SPREAD, "minDomains": 2}]},
        "topologySpreadConstraints[0].minDomains must be absent with whenUnsatisfiable ScheduleAnyway",
    ),
    (
        {"topologySpreadConstraints": [{**SPREAD, "matchLabelKeys": ["a"]}]},
        "topologySpreadConstraints[0].labelSelector must be set with matchLabelKeys",
    ),
    (
        {"topologySpreadConstraints": [{"topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]},
        "topologySpreadConstraints[0].maxSkew must be set to an integer",
    ),
    ({"affinity": {"nodeAfinity": {}}}, "affinity.nodeAfinity: unknown field; did you mean nodeAffinity?"),
    ({"capabilities": ["SYS_ADMIN"]}, 'capabilities[0] must be IPC_LOCK, not "SYS_ADMIN"'),
    ({"runtimeClassName": "Kata"}, "runtimeClassName must be a name of a-z, 0-9, '-' and '.'"),
    ({"imagePullPolicy": "always"}, "did you mean Always?"),
    ({"volumes": [DATA]}, None),
    (
        {"volumes": [{"name": "data"}]},
        "volumes[0] must have exactly one source, such as persistentVolumeClaim, not none",
    ),
    (
        {"volumes": [{**DATA, "hostPath": {"path": "/"}}]},
        "volumes[0] must have exactly one source, such as persistentVolumeClaim, not emptyDir, hostPath",
    ),
    ({"volumes": [{"name": "data", "nfss": {}}]}, "volumes[0].nfss: unknown field; did you mean nfs?"),
    ({"volumes": [DATA, DATA]}, "volumes[1] must not have the name of "),
    *(
        ({"volumes": [{**DATA, "name": name}]}, f"volumes[0].name must not be {name}, because the operator uses")
        for name in ("config", "scratch", "shared-memory", "cache", "credentials")
    ),
    (
        {"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
        "volumeMounts[0].name must be the name of an entry in ",
    ),
    (
        {"volumes": [DATA], "volumeMounts": [{"name": "date", "mountPath": "/data"}]},
        "volumeMounts[0].name must be one of data in ",
    ),
    (
        {"volumeMounts": [{"name": "credentials", "mountPath": "/data"}]},
        "volumeMounts[0].name must be the name of an entry in ",
    ),
]


def mounted(**mount: Any) -> dict[str, Any]:
    """Settings of a pod with one mount."""
    return {"volumes": [DATA], "volumeMounts": [{"name": "data", "mountPath": "/data", **mount}]}


def refused_path(path: str, own: str) -> tuple[dict[str, Any], str]:
    return mounted(mountPath=path), f"volumeMounts[0].mountPath must not be at, above or below {own}, which the"


POD_FAULTS += [
    *((mounted(mountPath=path), None) for path in ("/data", "/dev/infiniband", "/etc/ssl", "/scratches", "/cache2")),
    refused_path("/etc/finetune", "/etc/finetune"),
    refused_path("/etc/finetune/extra", "/etc/finetune"),
    refused_path("/etc/finetune-credentials", "/etc/finetune-credentials"),
    refused_path("/scratch/", "/scratch"),
    refused_path("//scratch//data", "/scratch"),
    refused_path("/data/../scratch", "/scratch"),
    refused_path("/cache/models", "/cache"),
    refused_path("/dev/shm", "/dev/shm"),
    refused_path("/dev/termination-log", "/dev/termination-log"),
    refused_path("/dev", "/dev/shm"),
    refused_path("/etc", "/etc/finetune"),
    refused_path("/", "/etc/finetune"),
    (mounted(mountPath="data"), "volumeMounts[0].mountPath must be an absolute path without ':', such as /data"),
    (mounted(mountPath="/a:b"), "volumeMounts[0].mountPath must be an absolute path without ':', such as /data"),
    (mounted(subPath="a/b"), None),
    (mounted(subPath="../b"), "volumeMounts[0].subPath must be a relative path without .."),
    (mounted(subPathExpr="/$(HOME)"), "volumeMounts[0].subPathExpr must be a relative path without .."),
    (mounted(subPath="a", subPathExpr="b"), "volumeMounts[0] must not have both subPath and subPathExpr"),
    (mounted(mountPropagation="Bidirectional"), "mountPropagation must be one of None or HostToContainer"),
    (
        {"volumes": [DATA], "volumeMounts": [{"name": "data", "mountPath": "/data"}] * 2},
        "volumeMounts[1] must not have the mountPath of ",
    ),
    ({"envFrom": [{"prefix": "HUB_", "secretRef": {"name": "hub"}}]}, None),
    ({"envFrom": [{"prefix": "X"}]}, "envFrom[0] must have exactly one of secretRef, configMapRef, not none"),
    (
        {"envFrom": [{"secretRef": {"name": "a"}, "configMapRef": {"name": "b"}}]},
        "envFrom[0] must have exactly one of secretRef, configMapRef, not both",
    ),
    ({"envFrom": [{"prefix": "1", "secretRef": {"name": "hub"}}]}, "envFrom[0].prefix must be a variable's name"),
]


@pytest.mark.parametrize("block", ["spec.workers", "spec.stages.prepare", "spec.stages.evaluate"])
@pytest.mark.parametrize(("settings", "expected"), POD_FAULTS, ids=str)
def test_settings_that_a_pod_cannot_have_are_reported_for_every_stage(
    block: str, settings: dict[str, Any], expected: str | None
) -> None:
    manifest = job_with(block, settings)
    if expected is None:
        parse_job(manifest)
    else:
        (complaint,) = complaints(manifest)
        assert complaint.startswith(f"{block}.")
        assert expected in complaint


GPU, MIG = "nvidia.com/gpu", "nvidia.com/mig-1g.10gb"
GPU_SETTINGS: list[tuple[dict[str, Any], str | None]] = [
    ({"workers": {"gpuResource": "gpu"}}, "spec.workers.gpuResource must be the name of a resource with its domain"),
    ({"workers": {"gpusPerNode": 2, "gpuResource": "amd.com/gpu"}}, None),
    ({"workers": {"gpusPerNode": 1, "gpuResource": MIG}}, None),
    ({"workers": {"gpusPerNode": 1, "gpuMemory": "80Gi"}}, None),
    (
        {"workers": {"gpuMemory": "80Gi"}},
        "spec.workers.gpuMemory must be absent without GPUs; remove it, or set spec.workers.gpusPerNode",
    ),
    (
        {"workers": {"gpusPerNode": 8, "gpuMemory": "80"}},
        "spec.workers.gpuMemory must be the memory of one GPU, from 1Gi to 1Ti, not 80; write a quantity such as 80Gi",
    ),
    ({"workers": {"gpusPerNode": 8, "gpuMemory": "80Ti"}}, "from 1Gi to 1Ti, not 80Ti"),
    ({"workers": {"gpusPerNode": 8, "gpuMemory": "80 GB"}}, "spec.workers.gpuMemory must be a quantity such as"),
    (
        {"workers": {"gpusPerNode": 2, "gpuResource": MIG}},
        f"spec.workers.gpusPerNode must be at most 1 with the MIG device {MIG}",
    ),
    ({"workers": {"gpusPerNode": 2, "resources": {"limits": {GPU: 2}, "requests": {GPU: "2"}}}}, None),
    (
        {"workers": {"resources": {"limits": {GPU: 2}}}},
        f"spec.workers.resources.limits.{GPU} must be absent; remove it, and set spec.workers.gpusPerNode",
    ),
    (
        {"workers": {"gpusPerNode": 2, "resources": {"requests": {GPU: 4}}}},
        f"spec.workers.resources.requests.{GPU} must be absent",
    ),
    ({"workers": {"gpuResource": MIG, "resources": {"limits": {MIG: 1}}}}, f"limits.{MIG} must be absent"),
    ({"stages": {"prepare": {"resources": {"limits": {GPU: 1}}}}}, "remove it, and prepare needs no GPU"),
    (
        {"stages": {"evaluate": {"resources": {"limits": {GPU: 1}}}}},
        f"spec.stages.evaluate.resources.limits.{GPU} must be absent; remove it, and set spec.stages.evaluate.gpus",
    ),
    ({"stages": {"evaluate": {"gpus": 1, "resources": {"limits": {GPU: 1}}}}}, None),
]


@pytest.mark.parametrize(("spec", "expected"), GPU_SETTINGS, ids=str)
def test_gpus_are_requested_by_their_own_fields(spec: dict[str, Any], expected: str | None) -> None:
    manifest = job_with("spec.training.learningRate", 1e-4)
    manifest["spec"] |= spec
    if expected is None:
        parse_job(manifest)
    else:
        assert [expected in complaint for complaint in complaints(manifest)] == [True]


@pytest.mark.parametrize("levels", [300, 1000, 50_000])
@pytest.mark.parametrize("path", ["spec.workers.affinity.nodeAffinity", "spec.deepspeed.config"])
def test_a_block_that_is_nested_too_deeply_is_reported(path: str, levels: int) -> None:
    nested: dict[str, Any] = {}
    for _ in range(levels):
        nested = {"a": nested}
    expected = "spec must have at most 190 levels of nesting; remove the inner ones"
    assert complaints(job_with(path, nested)) == [expected]


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("spec.model.uri", "hf://datasets/a/b", "it is a dataset, not a model"),
        ("spec.model.uri", "hf://a/b/c", "'a/b/c' is not a model's name on the hub"),
        ("spec.model.uri", "https://huggingface.co/openai-community/gpt2", "write hf://openai-community/gpt2"),
        ("spec.model.uri", "file://models/x", "the path must be absolute, as in file:///models/x"),
        ("spec.model.uri", "s3://bucket", "the key after the bucket is missing"),
        ("spec.model.uri", "s3:///models", "the bucket is missing"),
        ("spec.output.uri", "s3://My_Bucket/x", "'My_Bucket' is not a bucket's name"),
        ("spec.output.uri", "file:///out", "file:// is not supported here"),
        ("spec.data.train", [{"uri": "s3://bucket/a.jsonl "}], "it begins or ends with a space"),
        ("spec.data.train", [{"uri": "s3://bucket/a\nb"}], "it has the control character U+000A"),
        ("spec.data.train", [{"uri": "hf://stanfordnlp/imdb"}], "write hf://datasets/stanfordnlp/imdb/path"),
        ("spec.data.train", [{"uri": "hf://datasets/imdb"}], "the path within the dataset is missing"),
        ("spec.data.train", [{"uri": "https://huggingface.co/datasets/a/b/tree/main"}], "write hf://datasets/a/b"),
        ("spec.data.train", [{"uri": "gs://bucket/a.jsonl"}], "gs:// is not supported here"),
    ],
)
def test_a_bad_address_is_the_only_violation_and_states_the_problem(path: str, value: Any, fault: str) -> None:
    (complaint,) = complaints(job_with(path, value))
    assert fault in complaint


HALF = "must be valid Unicode: it contains an unpaired surrogate; write the character itself"
HALF_NAME = "must have a name that is valid Unicode: it contains an unpaired surrogate; write the character itself"


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("spec.evaluation", {"prompts": ["a", "a\ud83d"]}, f"spec.evaluation.prompts[1] {HALF}"),
        ("spec.runNonce", "\ude00", f"spec.runNonce {HALF}"),
        ("spec.runNonce", "\ude00\ud83d", f"spec.runNonce {HALF}"),
        ("spec.workers", {"env": [{"name": "A", "value": "\ud83d-"}]}, f"spec.workers.env[0].value {HALF}"),
        ("spec.workers", {"nodeSelector": {"a\ud83d": "b"}}, f"spec.workers.nodeSelector.a\\ud83d {HALF_NAME}"),
        ("spec.deepspeed", {"config": {"a": {"b": ["\ud83d"]}}}, f"spec.deepspeed.config.a.b[0] {HALF}"),
        ("metadata.annotations", {"note": "\ud83d"}, f"metadata.annotations.note {HALF}"),
        ("kind", "\ud83d", f"kind {HALF}"),
    ],
)
def test_an_unpaired_surrogate_is_reported_with_its_path(path: str, value: Any, expected: str) -> None:
    assert complaints(job_with(path, value)) == [expected]


def test_an_unpaired_surrogate_hides_no_other_violation() -> None:
    manifest = job_with("spec.runNonce", "\ud83d")
    manifest["spec"]["training"]["epochs"] = "three"
    first, second = complaints(manifest)
    assert first == f"spec.runNonce {HALF}"
    assert second.startswith("spec.training.epochs must be")


def test_a_surrogate_pair_is_one_character() -> None:
    job = parse_job(job_with("spec.evaluation", {"prompts": ["\ud83d\ude00"]}))
    assert job.spec.evaluation.prompts == ("😀",)


def test_an_empty_list_is_a_separate_violation() -> None:
    bad_entry = job_with("spec.data.validation", {"sources": [{"uri": "bucket/x"}]})
    assert [text.split(" must ")[0] for text in complaints(bad_entry)] == ["spec.data.validation.sources[0].uri"]
    empty = job_with("spec.data.validation", {"sources": []})
    assert [text.split(" must ")[0] for text in complaints(empty)] == ["spec.data.validation.sources"]


NAMES = [
    "My Data/train (1).jsonl",
    "export[final].jsonl",
    "a+b.jsonl",
    "ä/ö ü.jsonl",
    "*.csv",
    "what?.csv",
    "a&b=c%20d#e",
]


@pytest.mark.parametrize("name", NAMES)
def test_an_address_may_contain_any_printable_character(name: str) -> None:
    for uri in (f"s3://bucket/{name}", f"file:///data/u/{name}", f"hf://datasets/org/name@main/{name}"):
        job = job_with("spec.data.train", [{"uri": uri}])
        assert parse_job(job, local=True).spec.data.train[0].uri == uri
    for uri in (f"s3://bucket/{name}", f"file:///data/u/{name}"):
        assert parse_job(job_with("spec.model.uri", uri), local=True).spec.model.uri == uri
    assert parse_job(job_with("spec.output.uri", f"s3://bucket/{name}"))


@pytest.mark.parametrize(
    "uri", ["hf://gpt2", "hf://bert-base-uncased@v1.0", "hf://org/name", "hf://org/name@refs/pr/1"]
)
def test_a_model_of_the_hub_needs_no_organization(uri: str) -> None:
    assert parse_job(job_with("spec.model.uri", uri)).spec.model.uri == uri


@pytest.mark.parametrize("endpoint", ["https://x.example.com/storage/v1/s3", "http://minio:9000/", "http://[::1]:9000"])
def test_an_endpoint_may_have_a_path(endpoint: str) -> None:
    assert parse_job(job_with("spec.storage.endpoint", endpoint)).spec.storage.endpoint == endpoint


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///runs.db", "must be a URL of an MLflow server such as https://mlflow.example.com"),
        ("databricks", "must be a URL of an MLflow server such as https://mlflow.example.com"),
        ("https://mlflow.example.com?token=x", "must be a URL of an MLflow server"),
        ("https://user:secret@mlflow.example.com", "must not contain a user name or password"),
    ],
)
def test_a_tracking_uri_is_a_url_without_credentials(uri: str, expected: str) -> None:
    (found,) = complaints(job_with("spec.tracking.mlflow", {"trackingUri": uri, "experiment": "topics"}))
    assert found.startswith(f"spec.tracking.mlflow.trackingUri {expected}")
    assert "secret@" not in found


ONLINE = {"project": "topics", "mode": "Online"}


@pytest.mark.parametrize(
    ("wandb", "expected"),
    [
        (ONLINE, ".baseUrl must be set with mode: Online; write https://api.wandb.ai"),
        ({"project": "t", "baseUrl": "https://x.example"}, ".baseUrl must be absent with mode: Offline"),
        (ONLINE | {"baseUrl": "https://x.example/wandb"}, ".baseUrl must be a URL of a W&B server without a path"),
        (ONLINE | {"baseUrl": "https://a:secret@x.example"}, ".baseUrl must not contain a user name or password"),
        ({"project": "a/b"}, ".project must be a name of letters, digits"),
        ({"project": "topics", "entity": "../x"}, ".entity must be a name of letters, digits"),
    ],
)
def test_a_wandb_run_has_a_server_exactly_if_it_is_online(wandb: dict[str, Any], expected: str) -> None:
    (found,) = complaints(job_with("spec.tracking.wandb", wandb))
    assert found.startswith(f"spec.tracking.wandb{expected}")
    assert "secret@" not in found


@pytest.mark.parametrize(
    ("trackio", "expected"),
    [
        ({"serverUrl": "trackio.example.com"}, ".serverUrl must be a URL of a trackio server such as https://"),
        ({"serverUrl": "https://x.example/?write_token=secret"}, ".serverUrl must be a URL of a trackio server"),
        ({"serverUrl": "https://a:secret@x.example"}, ".serverUrl must not contain a user name or password"),
        ({"project": "a.b"}, ".project must be a name of letters, digits, '_' and '-'"),
    ],
)
def test_a_trackio_server_is_a_url_without_credentials(trackio: dict[str, Any], expected: str) -> None:
    block = {"serverUrl": "https://x.example", "project": "topics"} | trackio
    (found,) = complaints(job_with("spec.tracking.trackio", block))
    assert found.startswith(f"spec.tracking.trackio{expected}")
    assert "secret@" not in found


@pytest.mark.parametrize(
    ("registry", "expected"),
    [
        ({"model": "m"}, ".trackingUri must be set, because spec.tracking.mlflow is absent; set one of them"),
        ({"model": "m", "trackingUri": "https://a:b@x.example"}, ".trackingUri must not contain a user name"),
        ({"model": "m", "trackingUri": "https://x.example", "alias": "latest"}, ".alias must not be latest"),
        ({"model": "m", "trackingUri": "https://x.example", "alias": "Latest"}, ".alias must not be Latest"),
        ({"model": "m", "trackingUri": "https://x.example", "alias": "V2"}, ".alias must not be V2"),
        ({"model": "m", "trackingUri": "https://x.example", "alias": "v12"}, ".alias must not be v12"),
        ({"model": "a/b", "trackingUri": "https://x.example"}, ".model must be a name without '/', ':' and quotes"),
        ({"model": "a'b", "trackingUri": "https://x.example"}, ".model must be a name without '/', ':' and quotes"),
    ],
)
def test_a_model_registry_needs_a_server_a_name_and_an_alias(registry: dict[str, Any], expected: str) -> None:
    (found,) = complaints(job_with("spec.evaluation.promote", {"mlflow": registry}))
    assert found.startswith(f"spec.evaluation.promote.mlflow{expected}")


def test_a_model_registry_uses_the_server_of_the_tracker() -> None:
    manifest = job_with("spec.evaluation.promote", {"mlflow": {"model": "m"}})
    manifest["spec"]["tracking"] = {"mlflow": {"trackingUri": "https://x.example", "experiment": "e"}}
    registry = parse_job(manifest).spec.evaluation.promote.mlflow  # type: ignore[union-attr]
    assert registry is not None
    assert registry.alias == "champion"


def test_all_violations_are_reported_together() -> None:
    manifest = job_with("spec.method", {"full": {}, "lora": {}})
    manifest["spec"]["training"] |= {"epochs": 1, "maxSteps": 2, "microBatchSize": 7}
    manifest["spec"]["output"]["formats"] = ["Merged", "Merged"]
    assert len(complaints(manifest)) == 4


def test_local_files_are_valid_for_a_local_run() -> None:
    manifest = job_with("spec.model.uri", "file:///models/x")
    assert parse_job(manifest, local=True).spec.model.uri == "file:///models/x"


def test_omitted_fields_get_the_documented_defaults() -> None:
    spec = parse_job(job_with("spec.training.learningRate", 1e-4)).spec
    assert spec.method.full is not None
    assert spec.method.lora is None
    assert (spec.data.validation.fraction, spec.data.test.fraction) == (0.1, 0.1)
    assert (spec.training.global_batch_size, spec.training.gradient_checkpointing) == (16, True)
    assert (spec.checkpoint.keep_last, spec.checkpoint.keep_best, spec.checkpoint.keep_every) == (2, 1, None)
    assert (spec.workers.nodes, spec.restart.max_restarts) == (1, 3)
