"""Rendering is pure: the same input gives the same manifests, all names are valid, and the numbers agree."""

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from factories import make_job as make_manifest
from finetune_api import constants
from finetune_api.constants import Env, Stage
from finetune_api.evaluation_needs import EvaluationNeeds
from finetune_api.redaction import without_secrets
from finetune_api.stages import run_stages
from finetune_api.trainer_config import StorageSettings, TrainerConfig
from finetune_api.v1alpha1 import Dtype, FineTuneJob, ResolvedStatus, Workers
from finetune_api.validation import parse_job
from finetune_operator import names
from finetune_operator.pod_defaults import parse_defaults
from finetune_operator.policy.world import evaluation_needs, stage_config
from finetune_operator.render import gang_size, render_all, render_stage
from finetune_operator.settings import OperatorSettings, PodAdditions
from finetune_trainer.supervisor.supervisor import rank_environments

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
JOB_NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True)


def make_job(name: str = "example", nodes: int = 1, gpus: int = 0, batch: int = 512, uid: str = "u1") -> FineTuneJob:
    return parse_job(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": name, "uid": uid},
            "spec": {
                "model": {"uri": "s3://bucket/model"},
                "data": {"train": [{"uri": "s3://bucket/train.jsonl"}]},
                "training": {"learningRate": 2e-5, "globalBatchSize": batch},
                "workers": {"nodes": nodes, "gpusPerNode": gpus, "env": [{"name": "NCCL_DEBUG", "value": "INFO"}]},
                "output": {"uri": "s3://bucket/out"},
            },
        }
    )


def rendered(
    job: FineTuneJob,
    stage: Stage = Stage.TRAIN,
    run: int = 1,
    attempt: int = 1,
    settings: OperatorSettings | None = None,
) -> dict[str, Any]:
    config = stage_config(job, run, stage, attempt, StorageSettings())
    return {manifest["kind"]: manifest for manifest in render_stage(config, settings or OperatorSettings())}


@given(name=JOB_NAMES, run=st.integers(1, 9999), attempt=st.integers(1, 9999), stage=st.sampled_from(Stage))
@example(name="7b-chat", run=1, attempt=1, stage=Stage.TRAIN)
@example(name="7" * 40, run=9999, attempt=9999, stage=Stage.TRAIN)
def test_every_name_is_valid_for_its_kind(name: str, run: int, attempt: int, stage: Stage) -> None:
    children = rendered(make_job(name, nodes=512), stage, run, attempt)
    pods = children["Job"]["spec"]["completions"]
    assert DNS_LABEL.fullmatch(f"{children['Job']['metadata']['name']}-{pods - 1}")
    assert DNS_LABEL.fullmatch(children["ConfigMap"]["metadata"]["name"])
    for key, value in children["Job"]["metadata"]["labels"].items():
        assert LABEL_VALUE.fullmatch(value), key
    if "Service" in children:
        service, pod = children["Service"]["metadata"]["name"], children["Job"]["spec"]["template"]["spec"]
        assert SERVICE_NAME.fullmatch(service)
        assert pod["subdomain"] == service
        (master,) = [entry["value"] for entry in pod["containers"][0]["env"] if entry["name"] == Env.MASTER_ADDR]
        assert master == f"{children['Job']['metadata']['name']}-0.{service}"
        assert all(DNS_LABEL.fullmatch(label) for label in master.split("."))


@given(first=JOB_NAMES, second=JOB_NAMES)
@example(first="7b", second="s-7b")
def test_services_of_different_jobs_have_different_names(first: str, second: str) -> None:
    names = {rendered(make_job(name, nodes=2))["Service"]["metadata"]["name"] for name in (first, second)}
    assert len(names) == len({first, second})


