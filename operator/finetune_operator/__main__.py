"""`python -m finetune_operator run | network-policy | crd`."""

import argparse
import asyncio
import json
import os
import re
import sys
from pathlib import Path

from finetune_api.crd import crd
from finetune_api.redaction import has_credentials
from finetune_api.trainer_config import StorageSettings
from finetune_api.v1alpha1.base import ENDPOINT_PATTERN
from finetune_api.v1alpha1.quantities import amount

from .job_policy.model import JobPolicy, parse_policy
from .logs import configure_logging
from .pod_additions import check_additions
from .pod_defaults import parse_defaults
from .render.network_policy import LIMITS, NAMESPACE, render_network_policy
from .service_options import SHORTEST_LEASE_SECONDS, LeaseOptions, ServiceOptions
from .settings import GraceLimits, OperatorSettings, PodAdditions
from .yaml_text import dump_all


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.command == "crd":
        print(json.dumps(crd(), indent=2))
        return 0
    if options.command == "network-policy":
        print(LIMITS, dump_all([render_network_policy(options.namespace)]), sep="", end="")
        return 0
    configure_logging(options.log_level)
    if options.kubeconfig is not None:
        os.environ["KUBECONFIG"] = str(options.kubeconfig)  # Kopf finds it there
    from .controller.service import run_service

    service = ServiceOptions(
        namespaces=tuple(options.namespace),
        kubeconfig=options.kubeconfig,
        workers=options.workers,
        host=options.host,
        port=options.port,
        resync_seconds=options.resync_seconds,
        watch_silence_seconds=options.watch_silence_seconds,
        lease=options.lease and LeaseOptions(options.lease[0], options.lease[1], options.lease_seconds),
    )
    asyncio.run(run_service(_settings(options), service))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="finetune_operator", description="The operator for FineTuneJobs.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("crd", help="print the CustomResourceDefinition, as JSON")
    policy = commands.add_parser("network-policy", help="print a NetworkPolicy for namespaces with jobs")
    policy.add_argument("--namespace", default=NAMESPACE, help="namespace of the operator")
    run = commands.add_parser(
        "run", help="run the operator until SIGTERM", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    _add_process_arguments(run)
    _add_job_arguments(run)
    return parser


def _add_process_arguments(run: argparse.ArgumentParser) -> None:
    own = ServiceOptions()
    run.add_argument("--namespace", action="append", default=[], help="watch only this namespace; can be repeated")
    run.add_argument("--kubeconfig", type=Path, help="absent: the default, or the service account of the pod")
    run.add_argument(
        "--watch-silence-seconds",
        type=float,
        default=own.watch_silence_seconds,
        help="seconds without an event after which a watch is reopened",
    )
    run.add_argument(
        "--host", default=own.host, help="address of metrics and probes; empty: all addresses, IPv4 and IPv6"
    )
    run.add_argument("--port", type=int, default=own.port, help="port of metrics and probes")
    run.add_argument("--workers", type=int, default=own.workers, help="number of concurrent reconciles")
    run.add_argument(
        "--resync-seconds", type=float, default=own.resync_seconds, help="seconds between two lists of all objects"
    )
    run.add_argument(
        "--lease",
        type=_lease,
        metavar="NAMESPACE/NAME",
        help="Lease of the leader election between replicas; absent: none, this process always reconciles",
    )
    run.add_argument(
        "--lease-seconds",
        type=_lease_seconds,
        default=LeaseOptions.seconds,
        help="seconds without a renewal of the Lease after which another replica takes over",
    )
    run.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))


