"""Jobs that the API server refuses, with the reason. The lists in messages that a new task or metric extends end here
after their first name."""

from typing import Any

SCHEMA_ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt field": ({"training": {"learningrate": 1e-3}}, 'unknown field "spec.training.learningrate"'),
    "missing field": ({"output": {"uri": None}}, "spec.output.uri: Required value"),
    "wrong type": ({"training": {"epochs": "three"}}, 'spec.training.epochs: Invalid value: "string"'),
    "unknown value": (
        {"training": {"learningRateSchedule": "Lineal"}},
        'spec.training.learningRateSchedule: Unsupported value: "Lineal"',
    ),
    "not an address": ({"output": {"uri": "runs/job"}}, "spec.output.uri: Invalid value"),
    "no workers": ({"workers": {"nodes": 0}}, "spec.workers.nodes: Invalid value: 0"),
}
"""Errors of the structural schema, which the API server writes."""

RULE_ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "two methods": ({"method": {"full": {}, "lora": {}}}, "must have exactly one of full, lora"),
    "two lengths": ({"training": {"epochs": 1, "maxSteps": 10}}, "must not have both epochs and maxSteps"),
    "two warmups": ({"training": {"warmup": {"ratio": 0.1, "steps": 5}}}, "must not have both ratio and steps"),
    "nothing to train on": (
        {"data": {"validation": {"fraction": 0.6}, "test": {"fraction": 0.5}}},
        "must leave data to train on",
    ),
    "uneven batch": (
        {"training": {"globalBatchSize": 16}, "workers": {"nodes": 3}},
        "training.globalBatchSize must be divisible by the number of training processes",
    ),
    "adapter of a full fine-tune": (
        {"method": {"full": {}}, "output": {"formats": ["Adapter"]}},
        "output.formats must not have Adapter without method.lora",
    ),
    "two ways to save": (
        {"checkpoint": {"everySteps": 10, "maxLostWork": "5m"}},
        "must not have both maxLostWork and everySteps",
    ),
    "fewer workers than fewest": ({"workers": {"nodes": 2, "minNodes": 4}}, "minNodes must be at most nodes"),
    "a start timeout without effect": (
        {"workers": {"startTimeout": "1m"}},
        "startTimeout must be absent without minNodes",
    ),
    "offloaded parameters without ZeRO-3": (
        {"deepspeed": {"zeroStage": 2, "offload": "OptimizerAndParameters"}},
        "deepspeed.zeroStage must be 3 for offload OptimizerAndParameters, not 0, 1 or 2",
    ),
    "a freeze without parameters": (
        {"method": {"full": {"freeze": {}}}},
        "must have at least one of embeddings, firstLayers, patterns",
    ),
    "an option of another schedule": (
        {"training": {"learningRateSchedule": "Cosine", "scheduleOptions": {"power": 3}}},
        "scheduleOptions.power must be absent with a learningRateSchedule other than Polynomial",
    ),
    "a metric of other models": (
        {
            "model": {"task": "CausalLM"},
            "data": {"format": "Text"},
            "training": {"earlyStopping": {"metric": "Accuracy"}},
        },
        "training.earlyStopping.metric must be a metric of language models, not Accuracy",
    ),
    "a promotion by a metric of other models": (
        {"evaluation": {"promote": {"metric": "Perplexity"}}},
        "evaluation.promote.metric must be a metric of classifiers, not Perplexity",
    ),
    "a promotion with a threshold of other models": (
        {"evaluation": {"promote": {"thresholds": [{"metric": "Loss", "max": 1}, {"metric": "Perplexity", "max": 9}]}}},
        "evaluation.promote.thresholds[].metric must be a metric of classifiers, not Perplexity",
    ),
    "a promotion with a threshold without bounds": (
        {"evaluation": {"promote": {"thresholds": [{"metric": "Loss"}]}}},
        "must have at least one of min, max",
    ),
    "a promotion with exchanged bounds": (
        {"evaluation": {"promote": {"thresholds": [{"metric": "Loss", "min": 2, "max": 1}]}}},
        "min must be at most max",
    ),
    "a promotion without a test split": (
        {"evaluation": {"promote": {}}, "data": {"test": {"fraction": 0}}},
        "data.test.fraction must be above 0 with evaluation.promote",
    ),
    "a promotion without a complete model": (
        {"evaluation": {"promote": {}}, "method": {"lora": {}}, "output": {"formats": ["Adapter"]}},
        "output.formats must have Merged with evaluation.promote",
    ),
    "a promotion by a gain over a base model that is not evaluated": (
        {"evaluation": {"baseModel": False, "promote": {"minGainOverBaseModel": 0.1}}},
        "promote.minGainOverBaseModel must be absent if the base model is not evaluated",
    ),
    "prompts for a classifier": (
        {"evaluation": {"prompts": ["Hi"]}},
        "evaluation.prompts must be empty for a classifier",
    ),
    "an export of other models": (
        {"output": {"formats": ["GGUF"]}},
        "output.formats must not have GGUF for a classifier; write Merged, Adapter, Int8 or CompressedTensors",
    ),
    "types of files that are not exported": (
        {"output": {"gguf": {"types": ["F16"]}}},
        "output.gguf must be absent without GGUF in output.formats",
    ),
    "a scheme of a folder that is not exported": (
        {"output": {"compressedTensors": {"scheme": "W4A16"}}},
        "output.compressedTensors must be absent without CompressedTensors in output.formats",
    ),
    "a format of another task": (
        {"model": {"task": "CausalLM"}},
        "model.task must fit data.format, Classification",
    ),
    "two sources of a variable": (
        {"workers": {"env": [{"name": "A", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}},
        "must not have both value and valueFrom",
    ),
    "no source of a variable": (
        {"workers": {"env": [{"name": "A", "valueFrom": {}}]}},
        "must have exactly one of secretKeyRef, configMapKeyRef",
    ),
    "a variable that the operator sets": (
        {"workers": {"env": [{"name": "RANK", "value": "0"}]}},
        "name must not be a variable that the operator sets",
    ),
    "a variable with a reserved beginning": (
        {"workers": {"env": [{"name": "FINETUNE_CACHE", "value": "x"}]}},
        "name must not be a variable that the operator sets",
    ),
    "two sources of a volume": (
        {"stages": {"prepare": {"volumes": [{"name": "data", "emptyDir": {}, "nfs": {}}]}}},
        "must have exactly one source, such as persistentVolumeClaim",
    ),
    "a volume of the operator": (
        {"workers": {"volumes": [{"name": "scratch", "emptyDir": {}}]}},
        "name must not be config, scratch, shared-memory, cache, credentials, which the operator uses",
    ),
    "two sources of variables": (
        {"stages": {"evaluate": {"envFrom": [{"secretRef": {"name": "s"}, "configMapRef": {"name": "c"}}]}}},
        "must have exactly one of secretRef, configMapRef",
    ),
    "a label of the operator": (
        {"workers": {"labels": {"finetune.dev/job": "other"}}},
        "must not have keys that the operator and Jobs of Kubernetes set",
    ),
    "a label of Jobs": ({"stages": {"prepare": {"labels": {"job-name": "other"}}}}, "must not have keys that"),
    "an annotation of Jobs": (
        {"stages": {"evaluate": {"annotations": {"batch.kubernetes.io/job-completion-index": "7"}}}},
        "must not have keys that the operator and Jobs of Kubernetes set",
    ),
    "a password in an address": (
        {"storage": {"endpoint": "https://user:password@s3.example.com"}},
        "endpoint must not contain a user name or password",
    ),
    "a best state that is not kept for an end by overfitting": (
        {"training": {"overfitting": {"action": "Stop"}}, "checkpoint": {"keepBest": 0}},
        "checkpoint.keepBest must be at least 1 with training.overfitting.action Stop",
    ),
    "overfitting without a validation split": (
        {"training": {"overfitting": {}}, "data": {"validation": {"fraction": 0}}},
        "data.validation.fraction must be above 0 with training.overfitting",
    ),
    "a best state that is not kept": (
        {"training": {"earlyStopping": {}}, "checkpoint": {"keepBest": 0}},
        "checkpoint.keepBest must be at least 1 with early stopping",
    ),
}
"""Errors of our CEL rules, which the CRD has."""