@given(nodes=st.sampled_from([1, 2, 4, 8]), gpus=st.sampled_from([0, 1, 2, 8]))
def test_pods_times_gpus_is_the_world_size_for_the_batch(nodes: int, gpus: int) -> None:
    children = rendered(make_job(nodes=nodes, gpus=gpus))
    config = TrainerConfig.model_validate_json(children["ConfigMap"]["data"][constants.CONFIG_KEY])
    container = children["Job"]["spec"]["template"]["spec"]["containers"][0]
    assert children["Job"]["spec"]["completions"] == nodes
    assert container["resources"].get("limits", {}).get("nvidia.com/gpu") == (str(gpus) if gpus else None)
    assert config.world.size == nodes * max(1, gpus)
    assert config.batch.micro_size * config.batch.accumulation * config.world.size == 512


def test_rendering_twice_gives_the_same() -> None:
    assert render_all(make_job(nodes=2), OperatorSettings()) == render_all(make_job(nodes=2), OperatorSettings())


def test_the_trainer_reads_back_what_the_operator_wrote() -> None:
    job = make_job(nodes=2)
    text = rendered(job)["ConfigMap"]["data"][constants.CONFIG_KEY]
    reported = stage_config(job, 1, Stage.TRAIN, 1, StorageSettings())
    assert TrainerConfig.model_validate_json(text) == reported.model_copy(update={"spec": without_secrets(job.spec)})


def test_pods_comply_with_the_restricted_standard() -> None:
    spec = rendered(make_job(gpus=2))["Job"]["spec"]["template"]["spec"]
    container = spec["containers"][0]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {next(iter(set(volume) - {"name"})) for volume in spec["volumes"]} == {"configMap", "emptyDir"}


def test_the_owner_of_cached_files_is_not_changed_at_every_start() -> None:
    context = rendered(make_job())["Job"]["spec"]["template"]["spec"]["securityContext"]
    assert (context["fsGroup"], context["fsGroupChangePolicy"]) == (10001, "OnRootMismatch")


def test_pods_have_no_user_if_the_cluster_assigns_users() -> None:
    children = rendered(make_job(), settings=OperatorSettings(run_as_user=None))
    context = children["Job"]["spec"]["template"]["spec"]["securityContext"]
    assert context == {
        "runAsNonRoot": True,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


@pytest.mark.parametrize(
    ("resources", "default", "requested"),
    [
        ({}, "1Gi", "1Gi"),
        ({}, "0", None),
        ({"requests": {"cpu": 0.5, "ephemeral-storage": "7Gi"}}, "1Gi", "7Gi"),
        ({"requests": {"ephemeral-storage": 0}}, "1Gi", "0"),
        ({"limits": {"ephemeral-storage": "500Mi"}}, "1Gi", None),
    ],
)
def test_pods_request_disk_unless_the_job_does(resources: dict[str, Any], default: str, requested: str | None) -> None:
    job = parse_job(make_manifest(workers={"resources": resources}))
    children = rendered(job, settings=OperatorSettings(ephemeral_storage=default))
    asked = children["Job"]["spec"]["template"]["spec"]["containers"][0]["resources"].get("requests", {})
    assert asked.get("ephemeral-storage") == requested


@pytest.mark.parametrize(
    ("workers", "requested"),
    [
        ({}, "14376Mi"),  # 1 GiB and 14 GB
        ({"cache": {"claimName": "models"}}, "1Gi"),
        ({"resources": {"requests": {"ephemeral-storage": "5Gi"}}}, "5Gi"),
    ],
)
def test_pods_request_disk_for_the_model_once_its_size_is_known(workers: dict[str, Any], requested: str) -> None:
    config = stage_config(parse_job(make_manifest(workers=workers)), 1, Stage.TRAIN, 1, StorageSettings())
    needs = EvaluationNeeds(parameters=7_000_000_000, test_tokens=0, dtype=Dtype.BFLOAT16)
    *_, job = render_stage(config, OperatorSettings(), needs=needs)
    requests = job["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert requests["ephemeral-storage"] == requested


def test_a_failed_pod_fails_the_attempt_without_retries_of_kubernetes() -> None:
    spec = rendered(make_job(nodes=2))["Job"]["spec"]
    assert (spec["backoffLimit"], spec["template"]["spec"]["restartPolicy"]) == (0, "Never")
    assert spec["podReplacementPolicy"] == "Failed"
    permanent = spec["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"]
    assert permanent == [64, 65, 66, 77, 78, 79]


def test_ranks_find_each_other_by_the_name_of_the_first_pod() -> None:
    children = rendered(make_job(nodes=2), attempt=3)
    environment = {
        entry["name"]: entry.get("value")
        for entry in children["Job"]["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert environment[Env.MASTER_ADDR] == "example-r1-train-a3-0.example-r1-train-a3"
    assert children["Service"]["metadata"]["name"] == "example-r1-train-a3"
    assert children["Service"]["spec"]["publishNotReadyAddresses"] is True
    assert environment["NCCL_DEBUG"] == "INFO"


@pytest.mark.parametrize(
    ("resources", "gpus", "threads"),
    [
        ({}, 0, None),
        ({"requests": {"cpu": "4"}}, 0, "4"),
        ({"limits": {"cpu": "6"}}, 0, "6"),
        ({"requests": {"cpu": "2500m"}, "limits": {"cpu": "6"}}, 0, "2"),
        ({"requests": {"cpu": "500m"}}, 0, "1"),
        ({"requests": {"cpu": "16"}}, 8, "2"),
    ],
)
def test_processes_use_at_most_as_many_threads_as_their_pod_has_cpus(
    resources: dict[str, Any], gpus: int, threads: str | None
) -> None:
    job = make_job(gpus=gpus)
    workers = Workers.model_validate({"nodes": 1, "gpusPerNode": gpus, "resources": resources})
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"workers": workers})})
    container = rendered(job)["Job"]["spec"]["template"]["spec"]["containers"][0]
    found = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert found.get(Env.OMP_NUM_THREADS) == threads


