"""`python -m finetune_operator run | install | network-policy | crd`."""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from finetune_api.crd import crd
from finetune_api.redaction import has_credentials
from finetune_api.trainer_config import StorageSettings
from finetune_api.v1alpha1.quantities import amount

from .logs import configure_logging
from .manifests import Manifest
from .render import install
from .settings import GraceLimits, OperatorSettings, PodAdditions
from .yaml_text import dump_all


def main(arguments: list[str] | None = None) -> int:
    """The process' entry; its exit status."""
    options = _parser().parse_args(arguments)
    if options.command == "crd":
        print(json.dumps(crd(), indent=2))
        return 0
    if options.command == "network-policy":
        print(dump_all([install.render_network_policy(options.namespace)]), end="")
        return 0
    if options.command == "install":
        print(dump_all(_installation(options)), end="")
        return 0
    configure_logging(options.log_level)
    if options.kubeconfig is not None:
        os.environ["KUBECONFIG"] = str(options.kubeconfig)  # Kopf finds it there
    from .controller.service import ServiceOptions, run_service

    service = ServiceOptions(
        namespaces=tuple(options.namespace),
        kubeconfig=options.kubeconfig,
        workers=options.workers,
        host=options.host,
        port=options.port,
        resync_seconds=options.resync_seconds,
        watch_silence_seconds=options.watch_silence_seconds,
    )
    asyncio.run(run_service(_settings(options), service))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="finetune_operator", description="The operator of FineTuneJobs.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("crd", help="print the CustomResourceDefinition, as JSON")
    policy = commands.add_parser("network-policy", help="print who may reach trainer pods; apply it where jobs run")
    policy.add_argument("--namespace", default=install.NAMESPACE, help="where the operator itself runs")
    common: dict[str, Any] = {
        "parents": [_settings_parser()],
        "formatter_class": argparse.ArgumentDefaultsHelpFormatter,
    }
    printed = commands.add_parser("install", help="print what `kubectl apply --server-side -f -` installs", **common)
    printed.add_argument("--namespace", default=install.NAMESPACE, help="where the operator itself runs")
    printed.add_argument("--image", default=install.IMAGE, help="the operator's")
    run = commands.add_parser("run", help="serve a cluster until SIGTERM", **common)
    own = OperatorSettings()
    run.add_argument("--namespace", action="append", default=[], help="serve this one only; may be given again")
    run.add_argument("--kubeconfig", type=Path, help="absent: the usual places, or the pod's own account")
    run.add_argument(
        "--pod-additions", type=_additions, default=own.additions, help="JSON file with volumes, volumeMounts and env"
    )
    run.add_argument(
        "--watch-silence-seconds", type=float, default=70.0, help="a watch that brings nothing for so long is dead"
    )
    run.add_argument("--host", default="", help="address of metrics and probes; empty: all, of IPv4 and IPv6")
    run.add_argument("--port", type=int, default=install.PORT, help="port of metrics and probes")
    return parser


def _settings_parser() -> argparse.ArgumentParser:
    """What an installation writes into the Deployment, for `run` to read."""
    parser = argparse.ArgumentParser(add_help=False)
    own = OperatorSettings()
    parser.add_argument("--trainer-image", default=own.trainer_image, help="image of jobs that name none")
    parser.add_argument(
        "--run-as-user",
        type=_user,
        default=str(own.run_as_user),
        help="user and group of pods; none: the cluster chooses, as OpenShift does",
    )
    parser.add_argument(
        "--ephemeral-storage",
        type=_quantity,
        default=own.ephemeral_storage,
        help="disk that pods of jobs without such a request ask for; 0: none",
    )
    parser.add_argument("--storage-endpoint", type=_endpoint, help="object storage of jobs that name none; absent: AWS")
    parser.add_argument("--storage-region", default=own.storage.region, help="its region")
    parser.add_argument("--credentials-secret", help="Secret of jobs that name none, in their own namespace")
    parser.add_argument(
        "--progress-seconds", type=float, default=own.progress_seconds, help="how often progress is asked"
    )
    parser.add_argument(
        "--termination-grace",
        type=int,
        default=own.termination_grace.least_seconds,
        help="seconds to save in, at least",
    )
    parser.add_argument(
        "--max-termination-grace",
        type=int,
        default=own.termination_grace.most_seconds,
        help="the same, at most: slow saves get more than the least",
    )
    parser.add_argument("--workers", type=int, default=24, help="jobs that are looked at at once")
    parser.add_argument("--resync-seconds", type=float, default=300.0, help="how often all objects are listed")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser


def _installation(options: argparse.Namespace) -> tuple[Manifest, ...]:
    """Every setting is written out, so that the Deployment shows what can be set."""
    settings = vars(_settings_parser().parse_args([])).keys()
    chosen = {name: getattr(options, name) for name in settings}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items() if value is not None]
    user = None if options.run_as_user == "none" else int(options.run_as_user)
    return install.render_install(
        namespace=options.namespace, image=options.image, arguments=arguments, run_as_user=user
    )


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
    return address


def _additions(path: str) -> PodAdditions:
    """Volumes, mounts and environment that a site adds to every trainer pod."""
    try:
        content = json.loads(Path(path).read_text())
        return PodAdditions(*(tuple(content.pop(name, ())) for name in ("volumes", "volumeMounts", "env")))
    except (OSError, ValueError, AttributeError) as error:
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
        termination_grace=GraceLimits(options.termination_grace, options.max_termination_grace),
        progress_seconds=options.progress_seconds,
    )


if __name__ == "__main__":
    sys.exit(main())
