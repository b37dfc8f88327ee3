"""Install the requirements of the test cluster: `python -m testcluster.tools` (`make cluster-tools`)."""

import os
import shutil
import subprocess
import sys

from . import binaries, builds, nodes
from .missing import MissingError


def install_packages() -> None:
    """Install with apt-get if available; otherwise the message states what is needed."""
    try:
        require_packages()
    except MissingError:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise
        quiet = dict(os.environ) | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *nodes.PACKAGES, *builds.PACKAGES]):
            subprocess.run(["apt-get", "--quiet", "--quiet", *command], env=quiet, check=True)
        require_packages()


def require_packages() -> None:
    nodes.require_tools()
    builds.require_buildah()


def main() -> None:
    try:
        for programs in (binaries.HELM, binaries.KUBERNETES, binaries.COREDNS, binaries.HEALTH, binaries.REGISTRY):
            print(binaries.built(programs))
    except MissingError as error:
        sys.exit(str(error))
    try:
        install_packages()
    except (MissingError, subprocess.CalledProcessError) as error:
        sys.exit(f"the control plane is ready, nodes or image builds are not: {error}")


if __name__ == "__main__":
    main()