def test_only_training_gets_every_worker() -> None:
    job = make_job(nodes=4, gpus=2)
    pods = {stage: rendered(job, stage)["Job"]["spec"]["completions"] for stage in run_stages()}
    assert pods == {Stage.PREPARE: 1, Stage.TRAIN: 4, Stage.EVALUATE: 1}


def test_a_service_never_selects_the_pods_of_a_deleted_job_of_the_same_name() -> None:
    """Both have pods with the same host names for a while; a worker that reached an old pod would hang."""
    old, new = (rendered(make_job(nodes=2, uid=uid)) for uid in ("u1", "u2"))
    labels = old["Job"]["spec"]["template"]["metadata"]["labels"]
    selector = new["Service"]["spec"]["selector"]
    assert {name for name, value in selector.items() if labels.get(name) != value} >= {constants.LABEL_JOB_UID}


WORKERS = {
    "nodes": 2,
    "gpusPerNode": 8,
    "resources": {"requests": {"cpu": "96", "rdma/hca": "1"}, "limits": {"memory": "900Gi"}},
    "nodeSelector": {"pool": "h100"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
}
SMALL = ResolvedStatus(dtype="BFloat16", parameters=100_000_000, test_tokens=50_000)
LARGE = ResolvedStatus(dtype="BFloat16", parameters=8_000_000_000, test_tokens=500_000)
CPU_POD = {"cpu": "1", "memory": "2Gi"}
PLACEMENTS = [
    pytest.param(Stage.PREPARE, {}, SMALL, CPU_POD, {}, [], id="prepare"),
    pytest.param(Stage.EVALUATE, {}, None, CPU_POD, {}, [], id="unknown size"),
    pytest.param(Stage.EVALUATE, {}, SMALL, {"cpu": "1", "memory": "1253Mi"}, {}, [], id="a small model"),
    pytest.param(
        Stage.EVALUATE, {}, LARGE, {"cpu": "1", "memory": "19335Mi"}, {"pool": "h100"}, ["gpu"], id="a large model"
    ),
    pytest.param(
        Stage.EVALUATE,
        {"evaluate": {"gpus": 0, "nodeSelector": {"pool": "cpu"}}},
        LARGE,
        {"cpu": "1", "memory": "19335Mi"},
        {"pool": "cpu"},
        [],
        id="no GPU requested",
    ),
    pytest.param(
        Stage.EVALUATE,
        {"evaluate": {"gpus": 1, "resources": {"requests": {"cpu": "8"}, "limits": {"memory": "64Gi"}}}},
        SMALL,
        {"cpu": "8"},
        {"pool": "h100"},
        ["gpu"],
        id="a GPU wanted",
    ),
    pytest.param(
        Stage.PREPARE,
        {"prepare": {"resources": {"requests": {"memory": "4Gi"}}, "tolerations": [{"key": "spot"}]}},
        None,
        {"cpu": "1", "memory": "4Gi"},
        {},
        ["spot"],
        id="its own",
    ),
]


@pytest.mark.parametrize(("stage", "stages", "resolved", "requests", "selector", "tolerations"), PLACEMENTS)
def test_prepare_and_evaluate_have_separate_small_pods(
    stage: Stage,
    stages: dict[str, Any],
    resolved: ResolvedStatus | None,
    requests: dict[str, str],
    selector: dict[str, str],
    tolerations: list[str],
) -> None:
    job = parse_job(make_manifest(workers=WORKERS, stages=stages, training={"globalBatchSize": 512}))
    config = stage_config(job, 1, stage, 1, StorageSettings(), resolved=resolved)
    settings = OperatorSettings(ephemeral_storage="0")
    *_, rendered_job = render_stage(config, settings, needs=evaluation_needs(resolved))
    pod = rendered_job["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources.get("requests", {}) == requests
    assert pod.get("nodeSelector", {}) == selector
    own = [entry["key"] for entry in pod["tolerations"] if not entry["key"].startswith("node.kubernetes.io/")]
    assert own == tolerations
    on_gpu = "nvidia.com/gpu" in resources.get("limits", {})
    assert (on_gpu, config.world.gpus) == ("gpu" in tolerations, "gpu" in tolerations)
    assert "rdma/hca" not in str(resources)


NODES = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": []}]}}
OTHER_NODES = {"preferredDuringSchedulingIgnoredDuringExecution": []}
WITH_TRAINING = {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "rack"}]}
ON_WORKER_NODES = [
    pytest.param({"gpus": 0}, None, None, id="no GPU"),
    pytest.param({"gpus": 1}, "nvidia", {"nodeAffinity": NODES}, id="of the workers"),
    pytest.param(
        {"gpus": 1, "runtimeClassName": "kata", "affinity": {"podAffinity": WITH_TRAINING}},
        "kata",
        {"nodeAffinity": NODES, "podAffinity": WITH_TRAINING},
        id="own rules for pods",
    ),
    pytest.param(
        {"gpus": 1, "affinity": {"nodeAffinity": OTHER_NODES}},
        "nvidia",
        {"nodeAffinity": OTHER_NODES},
        id="own rules for nodes",
    ),
]


