"""Jobs that together use every field and every value of the API.

To cover a new field or value, add it to a job of TRAINED for which it makes sense. Fields without effect on a trainer
go into RENDERED, with their place in a manifest, or into DECIDED, with the test of their effect in the operator.
"""

import json
import re
from typing import Any

from rows import chats, classified, preferences, tagged

_SHORT = {"maxSteps": 3, "learningRate": 1e-3, "globalBatchSize": 8}

TRAINED: dict[str, dict[str, Any]] = {
    "classifier": {
        "model": {"uri": "{models}/bert", "task": "SequenceClassification", "dtype": "Float32"},
        "data": {
            "train": [{"uri": "s3://{bucket}/renamed.jsonl"}],
            "validation": {"fraction": 0.2, "stratify": True},
            "test": {"fraction": 0.2, "stratify": True},
            "format": "Classification",
            "columns": {"text": "sentence", "label": "kind"},
            "maxLength": 32,
            "onBadRecord": "Skip",
            "cleaning": {
                "exactDuplicates": True,
                "unicode": True,
                "whitespace": True,
                "redact": ["Email", "Phone", "CreditCard", "Iban", "IpAddress", "Url"],
                "minChars": 2,
                "maxChars": 10_000,
                "nearDuplicates": 0.99,
                "testOverlap": True,
            },
        },
        "method": {
            "full": {
                "freeze": {"embeddings": False, "firstLayers": 1, "patterns": ["*.LayerNorm.*"]},
                "layerLearningRateDecay": 0.9,
                "pruning": {"algorithm": "Wanda", "sparsity": 0.5},
                "gradualUnfreezing": {"stepsPerPhase": 2, "layersPerPhase": 2, "startLayers": 0},
            }
        },
        "training": {
            **_SHORT,
            "learningRateSchedule": "Polynomial",
            "batching": "Padded",
            "scheduleOptions": {"power": 1.5, "minLearningRateRatio": 0.1},
            "warmup": {"ratio": 0.3},
            "microBatchSize": 2,
            "optimizer": {"name": "AdamW", "beta1": 0.85, "beta2": 0.99, "epsilon": 1e-7},
            "weightDecay": 0.1,
            "maxGradNorm": 0.5,
            "labelSmoothing": 0.1,
            "seed": 7,
            "gradientCheckpointing": True,
            "gradientCheckpointingEveryNLayers": 2,
            "chunkedLoss": False,
            "earlyStopping": {"metric": "MacroF1", "patience": 5, "minDelta": 0.001},
            "overfitting": {"action": "Warn", "maxGap": 0.3, "minRise": 0.1, "patience": 1},
        },
        "deepspeed": {"zeroStage": 1, "offload": "Optimizer", "config": {"wall_clock_breakdown": False}},
        "checkpoint": {
            "maxLostWork": "10m",
            "uploadTimeout": "10m",
            "keepLast": 2,
            "keepBest": 1,
            "keepEvery": 2,
        },
        "evaluation": {
            "everySteps": 2,
            "baseModel": True,
            "simpleBaselines": ["MajorityClass", "TfidfLogisticRegression"],
            "regressionSets": [
                {
                    "name": "general",
                    "sources": [{"uri": "s3://{bucket}/held-out-renamed.jsonl"}],
                    "format": "Classification",
                }
            ],
            "promote": {
                "metric": "MacroF1",
                "thresholds": [{"metric": "Accuracy", "min": 0.0, "max": 1.0}, {"metric": "MacroF1", "min": 0.0}],
                "minGainOverBaseModel": -1.0,
                "maxRegression": 1.0,
                "minGainOverPromoted": -1.0,
                "maxPValue": 1.0,
                "mlflow": {"trackingUri": "http://127.0.0.1:9", "model": "values", "alias": "best"},
            },
        },
        "output": {"uri": "s3://{bucket}/{job}", "formats": ["Merged"], "keepRuns": 2},
        # Nothing listens on this port: a tracker that does not answer neither delays nor fails a stage.
        "tracking": {
            "tensorBoard": {},
            "mlflow": {"trackingUri": "http://127.0.0.1:9", "experiment": "values"},
            "wandb": {"project": "values", "entity": "team", "mode": "Online", "baseUrl": "http://127.0.0.1:9"},
            "trackio": {"serverUrl": "http://127.0.0.1:9", "project": "values"},
        },
        "storage": {"endpoint": "{endpoint}", "region": "us-east-1", "pathStyle": True},
        "workers": {"nodes": 2, "resources": {"limits": {"memory": "64Gi"}}},
        "runNonce": "first",
    },
    "classifier-adapter": {
        "model": {"uri": "{models}/bert", "task": "SequenceClassification", "dtype": "BFloat16"},
        "data": {
            "train": [{"uri": "s3://{bucket}/classified.jsonl"}],
            "validation": {"sources": [{"uri": "s3://{bucket}/held-out.jsonl"}]},
            "test": {"sources": [{"uri": "s3://{bucket}/held-out.jsonl"}]},
            "onBadRecord": "Fail",
        },
        "method": {
            "lora": {
                "rank": 4,
                "alpha": 16,
                "dropout": 0.1,
                "targetModules": ["query", "value"],
                "variant": "LoRA",
                "init": "PiSSA",
            }
        },
        "training": {
            **_SHORT,
            "learningRateSchedule": "Linear",
            "batching": "LengthGrouped",
            "warmup": {"steps": 1},
            "gradientCheckpointing": False,
            "earlyStopping": {"metric": "Accuracy"},
        },
        "deepspeed": {"zeroStage": 0, "offload": "None"},
        "evaluation": {"baseModel": False, "promote": {"metric": "Accuracy"}},
        "output": {"uri": "s3://{bucket}/{job}", "formats": ["Merged", "Adapter"]},
    },
    "text": {
        "model": {"uri": "{models}/llama", "task": "CausalLM", "dtype": "BFloat16"},
        "data": {
            "train": [{"uri": "s3://{bucket}/texts.jsonl"}],
            "validation": {"fraction": 0.2, "stratify": False, "groupBy": "source"},
            "test": {"fraction": 0.2, "stratify": False, "groupBy": "source"},
            "format": "Text",
            "cleaning": {
                "exactDuplicates": False,
                "unicode": False,
                "whitespace": False,
                "testOverlap": False,
                "languages": ["en"],
                "quality": {
                    "minWords": 1,
                    "maxWords": 1000,
                    "minMeanWordLength": 1.0,
                    "maxMeanWordLength": 20.0,
                    "maxSymbols": 0.2,
                    "maxBulletLines": 0.5,
                    "maxEllipsisLines": 0.5,
                    "minAlphabeticWords": 0.5,
                    "minStopWords": 0,
                    "maxDuplicateLines": 0.5,
                    "maxDuplicateLineChars": 0.5,
                    "maxDuplicateParagraphs": 0.5,
                    "maxDuplicateParagraphChars": 0.5,
                    "maxTopNgrams": [0.9, 0.9, 0.9],
                    "maxDuplicateNgrams": [0.9, 0.9, 0.9, 0.9, 0.9, 0.9],
                },
            },
            "fewShot": {"examples": 30},
        },
        "training": {
            "epochs": 1,
            "learningRate": 1e-3,
            "globalBatchSize": 16,
            "learningRateSchedule": "Cosine",
            "earlyStopping": {"metric": "Loss"},
        },
        "method": {
            "full": {
                "freeze": {"embeddings": True},
                "pruning": {"algorithm": "Magnitude", "sparsity": 0.3},
                "gradualUnfreezing": {"epochsPerPhase": 1, "startLayers": 1},
            }
        },
        "deepspeed": {"zeroStage": 3, "offload": "OptimizerAndParameters"},
        "checkpoint": {"everySteps": 2},
        "evaluation": {
            "prompts": ["a very good"],
            "maxNewTokens": 4,
            "promote": {
                "metric": "Loss",
                "thresholds": [{"metric": "Loss", "max": 1e6}, {"metric": "Perplexity", "min": 1.0}],
            },
        },
        "workers": {"nodes": 2},
    },
    "masked": {
        "model": {"uri": "{models}/masked", "task": "MaskedLM"},
        "data": {"train": [{"uri": "s3://{bucket}/texts.jsonl"}], "format": "Text", "maxLength": 16},
        "method": {"layerNormTuning": {}},
        "training": {**_SHORT, "chunkedLoss": True, "earlyStopping": {"metric": "Perplexity"}},
        "evaluation": {"everySteps": 2},
        "output": {"uri": "s3://{bucket}/{job}", "formats": ["Merged", "Adapter"]},
        "tracking": {"wandb": {"project": "values", "mode": "Offline"}},
        "workers": {"nodes": 2},
    },
    "instructions": {
        "model": {
            "uri": "{models}/llama",
            "task": "CausalLM",
            "dtype": "Float16",
            "vocabulary": {"add": ["myocarditis", "COVID-19"], "learn": 3},
        },
        "data": {
            "train": [{"uri": "s3://{bucket}/instructions.jsonl"}],
            "format": "Instruction",
            "columns": {"prompt": "ask", "completion": "answer"},
            "trainOnInputs": False,
        },
        "method": {"full": {"pruning": {"algorithm": "DropLayers", "layers": 1}}},
        "training": {
            **_SHORT,
            "learningRateSchedule": "Constant",
            "optimizer": {"name": "RAdam"},
            "earlyStopping": {"metric": "Perplexity"},
        },
        "deepspeed": {"zeroStage": 2},
        "evaluation": {
            "promote": {"metric": "Perplexity"},
            "regressionSets": [
                {
                    "name": "questions",
                    "sources": [{"uri": "s3://{bucket}/held-out-instructions.jsonl"}],
                    "format": "Instruction",
                }
            ],
        },
    },
    "classifier-scaled": {
        "model": {"uri": "{models}/bert", "task": "SequenceClassification"},
        "data": {
            "train": [{"uri": "s3://{bucket}/classified.jsonl"}],
            "fewShot": {"perClass": 8},
            "augmentation": {
                "copies": 4,
                "methods": ["CharacterNoise", "WordDropout", "WordSwap", "Synonym"],
                "synonyms": {"uri": "s3://{bucket}/synonyms.jsonl"},
                "rate": 0.2,
                "minPerClass": 12,
            },
        },
        "method": {"ia3": {"targetModules": ["key", "value", "intermediate.dense"]}},
        "training": {
            **_SHORT,
            "maxSteps": 6,
            "learningRateSchedule": "CosineWithRestarts",
            "scheduleOptions": {"cycles": 3},
        },
        "deepspeed": {"zeroStage": 3},
        "output": {"uri": "s3://{bucket}/{job}", "formats": ["Adapter", "Merged"]},
    },
    "prompted": {
        "model": {"uri": "{models}/llama", "task": "CausalLM"},
        "data": {"train": [{"uri": "s3://{bucket}/texts.jsonl"}], "format": "Text"},
        "method": {"promptTuning": {"virtualTokens": 5, "initialText": "a"}},
        "training": {
            **_SHORT,
            "batching": "LengthGrouped",
            "gradientCheckpointing": True,
            "learningRateSchedule": "ReduceOnPlateau",
            "scheduleOptions": {"factor": 0.5, "patience": 0},
        },
        "deepspeed": {"zeroStage": 3},
        "evaluation": {"everySteps": 1, "prompts": ["a very good"], "maxNewTokens": 4},
        "output": {"uri": "s3://{bucket}/{job}", "formats": ["Adapter"]},
        "workers": {"nodes": 2},
    },
    "classifier-norms": {
        "model": {"uri": "{models}/bert", "task": "SequenceClassification"},
        "data": {"train": [{"uri": "s3://{bucket}/classified.jsonl"}]},
        "method": {"layerNormTuning": {}},
        "training": {"maxSteps": 3, "globalBatchSize": 8},
        "output": {"uri": "s3://{bucket}/{job}", "formats": ["Adapter", "Merged"]},
        "workers": {"nodes": 2},
    },
    "classifier-subspace": {
        "model": {"uri": "{models}/bert", "task": "SequenceClassification", "dtype": "BFloat16"},
        "data": {"train": [{"uri": "s3://{bucket}/classified.jsonl"}]},
        "method": {"osft": {"keptShare": 0.7, "targetModules": ["query", "dense"]}},
        "training": _SHORT,
        "output": {"uri": "s3://{bucket}/{job}", "formats": ["Adapter", "Merged"]},
    },
    "classifier-pairs": {
        "model": {"uri": "{models}/bert", "task": "SequenceClassification"},
        "data": {"train": [{"uri": "s3://{bucket}/classified.jsonl"}], "fewShot": {"perClass": 8}},
        "method": {"setFit": {}},
        "training": {**_SHORT, "earlyStopping": {"metric": "Accuracy"}},
        "evaluation": {"everySteps": 1},
        "output": {"uri": "s3://{bucket}/{job}", "formats": ["Merged", "Int8"]},
        "workers": {"nodes": 2},
    },
    "prefixed": {
        "model": {"uri": "{models}/llama", "task": "CausalLM"},
        "data": {"train": [{"uri": "s3://{bucket}/texts.jsonl"}], "format": "Text"},
        "method": {"prefixTuning": {"virtualTokens": 5, "projection": True}},
        "training": {**_SHORT, "gradientCheckpointing": False},
        "evaluation": {"prompts": ["a very good"], "maxNewTokens": 4},
        "output": {"uri": "s3://{bucket}/{job}", "formats": ["Adapter"]},
        "workers": {"nodes": 2},
    },
    "prefixed-without-projection": {
        "model": {"uri": "{models}/llama", "task": "CausalLM", "dtype": "BFloat16"},
        "data": {"train": [{"uri": "s3://{bucket}/texts.jsonl"}], "format": "Text"},
        "method": {"prefixTuning": {"virtualTokens": 5, "projection": False}},
        "training": {**_SHORT, "gradientCheckpointing": False},
        "deepspeed": {"zeroStage": 2},
        "output": {"uri": "s3://{bucket}/{job}", "formats": ["Adapter"]},
    },
    "prompted-by-mlp": {
        "model": {"uri": "{models}/llama", "task": "CausalLM"},
        "data": {"train": [{"uri": "s3://{bucket}/texts.jsonl"}], "format": "Text"},
        "method": {"pTuning": {"virtualTokens": 5, "encoderReparameterization": "MLP"}},
        "training": {**_SHORT, "batching": "LengthGrouped", "chunkedLoss": True},
        "evaluation": {"prompts": ["a very good"], "maxNewTokens": 4},
        "output": {"uri": "s3://{bucket}/{job}", "formats": ["Adapter"]},
        "workers": {"nodes": 2},
    },
    "prompted-by-lstm": {
        "model": {"uri": "{models}/llama", "task": "CausalLM", "dtype": "BFloat16"},
        "data": {"train": [{"uri": "s3://{bucket}/texts.jsonl"}], "format": "Text"},
        "method": {"pTuning": {"encoderReparameterization": "LSTM", "encoderHiddenSize": 12}},
        "training": _SHORT,
        "deepspeed": {"zeroStage": 2},
        "output": {"uri": "s3://{bucket}/{job}", "formats": ["Adapter"]},
    },
    "quantized": {
        "model": {
            "uri": "{models}/llama",
            "task": "CausalLM",
            "quantization": "NF4",
            "vocabulary": {"add": ["myocarditis"], "learn": 3},
        },
        "data": {"train": [{"uri": "s3://{bucket}/texts.jsonl"}], "format": "Text"},
        "method": {"lora": {}},
        "training": {**_SHORT, "gradientCheckpointing": True},
        "evaluation": {"prompts": ["a very good"], "maxNewTokens": 4},
        "output": {
            "uri": "s3://{bucket}/{job}",
            "formats": ["Merged", "Int8", "GGUF", "CompressedTensors"],
            "compressedTensors": {"scheme": "W8A16"},
            "gguf": {"types": ["F16", "BF16", "Q8_0", "Q5_0", "Q4_0"]},
        },
        "workers": {"nodes": 2},
    },
    "quantized-classifier": {
        "model": {"uri": "{models}/bert-wide", "task": "SequenceClassification", "quantization": "Int8"},
        "data": {"train": [{"uri": "s3://{bucket}/classified.jsonl"}]},
        "method": {"lora": {"variant": "DoRA"}},
        "training": _SHORT,
        "output": {
            "uri": "s3://{bucket}/{job}",
            "formats": ["Adapter", "Merged", "Int8", "CompressedTensors"],
            "compressedTensors": {"scheme": "W4A16"},
        },
    },
    "chats": {
        "model": {"uri": "{models}/llama-chat"},
        "data": {
            "train": [{"uri": "s3://{bucket}/chats.jsonl", "weight": 1.5}],
            "format": "Chat",
            "columns": {"messages": "transitions"},
            "trainOnInputs": True,
        },
        "method": {"lora": {"variant": "RsLoRA", "init": "Kaiming", "learningRateRatio": 4}},
        "training": {
            **_SHORT,
            "learningRateSchedule": "InverseSqrt",
            "batching": "Packed",
            "warmup": {"steps": 1},
            "overfitting": {"action": "Stop"},
        },
        "evaluation": {
            "regressionSets": [
                {"name": "text", "sources": [{"uri": "s3://{bucket}/texts.jsonl"}], "format": "Text"},
                {"name": "chats", "sources": [{"uri": "s3://{bucket}/held-out-chats.jsonl"}], "format": "Chat"},
            ]
        },
    },
    "preferences": {
        "model": {"uri": "{models}/llama-chat", "task": "Preference"},
        "data": {
            "train": [{"uri": "s3://{bucket}/pairs.jsonl"}],
            "format": "Preference",
            "columns": {"prompt": "ask", "chosen": "better", "rejected": "worse"},
            "maxLength": 64,
        },
        "method": {"lora": {}},
        "training": {**_SHORT, "dpo": {"beta": 0.5}, "earlyStopping": {"metric": "Margin"}},
        "evaluation": {
            "everySteps": 1,
            "prompts": ["what is 1 and 1?"],
            "maxNewTokens": 4,
            "promote": {"metric": "Margin", "thresholds": [{"metric": "Margin", "min": -100.0}]},
            "regressionSets": [
                {"name": "others", "sources": [{"uri": "s3://{bucket}/other-pairs.jsonl"}], "format": "Preference"}
            ],
        },
        "output": {"uri": "s3://{bucket}/{job}", "formats": ["Adapter", "Merged", "Int8"]},
        "workers": {"nodes": 2},
    },
    "token-classifier": {
        "model": {"uri": "{models}/bert", "task": "TokenClassification"},
        "data": {
            "train": [{"uri": "s3://{bucket}/tagged.jsonl"}],
            "format": "TokenClassification",
            "columns": {"tokens": "words", "tags": "names"},
        },
        "method": {"lora": {"variant": "DoRA", "init": "Gaussian"}},
        "training": {
            **_SHORT,
            "learningRateSchedule": "WarmupStableDecay",
            "scheduleOptions": {"decayRatio": 0.5},
            "earlyStopping": {"metric": "EntityF1"},
        },
        "evaluation": {
            "everySteps": 2,
            "promote": {"metric": "EntityF1", "thresholds": [{"metric": "EntityF1", "min": 0.0}]},
            "regressionSets": [
                {
                    "name": "other",
                    "sources": [{"uri": "s3://{bucket}/held-out-tagged.jsonl"}],
                    "format": "TokenClassification",
                }
            ],
        },
        "output": {"uri": "s3://{bucket}/{job}", "formats": ["Merged", "Adapter"]},
    },
}
"""Job -> its spec. `{models}` is the address of a folder of models, `{bucket}` a bucket, `{endpoint}` its server,
`{job}` the name of the job."""