def _add_job_arguments(run: argparse.ArgumentParser) -> None:
    own = OperatorSettings()
    run.add_argument("--trainer-image", default=own.trainer_image, help="image of jobs that do not set one")
    run.add_argument(
        "--run-as-user",
        type=_user,
        default=str(own.run_as_user),
        help="user and group of pods; none: assigned by the cluster, as on OpenShift",
    )
    run.add_argument(
        "--ephemeral-storage",
        type=_quantity,
        default=own.ephemeral_storage,
        help="ephemeral storage that pods request if the job does not set it; 0: none",
    )
    run.add_argument("--storage-endpoint", type=_endpoint, help="object storage if the job sets none; absent: AWS")
    run.add_argument("--storage-region", default=own.storage.region, help="region of the object storage")
    run.add_argument("--credentials-secret", help="Secret of jobs that do not set one, in the namespace of the job")
    run.add_argument(
        "--network-policies-from",
        metavar="NAMESPACE",
        help="create a NetworkPolicy for each attempt that allows its own pods, and the operator in this namespace",
    )
    run.add_argument(
        "--progress-seconds", type=float, default=own.progress_seconds, help="seconds between two reads of progress"
    )
    run.add_argument(
        "--termination-grace",
        type=int,
        default=own.termination_grace.least_seconds,
        help="minimum grace period of training pods, in seconds",
    )
    run.add_argument(
        "--max-termination-grace",
        type=int,
        default=own.termination_grace.most_seconds,
        help="maximum grace period, for jobs with slow saves",
    )
    run.add_argument(
        "--pod-additions",
        type=_additions,
        default=own.additions,
        help="JSON file with volumes, volumeMounts and env of all pods, and defaults of what jobs leave out",
    )
    run.add_argument(
        "--gang-scheduling",
        action=argparse.BooleanOptionalAction,
        default=own.gang_scheduling,
        help="place the workers of an attempt on nodes together, if the cluster serves scheduling.k8s.io/v1beta1",
    )
    run.add_argument("--policy", type=_policy, help="YAML file with what jobs may use; absent: no restriction")


def _lease(text: str) -> tuple[str, str]:
    namespace, _, name = text.partition("/")
    if not all(re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", part) for part in (namespace, name)):
        raise argparse.ArgumentTypeError(f"must be NAMESPACE/NAME, not {text}")
    return namespace, name


def _lease_seconds(text: str) -> int:
    if not text.isdecimal() or int(text) < SHORTEST_LEASE_SECONDS:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {SHORTEST_LEASE_SECONDS}, not {text}")
    return int(text)


def _user(text: str) -> str:
    if text != "none" and not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"must be a number above 0, or none, not {text}")
    return text


def _quantity(text: str) -> str:
    try:
        amount(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _endpoint(address: str) -> str:
    if has_credentials(address):
        raise argparse.ArgumentTypeError("must not contain a user name or password; use --credentials-secret")
    if address and not re.fullmatch(ENDPOINT_PATTERN, address):
        raise argparse.ArgumentTypeError(
            "must be an address such as https://s3.example.com, without a query; correct it"
        )
    return address


def _additions(path: str) -> PodAdditions:
    """Parse the volumes, mounts and environment variables that are added to every trainer pod, and the defaults."""
    try:
        content = json.loads(Path(path).read_text())
        defaults = parse_defaults(content.pop("defaults", {}))
        check_additions(content)
        volumes, mounts, env = (tuple(content.get(name, ())) for name in ("volumes", "volumeMounts", "env"))
        return PodAdditions(volumes, mounts, env, defaults)
    except (OSError, ValueError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from None


def _policy(path: str) -> JobPolicy:
    """Parse the job policy."""
    try:
        return parse_policy(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from None


def _settings(options: argparse.Namespace) -> OperatorSettings:
    endpoint = options.storage_endpoint
    return OperatorSettings(
        trainer_image=options.trainer_image,
        run_as_user=None if options.run_as_user == "none" else int(options.run_as_user),
        ephemeral_storage=options.ephemeral_storage,
        storage=StorageSettings(endpoint=endpoint, region=options.storage_region, path_style=endpoint is not None),
        credentials_secret=options.credentials_secret or "",
        additions=options.pod_additions,
        operator_namespace=options.network_policies_from or "",
        gang_scheduling=options.gang_scheduling,
        policy=options.policy,
        termination_grace=GraceLimits(options.termination_grace, options.max_termination_grace),
        progress_seconds=options.progress_seconds,
    )


if __name__ == "__main__":
    sys.exit(main())