@pytest.mark.parametrize(("evaluate", "runtime_class", "affinity"), ON_WORKER_NODES)
def test_an_evaluation_on_a_gpu_can_run_on_the_nodes_of_the_workers(
    evaluate: dict[str, Any], runtime_class: str | None, affinity: dict[str, Any] | None
) -> None:
    workers = {
        "gpusPerNode": 1,
        "gpuResource": "nvidia.com/mig-1g.10gb",
        "runtimeClassName": "nvidia",
        "affinity": {"nodeAffinity": NODES, "podAffinity": WITH_TRAINING},
        "schedulerName": "volcano",
        "hostNetwork": True,
        "capabilities": ["IPC_LOCK"],
        "volumes": [{"name": "data", "emptyDir": {}}],
        "envFrom": [{"secretRef": {"name": "hub"}}],
        "imagePullPolicy": "Always",
        "labels": {"team": "nlp"},
        "annotations": {"note": "x"},
    }
    job = parse_job(make_manifest(workers=workers, stages={"evaluate": evaluate}))
    template = rendered(job, Stage.EVALUATE)["Job"]["spec"]["template"]
    pod, container = template["spec"], template["spec"]["containers"][0]
    assert (pod.get("runtimeClassName"), pod.get("affinity")) == (runtime_class, affinity)
    limits = {"nvidia.com/mig-1g.10gb": "1"} if evaluate["gpus"] else None
    assert container["resources"].get("limits") == limits
    assert {"schedulerName", "hostNetwork", "dnsPolicy"} & set(pod) == set()
    assert {"envFrom", "imagePullPolicy"} & set(container) == set()
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "data" not in [volume["name"] for volume in pod["volumes"]]
    own = names.child_labels(stage_config(job, 1, Stage.EVALUATE, 1, StorageSettings()))
    assert template["metadata"] == {"labels": own}