def made_for(spec: dict[str, Any], **places: str) -> dict[str, Any]:
    """The spec with its placeholders replaced."""
    text = json.dumps(spec)
    for name, value in places.items():
        text = text.replace(f"{{{name}}}", value)
    made: dict[str, Any] = json.loads(text)
    return made


def data_files() -> dict[str, list[dict[str, Any]]]:
    """File name -> its rows."""
    rows = classified(60)
    return {
        "classified": rows,
        "held-out": [{**row, "text": f"{row['text']} again"} for row in rows[:15]],
        "renamed": [{"sentence": row["text"], "kind": row["label"]} for row in [*rows, *rows[:3]]]
        + [{"sentence": "no kind"}, {"sentence": "  caf\u00c3\u00a9 of jo@example.com", "kind": rows[0]["label"]}],
        "texts": [{"text": row["text"], "source": number // 3} for number, row in enumerate(rows)],
        "instructions": [{"ask": f"what is {row['label']}?", "answer": row["text"]} for row in rows],
        "tagged": [{"words": row["tokens"], "names": row["tags"]} for row in tagged(60)],
        "synonyms": [{"word": word, "synonyms": ["fine"]} for word in {w for row in rows for w in row["text"].split()}],
        "chats": [{"transitions": row["messages"]} for row in chats(40)],
        "pairs": renamed_pairs(60),
        "other-pairs": renamed_pairs(70)[60:],
        "held-out-renamed": [{"sentence": f"{row['text']} again", "kind": row["label"]} for row in rows[:5]]
        + [{"sentence": "no kind"}, {"sentence": "another kind", "kind": "another"}],
        "held-out-instructions": [{"ask": f"who is {row['label']}?", "answer": row["text"]} for row in rows[:5]],
        "held-out-tagged": [{"words": row["tokens"][::-1], "names": row["tags"][::-1]} for row in tagged(5)],
        "held-out-chats": [{"transitions": row["messages"]} for row in chats(50)[40:]],
    }


def renamed_pairs(count: int) -> list[dict[str, Any]]:
    """Preference records whose columns have other names."""
    return [{"ask": row["prompt"], "better": row["chosen"], "worse": row["rejected"]} for row in preferences(count)]


METADATA, POD, CONTAINER = "template.metadata", "template.spec", "template.spec.containers[0]"

_NODE_RULE = {"matchExpressions": [{"key": "gpu.model", "operator": "In", "values": ["h100", "h200"]}]}
_SELECTED = {"matchLabels": {"finetune.dev/job": "job"}}
_AFFINITY = {
    "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [_NODE_RULE]}},
    "podAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 5, "podAffinityTerm": {"labelSelector": _SELECTED, "topologyKey": "rack"}}
        ]
    },
    "podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"team": "web"}}, "topologyKey": "kubernetes.io/hostname"}
        ]
    },
}
_SPREADS = [
    {
        "maxSkew": 1,
        "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": _SELECTED,
        "matchLabelKeys": ["finetune.dev/attempt"],
        "minDomains": 2,
        "nodeAffinityPolicy": "Honor",
        "nodeTaintsPolicy": "Honor",
    },
    {
        "maxSkew": 2,
        "topologyKey": "rack",
        "whenUnsatisfiable": "ScheduleAnyway",
        "nodeAffinityPolicy": "Ignore",
        "nodeTaintsPolicy": "Ignore",
    },
]
_VOLUMES: list[dict[str, Any]] = [
    {"name": "settings", "configMap": {"name": "settings", "optional": True}},
    {"name": "license", "secret": {"secretName": "license", "defaultMode": 0o400}},
    {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token", "audience": "vault"}}]}},
    {
        "name": "about",
        "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]},
    },
    {"name": "fast", "emptyDir": {"sizeLimit": "1Gi"}},
    {"name": "corpus", "persistentVolumeClaim": {"claimName": "corpus", "readOnly": True}},
    {
        "name": "working",
        "ephemeral": {
            "volumeClaimTemplate": {
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Ti"}}}
            }
        },
    },
    {"name": "vault", "csi": {"driver": "secrets-store.csi.k8s.io", "volumeAttributes": {"provider": "vault"}}},
    {"name": "shared", "nfs": {"server": "nfs.example.com", "path": "/exports"}},
    {"name": "models", "image": {"reference": "registry.example.com/models:1", "pullPolicy": "IfNotPresent"}},
    {"name": "devices", "hostPath": {"path": "/dev/infiniband", "type": "Directory"}},
]
_MOUNTS: list[dict[str, Any]] = [
    *({"name": volume["name"], "mountPath": f"/mnt/{volume['name']}"} for volume in _VOLUMES[:-3]),
    {"name": "shared", "mountPath": "/data", "readOnly": True, "subPath": "corpus", "mountPropagation": "None"},
    {"name": "shared", "mountPath": "/own", "subPathExpr": "$(FINETUNE_NODE_RANK)", "readOnly": False},
    {"name": "models", "mountPath": "/models"},
    {"name": "devices", "mountPath": "/dev/infiniband", "mountPropagation": "HostToContainer"},
]
_ENV_FROM: list[dict[str, Any]] = [
    {"prefix": "HUB_", "secretRef": {"name": "hub", "optional": False}},
    {"secretRef": {"name": "more", "optional": True}},
    {"configMapRef": {"name": "proxy", "optional": True}},
    {"configMapRef": {"name": "settings", "optional": False}},
]
POD_SETTINGS: dict[str, tuple[dict[str, Any], str, Any]] = {
    "affinity": ({"affinity": _AFFINITY}, f"{POD}.affinity", _AFFINITY),
    "spreads": ({"topologySpreadConstraints": _SPREADS}, f"{POD}.topologySpreadConstraints", _SPREADS),
    "scheduler": ({"schedulerName": "volcano"}, f"{POD}.schedulerName", "volcano"),
    "runtime_class": ({"runtimeClassName": "nvidia"}, f"{POD}.runtimeClassName", "nvidia"),
    "host_network": ({"hostNetwork": True}, f"{POD}.hostNetwork", True),
    "host_network_names": ({"hostNetwork": True}, f"{POD}.dnsPolicy", "ClusterFirstWithHostNet"),
    "capabilities": (
        {"capabilities": ["IPC_LOCK"]},
        f"{CONTAINER}.securityContext.capabilities",
        {"drop": ["ALL"], "add": ["IPC_LOCK"]},
    ),
    "rdma": (
        {"resources": {"limits": {"rdma/hca_shared_devices_a": 1}}},
        f"{CONTAINER}.resources.limits",
        {"rdma/hca_shared_devices_a": "1"},
    ),
    **{
        f"volume_{volume['name']}": ({"volumes": _VOLUMES}, f"{POD}.volumes[{index}]", volume)
        for index, volume in enumerate(_VOLUMES, start=-len(_VOLUMES))
    },
    **{
        f"mount_{mount['mountPath']}": (
            {"volumes": _VOLUMES, "volumeMounts": _MOUNTS},
            f"{CONTAINER}.volumeMounts[{index}]",
            {name: value for name, value in mount.items() if value is not False},
        )
        for index, mount in enumerate(_MOUNTS, start=-len(_MOUNTS))
    },
    "env_from": ({"envFrom": _ENV_FROM}, f"{CONTAINER}.envFrom", _ENV_FROM),
    "labels": ({"labels": {"team": "nlp", "example.com/empty": ""}}, f"{METADATA}.labels.team", "nlp"),
    "annotations": (
        {"annotations": {"sidecar.istio.io/inject": "false"}},
        f"{METADATA}.annotations",
        {"sidecar.istio.io/inject": "false"},
    ),
}
"""Row -> a block of settings of pods, a path below the `spec` of the Job, and the expected value. One job can have all
of these blocks for all stages, except those of `_ALTERNATIVES`."""
_ALTERNATIVES: dict[str, tuple[dict[str, Any], str, Any]] = {
    "pod_network": ({"hostNetwork": False}, f"{POD}.hostNetwork", None),
    **{
        f"image_pull_policy_{policy}": ({"imagePullPolicy": policy}, f"{CONTAINER}.imagePullPolicy", policy)
        for policy in ("Always", "IfNotPresent", "Never")
    },
}


def found_at(manifest: Any, path: str) -> Any:
    """`a.b[0].c` within a manifest; None if it has no field `c`."""
    for name, index in re.findall(r"([^.\[\]]+)|\[(-?\d+)\]", path):
        manifest = manifest.get(name) if name else manifest[int(index)]
    return manifest


RENDERED: dict[str, tuple[dict[str, Any], str, Any]] = {
    "gpus": ({"gpusPerNode": 2}, f"{CONTAINER}.resources.limits", {"nvidia.com/gpu": "2"}),
    "requests": ({"resources": {"requests": {"cpu": "2"}}}, f"{CONTAINER}.resources.requests.cpu", "2"),
    "limits": ({"resources": {"limits": {"memory": "8Gi"}}}, f"{CONTAINER}.resources.limits", {"memory": "8Gi"}),
    "env": ({"env": [{"name": "A", "value": "b"}]}, f"{CONTAINER}.env[-1]", {"name": "A", "value": "b"}),
    **{
        f"env_from_{kind}_{optional}": (
            {"env": [{"name": "A", "valueFrom": {kind: {"name": "n", "key": "k", "optional": optional}}}]},
            f"{CONTAINER}.env[-1]",
            {"name": "A", "valueFrom": {kind: {"name": "n", "key": "k", "optional": optional}}},
        )
        for kind in ("secretKeyRef", "configMapKeyRef")
        for optional in (True, False)
    },
    "image": ({"image": "own:1"}, f"{CONTAINER}.image", "own:1"),
    "image_pull_secrets": ({"imagePullSecrets": ["pull"]}, f"{POD}.imagePullSecrets", [{"name": "pull"}]),
    "node_selector": ({"nodeSelector": {"pool": "gpu"}}, f"{POD}.nodeSelector", {"pool": "gpu"}),
    "any_taint": (
        {"tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}]},
        f"{POD}.tolerations[-1]",
        {"key": "spot", "operator": "Exists", "effect": "NoSchedule"},
    ),
    "one_taint": (
        {"tolerations": [{"key": "a", "operator": "Equal", "value": "b", "effect": "PreferNoSchedule"}]},
        f"{POD}.tolerations[-1]",
        {"key": "a", "operator": "Equal", "value": "b", "effect": "PreferNoSchedule"},
    ),
    "taint_for_a_while": (
        {"tolerations": [{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]},
        f"{POD}.tolerations[-1]",
        {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
    ),
    "service_account": ({"serviceAccountName": "trainer"}, f"{POD}.serviceAccountName", "trainer"),
    "queue": ({"queue": "team"}, "suspend", True),
    "priority": ({"priorityClassName": "low"}, f"{POD}.priorityClassName", "low"),
    "shared_memory": ({"sharedMemory": "4Gi"}, f"{POD}.volumes[2].emptyDir.sizeLimit", "4Gi"),
    "cache": (
        {"cache": {"claimName": "disk"}},
        f"{POD}.volumes[-1].persistentVolumeClaim",
        {"claimName": "disk"},
    ),
    "gpu_resource": (
        {"gpusPerNode": 1, "gpuResource": "nvidia.com/mig-1g.10gb"},
        f"{CONTAINER}.resources.limits",
        {"nvidia.com/mig-1g.10gb": "1"},
    ),
    # Used by the prepare stage; it must not become a resource of the pod.
    "gpu_memory": (
        {"gpusPerNode": 1, "gpuMemory": "80Gi"},
        f"{CONTAINER}.resources.limits",
        {"nvidia.com/gpu": "1"},
    ),
    **POD_SETTINGS,
    **_ALTERNATIVES,
}
"""Row -> the block `workers`, a path below the `spec` of the training's Job, and the expected value."""

_STAGE_FIELDS: dict[str, tuple[dict[str, Any], str, Any]] = {
    name: RENDERED[name]
    for name in (
        *("requests", "limits", "node_selector", "any_taint", "one_taint", "taint_for_a_while"),
        *(*POD_SETTINGS, *_ALTERNATIVES),
    )
}
STAGE_PODS: dict[str, tuple[str, dict[str, Any], str, Any]] = {
    f"{stage}_{name}": (stage, *row) for stage in ("prepare", "evaluate") for name, row in _STAGE_FIELDS.items()
} | {
    "evaluate_gpu": ("evaluate", {"gpus": 1}, f"{CONTAINER}.resources.limits", {"nvidia.com/gpu": "1"}),
    "evaluate_no_gpu": ("evaluate", {"gpus": 0}, f"{CONTAINER}.resources.requests.cpu", "1"),
}
"""Row -> the stage, its block of `stages`, a path below the `spec` of its Job, and the expected value."""

_LIFE_CYCLE = "kubernetes/test_life_cycle.py"
_SCHEDULE = "unit/policy/test_run_schedule.py"

DECIDED: dict[str, tuple[str, str, str]] = {
    "suspend=true": ("suspend=True", _LIFE_CYCLE, "test_a_suspended_job_saves_and_resumes"),
    "suspend=false": ("suspend=False", _LIFE_CYCLE, "test_a_suspended_job_saves_and_resumes"),
    "ttlSecondsAfterFinished": (
        "ttlSecondsAfterFinished=1",
        _LIFE_CYCLE,
        "test_children_are_deleted_after_their_time_to_live_and_the_object_is_kept",
    ),
    "budget.deadline": ('"deadline"', _LIFE_CYCLE, "test_a_job_beyond_its_deadline_fails_with_its_state_saved"),
    "restart.maxRestarts": (
        '"maxRestarts": 3',
        "unit/policy/test_policies.py",
        "test_attempts_that_end_before_they_report_anything_reach_max_restarts",
    ),
    "restart.maxDisruptions": (
        "DISRUPTIONS_EXHAUSTED",
        "unit/policy/test_restart_policy.py",
        "test_restarts_have_a_budget_and_a_backoff",
    ),
    "workers.minNodes": (
        '"minNodes"',
        _LIFE_CYCLE,
        "test_a_job_that_lacks_workers_starts_with_fewer_and_requests_all_at_the_next_restart",
    ),
    "workers.startTimeout": (
        '"startTimeout"',
        "unit/policy/test_reconcile_plan.py",
        "test_a_waiting_job_is_reconciled_at_its_start_timeout",
    ),
    "storage.credentialsSecret": (
        '"credentialsSecret"',
        "unit/render/test_render.py",
        "test_the_operators_volumes_have_the_names_and_paths_that_jobs_cannot_use",
    ),
    "storage.pathStyle=false": (
        '"pathStyle": False',
        "unit/policy/test_policies.py",
        "test_a_jobs_own_storage_has_precedence_over_that_of_the_operator",
    ),
    "updatePolicy=Restart": ("world.change(", _LIFE_CYCLE, "test_a_changed_spec_is_a_new_run"),
    "updatePolicy=Ignore": (
        'updatePolicy="Ignore"',
        _LIFE_CYCLE,
        "test_with_update_policy_ignore_a_run_is_completed_before_the_next_one_starts",
    ),
    "reuse=Always": (
        "changed_and_back(",
        "unit/policy/test_reuse.py",
        "test_a_complete_run_is_the_current_one_again_and_nothing_is_started",
    ),
    "reuse=Never": (
        "NOT_REUSED",
        "unit/policy/test_reuse.py",
        "test_a_run_that_cannot_be_reused_is_replaced_by_a_new_one",
    ),
    "historyLimit": (
        "with_history_limit(",
        "unit/policy/test_status_shape.py",
        "test_the_history_keeps_the_newest_runs_oldest_first",
    ),
    "data.poll": ("POLLED", "unit/policy/test_poll_policy.py", "test_a_run_whose_start_was_not_recorded_is_adopted"),
    "schedule.cron": ('"cron"', _LIFE_CYCLE, "test_a_scheduled_time_starts_a_run_of_the_same_spec"),
    "schedule.timeZone": ('"zone"', _SCHEDULE, "test_times_are_those_of_the_expression_in_its_zone"),
    "schedule.concurrencyPolicy=Forbid": (
        '"Forbid"',
        _SCHEDULE,
        "test_the_concurrency_policy_decides_about_a_run_in_progress",
    ),
    "schedule.concurrencyPolicy=Replace": (
        '"Replace"',
        _SCHEDULE,
        "test_the_concurrency_policy_decides_about_a_run_in_progress",
    ),
    "schedule.startingDeadlineSeconds": (
        '"startingDeadlineSeconds"',
        _SCHEDULE,
        "test_a_time_that_is_too_long_ago_starts_no_run",
    ),
}
"""Value that only the operator uses -> what the test of its effect contains, its file below tests/, and its name."""
