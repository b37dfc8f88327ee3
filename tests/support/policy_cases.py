"""Jobs under a job policy, and what refuses them. The operator and the ValidatingAdmissionPolicy must agree on them."""

from dataclasses import dataclass, field
from typing import Any

from finetune_api.v1alpha1.pod import POD_BLOCKS

IMAGE = "default.example/trainer:1.0"
ENDPOINT = "https://default.example:9000/path"
CREDENTIALS = "storage"
DIGEST = f"sha256:{'a' * 64}"

POLICY: dict[str, Any] = {
    "images": [
        "registry.example.com/team",
        "mirror.example:5000/",
        "registry.example.com/one:1.0",
        "short",
        f"registry.example.com/fixed@{DIGEST}",
    ],
    "serviceAccounts": ["trainer"],
    "priorityClasses": ["low"],
    "tolerationKeys": ["nvidia.com/gpu"],
    "storageEndpoints": [
        "https://s3.example.com",
        "http://127.0.0.1:9000",
        "http://plain.example:80",
        "https://disk.example",
        "https://[fd00::1]",
    ],
    "variables": ["NCCL_*", "DEBUG", "TOKEN", "LD_PRELOAD", "PYTHONPATH", "HTTPS_PROXY", "AWS_ENDPOINT_URL_S3"],
    "deniedVariables": ["NCCL_SOCKET_*"],
    "hostAccess": [],
    "volumeSources": ["configMap", "secret", "projected", "persistentVolumeClaim", "ephemeral", "image", "csi"],
    "runtimeClasses": ["gvisor"],
    "schedulers": ["queue"],
    "queues": ["team"],
    "labels": ["example.com/*", "team"],
    "annotations": ["example.com/*", "container.apparmor.security.beta.kubernetes.io/*"],
}
"""Every list of the policy. Variables that load code or redirect requests are refused although they are allowed."""

IMAGE_PATH = "spec.workers.image"
ACCOUNT_PATH = "spec.workers.serviceAccountName"
PRIORITY_PATH = "spec.workers.priorityClassName"
ENDPOINT_PATH = "spec.storage.endpoint"
TRACKING_PATH = "spec.tracking.mlflow.trackingUri"
FIRST_TOLERATION = "spec.workers.tolerations[0].key"
FIRST_VARIABLE = "spec.workers.env[0].name"
FIRST_VOLUME = ".volumes[0]"
FIRST_SOURCE = f"{FIRST_VOLUME}.projected.sources[0]"
PREFIX = ".envFrom[0].prefix"
MOUNT = ".volumeMounts[0].mountPath"
APPARMOR = {"annotations": {"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined"}}


@dataclass(frozen=True)
class PolicyCase:
    """A spec, and the path of each field that the policy does not allow."""

    spec: dict[str, Any]
    refused: tuple[str, ...] = ()
    policy: dict[str, Any] = field(default_factory=lambda: POLICY)


def image(reference: str, *refused: str, policy: dict[str, Any] = POLICY) -> PolicyCase:
    return PolicyCase({"workers": {"image": reference}}, refused, policy)


def tracking(uri: str, *refused: str) -> PolicyCase:
    return PolicyCase({"tracking": {"mlflow": {"trackingUri": uri, "experiment": "topics"}}}, refused)


def wandb(url: str) -> dict[str, Any]:
    return {"tracking": {"wandb": {"project": "topics", "mode": "Online", "baseUrl": url}}}


def trackio(url: str) -> dict[str, Any]:
    return {"tracking": {"trackio": {"project": "topics", "serverUrl": url}}}


def endpoint(address: str, *refused: str) -> PolicyCase:
    return PolicyCase({"storage": {"endpoint": address}}, refused)


def variable(name: str, *refused: str, policy: dict[str, Any] = POLICY) -> PolicyCase:
    return PolicyCase({"workers": {"env": [{"name": name, "value": "x"}]}}, refused, policy)


def toleration(entry: dict[str, Any], *refused: str) -> PolicyCase:
    return PolicyCase({"workers": {"tolerations": [entry]}}, refused)


def pods(settings: dict[str, Any], *refused: str, policy: dict[str, Any] = POLICY) -> PolicyCase:
    """The same settings in all blocks with settings of pods; `refused` are paths below each block."""
    spec = {"workers": settings, "stages": {"prepare": settings, "evaluate": settings}}
    return PolicyCase(spec, tuple(f"spec.{block}{path}" for block in POD_BLOCKS for path in refused), policy)