@pytest.mark.parametrize("stage", run_stages())
def test_the_operators_volumes_have_the_names_and_paths_that_jobs_cannot_use(stage: Stage) -> None:
    job = parse_job(make_manifest(workers={"cache": {"claimName": "disk"}}, storage={"credentialsSecret": "s3"}))
    pod = rendered(job, stage)["Job"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert [volume["name"] for volume in pod["volumes"]] == list(constants.VOLUMES)
    assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} == constants.VOLUMES


def test_volumes_of_the_job_and_of_the_operators_settings_are_added() -> None:
    volume = {"name": "corpus", "persistentVolumeClaim": {"claimName": "corpus"}}
    mount = {"name": "corpus", "mountPath": "/data", "readOnly": True}
    job = parse_job(make_manifest(workers={"volumes": [volume], "volumeMounts": [mount]}))
    certificates = {"name": "certificates", "configMap": {"name": "ca"}}
    additions = PodAdditions((certificates,), ({"name": "certificates", "mountPath": "/ca"},))
    pod = rendered(job, settings=OperatorSettings(additions=additions))["Job"]["spec"]["template"]["spec"]
    assert pod["volumes"][-2:] == [certificates, volume]
    assert pod["containers"][0]["volumeMounts"][-1] == mount


DEFAULTS = {
    "workers": {
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "schedulerName": "gang",
        "runtimeClassName": "nvidia",
        "priorityClassName": "batch",
        "imagePullSecrets": ["registry"],
    },
    "prepare": {"nodeSelector": {"pool": "cpu"}, "schedulerName": "default"},
    "evaluate": {"nodeSelector": {"pool": "cpu"}, "tolerations": [{"key": "cpu"}], "schedulerName": "late"},
}
"""Defaults of the operator for all fields that have one."""
OF_WORKERS = {"priorityClassName": "batch", "imagePullSecrets": [{"name": "registry"}]}
ON_GPU = OF_WORKERS | {"nodeSelector": {"pool": "gpu"}, "tolerations": ["gpu"], "runtimeClassName": "nvidia"}


@pytest.mark.parametrize(
    ("stage", "spec", "expected"),
    [
        pytest.param(Stage.TRAIN, {}, ON_GPU | {"schedulerName": "gang"}, id="training"),
        pytest.param(
            Stage.TRAIN,
            {
                "workers": {
                    "nodeSelector": {"zone": "a"},
                    "tolerations": [{"key": "own"}],
                    "schedulerName": "own",
                    "runtimeClassName": "kata",
                    "priorityClassName": "high",
                    "imagePullSecrets": ["mine"],
                }
            },
            {
                "nodeSelector": {"zone": "a"},
                "tolerations": ["own"],
                "schedulerName": "own",
                "runtimeClassName": "kata",
                "priorityClassName": "high",
                "imagePullSecrets": [{"name": "mine"}],
            },
            id="the spec wins",
        ),
        pytest.param(
            Stage.PREPARE,
            {},
            OF_WORKERS | {"nodeSelector": {"pool": "cpu"}, "tolerations": [], "schedulerName": "default"},
            id="prepare",
        ),
        pytest.param(
            Stage.POLL,
            {"workers": {"priorityClassName": "high"}, "stages": {"prepare": {"nodeSelector": {"zone": "a"}}}},
            OF_WORKERS
            | {"priorityClassName": "high", "nodeSelector": {"zone": "a"}, "tolerations": []}
            | {"schedulerName": "default"},
            id="poll",
        ),
        pytest.param(
            Stage.EVALUATE,
            {},
            OF_WORKERS | {"nodeSelector": {"pool": "cpu"}, "tolerations": ["cpu"], "schedulerName": "late"},
            id="evaluate",
        ),
        pytest.param(
            Stage.EVALUATE,
            {"workers": {"gpusPerNode": 1}, "stages": {"evaluate": {"gpus": 1}}},
            ON_GPU | {"schedulerName": "late"},
            id="evaluate on a GPU: on the nodes of the workers",
        ),
    ],
)
def test_the_operators_defaults_fill_what_a_job_leaves_out(
    stage: Stage, spec: dict[str, Any], expected: dict[str, Any]
) -> None:
    settings = OperatorSettings(additions=PodAdditions(defaults=parse_defaults(DEFAULTS)))
    job = parse_job(make_manifest(**spec))
    children = rendered(job, stage, settings=settings)
    pod = children["Job"]["spec"]["template"]["spec"]
    own = [entry["key"] for entry in pod["tolerations"] if "node.kubernetes.io" not in entry["key"]]
    assert {name: pod[name] for name in [*DEFAULTS["workers"]] if name in pod} | {"tolerations": own} == expected
    without = rendered(job, stage)
    assert without["ConfigMap"] == children["ConfigMap"]
    assert without["Job"]["metadata"] == children["Job"]["metadata"], "they change no hash"