def volume(source: str, content: Any, *refused: str, policy: dict[str, Any] = POLICY) -> PolicyCase:
    return pods({"volumes": [{"name": "v", source: content}]}, *refused, policy=policy)


def mount(path: str, *refused: str, policy: dict[str, Any] = POLICY) -> PolicyCase:
    settings = {"volumes": [{"name": "v", "configMap": {"name": "c"}}]}
    return pods({**settings, "volumeMounts": [{"name": "v", "mountPath": path}]}, *refused, policy=policy)


def variables_from(prefix: str, *refused: str, policy: dict[str, Any] = POLICY) -> PolicyCase:
    entry = {"configMapRef": {"name": "c"}, **({"prefix": prefix} if prefix else {})}
    return pods({"envFrom": [entry]}, *refused, policy=policy)


def claim(**fields: Any) -> dict[str, Any]:
    return {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"], **fields}}}


CASES: dict[str, PolicyCase] = {
    "nothing set": PolicyCase({}),
    # images
    "a repository in a folder": image("registry.example.com/team/trainer:1"),
    "a folder below": image("registry.example.com/team/a/b/trainer"),
    "the folder as a repository": image("registry.example.com/team"),
    "the repository with a tag": image("registry.example.com/team:1.0"),
    "the repository with a digest": image(f"registry.example.com/team@{DIGEST}"),
    "a repository with the same beginning": image("registry.example.com/team-evil", IMAGE_PATH),
    "a folder with the same beginning": image("registry.example.com/team-evil/trainer", IMAGE_PATH),
    "a name that goes on": image("registry.example.com/teams", IMAGE_PATH),
    "a tag with a slash": image("registry.example.com/team:1/evil", IMAGE_PATH),
    "another folder": image("registry.example.com/other/trainer", IMAGE_PATH),
    "another registry": image("registry.example.com.evil.example/team/trainer", IMAGE_PATH),
    "another port": image("registry.example.com:5000/team/trainer", IMAGE_PATH),
    "the folder in another registry": image("evil.example/registry.example.com/team", IMAGE_PATH),
    "a registry": image("mirror.example:5000/any/trainer:1"),
    "a registry with the same beginning": image("mirror.example:50000/any", IMAGE_PATH),
    "an exact tag": image("registry.example.com/one:1.0"),
    "another tag": image("registry.example.com/one:1.0.1", IMAGE_PATH),
    "a digest after an exact tag": image(f"registry.example.com/one:1.0@{DIGEST}", IMAGE_PATH),
    "no tag for an exact tag": image("registry.example.com/one", IMAGE_PATH),
    "an exact digest": image(f"registry.example.com/fixed@{DIGEST}"),
    "another digest": image(f"registry.example.com/fixed@sha256:{'b' * 64}", IMAGE_PATH),
    "a short name": image("short:1"),
    "a short name as a host": image("short:5000/evil", IMAGE_PATH),
    "a short name as an organization": image("short/evil", IMAGE_PATH),
    "the default image": image(IMAGE),
    "the default image with another tag": image("default.example/trainer:2", IMAGE_PATH),
    "a line break in an image": image("registry.example.com/team/\nevil", IMAGE_PATH),
    # service accounts and priorities
    "an allowed account": PolicyCase({"workers": {"serviceAccountName": "trainer"}}),
    "the account of pods without one": PolicyCase({"workers": {"serviceAccountName": "default"}}),
    "another account": PolicyCase({"workers": {"serviceAccountName": "admin"}}, (ACCOUNT_PATH,)),
    "an allowed priority": PolicyCase({"workers": {"priorityClassName": "low"}}),
    "an allowed queue": PolicyCase({"workers": {"queue": "team"}}),
    "another queue": PolicyCase({"workers": {"queue": "other"}}, ("spec.workers.queue",)),
    "another priority": PolicyCase({"workers": {"priorityClassName": "high"}}, (PRIORITY_PATH,)),
    # tolerations
    "an allowed taint": toleration({"key": "nvidia.com/gpu", "operator": "Exists"}),
    "another taint": toleration({"key": "dedicated", "value": "x"}, FIRST_TOLERATION),
    "all taints": toleration({"operator": "Exists"}, FIRST_TOLERATION),
    "a second taint": PolicyCase(
        {"workers": {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}, {"operator": "Exists"}]}},
        ("spec.workers.tolerations[1].key",),
    ),
    "a taint of the prepare stage": PolicyCase(
        {"stages": {"prepare": {"tolerations": [{"operator": "Exists"}]}}},
        ("spec.stages.prepare.tolerations[0].key",),
    ),
    "a taint of the evaluate stage": PolicyCase(
        {"stages": {"evaluate": {"tolerations": [{"key": "x", "value": "y"}]}}},
        ("spec.stages.evaluate.tolerations[0].key",),
    ),
    # storage
    "an allowed endpoint": endpoint("https://s3.example.com"),
    "a path at an endpoint": endpoint("https://s3.example.com/storage/v1/s3"),
    "the port of the scheme": endpoint("https://s3.example.com:443/x"),
    "capital letters in a host": endpoint("https://S3.example.com"),
    "an endpoint with its port": endpoint("http://127.0.0.1:9000"),
    "an endpoint whose port is that of the scheme": endpoint("http://plain.example"),
    "that port written out": endpoint("http://plain.example:80/x"),
    "an IPv6 endpoint": endpoint("https://[fd00::1]/x"),
    "the default endpoint": endpoint(ENDPOINT),
    "another scheme": endpoint("http://s3.example.com", ENDPOINT_PATH),
    "another port of an endpoint": endpoint("https://s3.example.com:8443", ENDPOINT_PATH),
    "no port for an endpoint with one": endpoint("http://127.0.0.1", ENDPOINT_PATH),
    "a longer port": endpoint("http://127.0.0.1:90000", ENDPOINT_PATH),
    "two ports": endpoint("http://127.0.0.1:9000:80", ENDPOINT_PATH),
    "a host with the same beginning": endpoint("https://s3.example.com.evil.example", ENDPOINT_PATH),
    "a subdomain": endpoint("https://evil.s3.example.com", ENDPOINT_PATH),
    "another host with the endpoint in its path": endpoint(
        "https://evil.example/https://s3.example.com", ENDPOINT_PATH
    ),
    "a letter that is only similar": endpoint("https://dis\u212a.example", ENDPOINT_PATH),
    "a tracking server at an allowed endpoint": tracking("https://s3.example.com/mlflow"),
    "the default endpoint as a tracking server": tracking(ENDPOINT, TRACKING_PATH),
    "another tracking server": tracking("https://mlflow.evil.example", TRACKING_PATH),
    "another port of a tracking server": tracking("https://s3.example.com:8443", TRACKING_PATH),
    "a W&B server at an allowed endpoint": PolicyCase(wandb("https://s3.example.com")),
    "another W&B server": PolicyCase(wandb("https://api.wandb.ai"), ("spec.tracking.wandb.baseUrl",)),
    "a trackio server at an allowed endpoint": PolicyCase(trackio("https://s3.example.com/trackio")),
    "another trackio server": PolicyCase(trackio("https://trackio.example"), ("spec.tracking.trackio.serverUrl",)),
    "files for W&B": PolicyCase({"tracking": {"wandb": {"project": "topics"}}}),
    "another server of a model registry": PolicyCase(
        {"evaluation": {"promote": {"mlflow": {"model": "topics", "trackingUri": "https://mlflow.evil.example"}}}},
        ("spec.evaluation.promote.mlflow.trackingUri",),
    ),
    # variables
    "a variable with an allowed beginning": variable("NCCL_DEBUG"),
    "an allowed variable": variable("DEBUG"),
    "a variable that begins with an allowed one": variable("DEBUGGER", FIRST_VARIABLE),
    "another variable": variable("WANDB_MODE", FIRST_VARIABLE),
    "a reserved variable with an allowed beginning": variable("NCCL_SOCKET_IFNAME", FIRST_VARIABLE),
    "a variable that loads code": variable("LD_PRELOAD", FIRST_VARIABLE),
    "a variable that loads modules": variable("PYTHONPATH", FIRST_VARIABLE),
    "a proxy": variable("HTTPS_PROXY", FIRST_VARIABLE),
    "a proxy in mixed case": variable("Https_Proxy", FIRST_VARIABLE, policy={"storageEndpoints": []}),
    "credentials of a container from an address": variable(
        "AWS_CONTAINER_CREDENTIALS_FULL_URI", FIRST_VARIABLE, policy={"storageEndpoints": []}
    ),
    "another search domain": variable("LOCALDOMAIN", FIRST_VARIABLE, policy={"storageEndpoints": []}),
    "a variable that loads a library into CUDA": variable(
        "NVTX_INJECTION64_PATH", FIRST_VARIABLE, policy={"images": []}
    ),
    "another endpoint by a variable": variable("AWS_ENDPOINT_URL_S3", FIRST_VARIABLE),
    "a second variable": PolicyCase(
        {"workers": {"env": [{"name": "DEBUG"}, {"name": "PATH"}]}}, ("spec.workers.env[1].name",)
    ),
    # variables from objects
    "a prefix that is allowed": variables_from("NCCL_DEBUG_"),
    "no prefix": variables_from("", PREFIX),
    "a prefix that is an allowed variable": variables_from("DEBUG", PREFIX),
    "a prefix that is not allowed": variables_from("OTHER_", PREFIX),
    "a prefix that is reserved": variables_from("NCCL_SOCKET_A", PREFIX),
    "the beginning of a reserved prefix": variables_from("NCCL_S", PREFIX),
    "no prefix under a policy of images": variables_from("", PREFIX, policy={"images": []}),
    "the prefix of a loader variable": variables_from("LD_PRE", PREFIX, policy={"images": []}),
    "the beginning of a loader variable": variables_from("PA", PREFIX, policy={"images": []}),
    "another prefix under a policy of images": variables_from("APP_", policy={"images": []}),
    "no prefix under a policy of endpoints": variables_from("", PREFIX, policy={"storageEndpoints": []}),
    "the prefix of a proxy": variables_from("HTTPS_", PREFIX, policy={"storageEndpoints": []}),
    "the prefix of a proxy in mixed case": variables_from("Https_", PREFIX, policy={"storageEndpoints": []}),
    "another prefix under a policy of endpoints": variables_from("APP_", policy={"storageEndpoints": []}),
    "no prefix if no variable is allowed": variables_from("", PREFIX, policy={"variables": []}),
    "no prefix if all variables are allowed": variables_from("", policy={"variables": ["*"]}),
    "no prefix if all variables are reserved": variables_from("", PREFIX, policy={"deniedVariables": ["*"]}),
    "no prefix if no variable is reserved": variables_from("", policy={"deniedVariables": []}),
    # volumes
    "an allowed kind of volume": volume("configMap", {"name": "c"}),
    "another kind of volume": volume("nfs", {"server": "evil.example", "path": "/"}, FIRST_VOLUME),
    "an empty source": volume("emptyDir", {}, FIRST_VOLUME),
    "a volume of an allowed image": volume("image", {"reference": "registry.example.com/team/files:1"}),
    "a volume of another image": volume("image", {"reference": "evil"}, f"{FIRST_VOLUME}.image.reference"),
    "an image that is no text": volume("image", {"reference": ["short"]}, f"{FIRST_VOLUME}.image.reference"),
    "files of configuration": volume("projected", {"sources": [{"secret": {"name": "s"}}, None, {"downwardAPI": {}}]}),
    "an API token": volume("projected", {"sources": [{"serviceAccountToken": {"path": "t"}}]}, FIRST_SOURCE),
    "an API token of another type": volume("projected", {"sources": [{"serviceAccountToken": 1}]}, FIRST_SOURCE),
    "a certificate of the account": volume("projected", {"sources": [{"podCertificate": {}}]}, FIRST_SOURCE),
    "a source that is no object": volume("projected", {"sources": ["secret"]}, FIRST_SOURCE),
    "sources that are no list": volume(
        "projected", {"sources": {"serviceAccountToken": {}}}, f"{FIRST_VOLUME}.projected.sources"
    ),
    "no sources": volume("projected", {"sources": None}),
    "an API token without a policy of accounts": volume(
        "projected", {"sources": [{"serviceAccountToken": {"path": "t"}}]}, policy={"variables": []}
    ),
    "a kind of Pod Security restricted": volume("emptyDir", {}, policy={"variables": []}),
    "a driver without a list of kinds": volume("csi", {"driver": "d"}, FIRST_VOLUME, policy={"variables": []}),
    "NFS without a list of kinds": volume("nfs", {"server": "a"}, FIRST_VOLUME, policy={"variables": []}),
    "no kind of volume": volume("emptyDir", {}, FIRST_VOLUME, policy={"volumeSources": []}),
    "a new claim": volume("ephemeral", claim(), policy={"requireLabelOnVolumeClaims": True}),
    **{
        f"a claim with {field}": volume(
            "ephemeral",
            claim(**{field: content}),
            f"{FIRST_VOLUME}.ephemeral.volumeClaimTemplate.spec",
            policy={"requireLabelOnVolumeClaims": True},
        )
        for field, content in (
            ("dataSource", {"name": "a"}),
            ("dataSourceRef", "a"),
            ("volumeName", "a"),
            ("selector", {}),
        )
    },
    "a folder for data": mount("/mnt/data"),
    "a folder of the image": mount("/usr/local/lib", MOUNT),
    "a folder with the same beginning as one for data": mount("/mnt2", MOUNT),
    "a folder above one for data": mount("/mnt/../usr", MOUNT),
    "a folder of the image without a policy of images": mount("/usr", policy={"variables": []}),
    # the node
    "the network of the node": pods({"hostNetwork": True}, ""),
    "a capability": pods({"capabilities": ["IPC_LOCK"]}, ""),
    "a folder of the node": volume("hostPath", {"path": "/"}, FIRST_VOLUME),
    "the network of the node by default": pods({"hostNetwork": True}, "", policy={"variables": []}),
    "the network of the pod": pods({"hostNetwork": False, "capabilities": []}),
    "an access that is allowed": pods({"hostNetwork": True}, policy={"hostAccess": ["hostNetwork"]}),
    "another access": pods({"capabilities": ["IPC_LOCK"]}, "", policy={"hostAccess": ["hostNetwork"]}),
    "an annotation that turns off AppArmor": pods(APPARMOR, ".annotations"),
    "the same with a policy of the node": pods(APPARMOR, ".annotations", policy={"hostAccess": []}),
    # placement and metadata
    "an allowed RuntimeClass": pods({"runtimeClassName": "gvisor"}),
    "another RuntimeClass": pods({"runtimeClassName": "other"}, ".runtimeClassName"),
    "an allowed scheduler": pods({"schedulerName": "queue"}),
    "the scheduler of pods without one": pods({"schedulerName": "default-scheduler"}),
    "another scheduler": pods({"schedulerName": "other"}, ".schedulerName"),
    "allowed labels": pods({"labels": {"team": "a", "example.com/a": "b"}}),
    "a label of Kueue": pods(
        {"labels": {"kueue.x-k8s.io/queue-name": "other"}}, ".labels", policy={"queues": ["team"]}
    ),
    "another label": pods({"labels": {"team": "a", "app": "proxy"}}, ".labels"),
    "an allowed annotation": pods({"annotations": {"example.com/a": "b"}}),
    "another annotation": pods({"annotations": {"sidecar.istio.io/inject": "true"}}, ".annotations"),
    # all of them
    "several mistakes": PolicyCase(
        {
            "workers": {"image": "evil", "serviceAccountName": "admin", "priorityClassName": "high"},
            "storage": {"endpoint": "https://evil.example"},
        },
        (IMAGE_PATH, ACCOUNT_PATH, PRIORITY_PATH, ENDPOINT_PATH),
    ),
    # other policies
    "no image beyond the default": image("other", IMAGE_PATH, policy={"images": []}),
    "the default image under an empty list": image(IMAGE, policy={"images": []}),
    "any image without the field": image("evil.example/any", policy={"variables": []}),
    "a loader variable under a policy of images": variable("LD_LIBRARY_PATH", FIRST_VARIABLE, policy={"images": []}),
    "a proxy under a policy of images": variable("HTTPS_PROXY", policy={"images": []}),
    "a proxy under a policy of endpoints": variable("https_proxy", FIRST_VARIABLE, policy={"storageEndpoints": []}),
    "a loader variable under a policy of endpoints": variable("LD_PRELOAD", policy={"storageEndpoints": []}),
    "no variable": variable("DEBUG", FIRST_VARIABLE, policy={"variables": []}),
    "all variables are reserved": variable("DEBUG", FIRST_VARIABLE, policy={"deniedVariables": ["*"]}),
    "all variables are allowed": variable("ANY", policy={"variables": ["*"]}),
    "no reserved variable": variable("DEBUG", policy={"deniedVariables": []}),
    "no account beyond the default": PolicyCase(
        {"workers": {"serviceAccountName": "trainer"}}, (ACCOUNT_PATH,), {"serviceAccounts": []}
    ),
    "no priority": PolicyCase({"workers": {"priorityClassName": "low"}}, (PRIORITY_PATH,), {"priorityClasses": []}),
}