@pytest.mark.parametrize("stage", run_stages())
def test_an_attempt_gets_its_own_network_policy_before_its_pods(stage: Stage) -> None:
    config = stage_config(make_job(nodes=2), 1, stage, 1, StorageSettings())
    manifests = render_stage(config, OperatorSettings(operator_namespace="ops"))
    kinds = [manifest["kind"] for manifest in manifests]
    assert kinds.index("NetworkPolicy") < kinds.index("Job") == len(kinds) - 1
    policy, job = manifests[kinds.index("NetworkPolicy")], manifests[-1]
    assert policy["metadata"]["ownerReferences"] == job["metadata"]["ownerReferences"]
    own = policy["spec"]["podSelector"]["matchLabels"]
    added_by_kubernetes = {constants.LABEL_JOB_NAME: job["metadata"]["name"]}
    labels = job["spec"]["template"]["metadata"]["labels"] | added_by_kubernetes
    assert own.items() <= labels.items()
    other = stage_config(make_job(nodes=2), 1, stage, 2, StorageSettings())
    assert names.name_of(other) != own[constants.LABEL_JOB_NAME], "another attempt is not selected"
    peers, operator = policy["spec"]["ingress"]
    assert peers == {"from": [{"podSelector": {"matchLabels": own}}]}
    assert operator["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "ops"}
    assert operator["ports"] == [{"protocol": "TCP", "port": constants.PROGRESS_PORT}]
    assert "NetworkPolicy" not in [manifest["kind"] for manifest in render_stage(config, OperatorSettings())]


@pytest.mark.parametrize("stage", list(Stage))
@pytest.mark.parametrize("nodes", [1, 2])
def test_env_from_cannot_replace_a_variable_that_a_job_must_not_set(stage: Stage, nodes: int) -> None:
    block = {"envFrom": [{"configMapRef": {"name": "any"}}]}
    manifest = make_manifest(workers={"nodes": nodes, **block}, stages={"prepare": block, "evaluate": block})
    config = stage_config(parse_job(manifest), 1, stage, 1, StorageSettings())
    (container,) = render_stage(config, OperatorSettings())[-1]["spec"]["template"]["spec"]["containers"]
    # Variables of `env` replace those of `envFrom`.
    reserved = {*constants.RESERVED_VARIABLES, *(str(name) for name in Env)} - {Env.OMP_NUM_THREADS}
    own = {entry["name"]: entry.get("value", "0") for entry in container["env"]}
    assert own.keys() <= {*reserved, Env.OMP_NUM_THREADS}
    for _, environ in rank_environments(config, dict.fromkeys(reserved, "replaced") | own, started=0.0):
        assert {name for name in reserved if environ[name] == "replaced"} == set()
    # The supervisor reads only these itself.
    for name in (Env.PROGRESS_HOST, Env.FORK_SERVER, Env.SCRATCH, Env.TERMINATION_LOG, Env.CREDENTIALS, "HOME"):
        assert name in own


def test_a_pod_without_env_from_has_only_the_variables_that_it_needs() -> None:
    container = rendered(make_job())["Job"]["spec"]["template"]["spec"]["containers"][0]
    optional = {Env.MASTER_ADDR, Env.PROGRESS_HOST, Env.CACHE, Env.CREDENTIALS, Env.FORK_SERVER}
    assert optional & {entry["name"] for entry in container["env"]} == set()


@pytest.mark.parametrize(
    ("stage", "workers", "size"),
    [
        (Stage.TRAIN, {"nodes": 4}, 4),
        (Stage.TRAIN, {"nodes": 4, "minNodes": 2}, 2),
        (Stage.TRAIN, {"nodes": 4, "minNodes": 1}, 0),
        (Stage.TRAIN, {"nodes": 1}, 0),
        (Stage.PREPARE, {"nodes": 4}, 0),
        (Stage.EVALUATE, {"nodes": 4}, 0),
    ],
)
def test_workers_that_need_each_other_are_a_gang(stage: Stage, workers: dict[str, int], size: int) -> None:
    config = stage_config(parse_job(make_manifest(workers=workers)), 1, stage, 1, StorageSettings())
    assert gang_size(config) == size


@pytest.mark.parametrize(
    ("workers", "priority"), [({}, "batch"), ({"priorityClassName": "urgent"}, "urgent")], ids=["default", "own"]
)
def test_a_gang_is_created_before_its_pods_and_has_their_priority(workers: dict[str, str], priority: str) -> None:
    settings = OperatorSettings(additions=PodAdditions(defaults=parse_defaults(DEFAULTS)))
    config = stage_config(
        parse_job(make_manifest(workers={"nodes": 4, **workers})), 1, Stage.TRAIN, 1, StorageSettings()
    )
    *_, group, job = render_stage(config, settings, gang=2)
    assert (group["apiVersion"], group["kind"]) == ("scheduling.k8s.io/v1beta1", "PodGroup")
    pod = job["spec"]["template"]["spec"]
    assert pod["schedulingGroup"] == {"podGroupName": group["metadata"]["name"]}
    assert group["metadata"]["ownerReferences"] == job["metadata"]["ownerReferences"]
    assert group["spec"]["schedulingPolicy"] == {"gang": {"minCount": 2}}
    assert group["spec"]["priorityClassName"] == pod["priorityClassName"] == priority
    without = render_stage(config, settings)
    assert [manifest["kind"] for manifest in without] == ["ConfigMap", "Service", "Job"]
    del pod["schedulingGroup"]
    assert without[-1] == job, "nothing else changes"
