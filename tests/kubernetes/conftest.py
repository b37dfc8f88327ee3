"""Fixtures of the test cluster. On a machine that cannot run it, these tests are skipped with a message at the end.

FINETUNE_TEST_KUBECONFIG  a cluster to use instead of our own; pods are then not tested
"""

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune_api.trainer_config import StorageSettings
from finetune_cli.local.embedded_store import EmbeddedStore
from finetune_trainer.store import ObjectStore
from gitops_health import HealthTools
from loop_thread import LoopThread, running_kubelet
from objects import Objects
from operator_process import NAME, install, installation
from process_support import ROOT
from reconciled_job import RECORDED
from required import unavailable
from simulated_kubelet import SimulatedKubelet
from testcluster import binaries
from testcluster.access import Kubectl
from testcluster.builds import Buildah, require_buildah
from testcluster.control_plane import ControlPlane
from testcluster.existing import ExistingCluster
from testcluster.flux import install_crds
from testcluster.helm import CHART, Helm
from testcluster.missing import MissingError
from testcluster.pods import PodsCluster
from testcluster.registry import running_registry
from testcluster.run_folder import run_folder
from training_setup import TrainingSetup, fresh_namespace, training_setup

Say = Callable[[str], None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need nodes, so that `-m` can select or exclude them: see tests/streams.sh."""
    for item in items:
        if {"pods_cluster", "buildah"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("pods")


@pytest.fixture(scope="session")
def control_plane(
    pytestconfig: pytest.Config, say: Say, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane | ExistingCluster]:
    """An API server with its controllers, without nodes. One per session: every test has its own namespace."""
    if existing := ExistingCluster.named(tmp_path_factory.mktemp("cluster"), say):
        yield existing
        return
    with run_folder() as folder:
        control = ControlPlane(folder, say)
        try:
            control.start()
        except MissingError as error:
            unavailable(pytestconfig, "kubernetes", error)
        yield control
        control.stop()


@pytest.fixture(scope="session")
def pods_cluster(pytestconfig: pytest.Config, control_plane: ControlPlane | ExistingCluster) -> Iterator[PodsCluster]:
    """The same with two nodes that run pods, `node-a` and `node-b`. A test that kills a node restarts it."""
    try:
        if isinstance(control_plane, ExistingCluster):
            raise MissingError("FINETUNE_TEST_KUBECONFIG names a cluster whose nodes must not be changed or killed")
        cluster = PodsCluster(control_plane).start()
    except MissingError as error:
        unavailable(pytestconfig, "pods", error)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def buildah(pytestconfig: pytest.Config) -> Iterator[Buildah]:
    """Builds images on a base image."""
    try:
        require_buildah()
    except MissingError as error:
        unavailable(pytestconfig, "images", error)
    builder = Buildah(Path(tempfile.mkdtemp(prefix="finetune-images-")))
    try:
        builder.make_base()
        yield builder
    finally:
        builder.remove()


@pytest.fixture(scope="session")
def operator_image(buildah: Buildah) -> str:
    """The operator's image as the Dockerfile makes it, under the name that the chart has for it."""
    (container,) = installation()["Deployment", NAME]["spec"]["template"]["spec"]["containers"]
    name: str = container["image"]
    buildah.build("operator", name)
    return name


@pytest.fixture(scope="session")
def health_tools(pytestconfig: pytest.Config, say: Say, tmp_path_factory: pytest.TempPathFactory) -> HealthTools:
    """kstatus, Flux and Argo CD, as far as they evaluate the health of an object."""
    try:
        return HealthTools(binaries.built(binaries.HEALTH, say) / "health", tmp_path_factory.mktemp("health"))
    except MissingError as error:
        unavailable(pytestconfig, "kubernetes", error)


@pytest.fixture(scope="session")
def flux_program(pytestconfig: pytest.Config, control_plane: ControlPlane | ExistingCluster, say: Say) -> Path:
    """Flux's kustomize-controller, after installing its CRDs."""
    if not isinstance(control_plane, ControlPlane):
        pytest.skip("an existing cluster may have a Flux of its own")
    try:
        program = binaries.built(binaries.FLUX, say) / "kustomize-controller"
        install_crds(control_plane)
    except MissingError as error:
        unavailable(pytestconfig, "flux", error)
    return program


@pytest.fixture(scope="session")
def registry(pytestconfig: pytest.Config, say: Say, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an OCI registry without TLS."""
    try:
        with running_registry(tmp_path_factory.mktemp("registry"), say) as address:
            yield address
    except MissingError as error:
        unavailable(pytestconfig, "helm", error)


@pytest.fixture(scope="session")
def published(helm: Helm, registry: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The chart as `make chart` packages it, in a registry: arguments of helm."""
    folder = tmp_path_factory.mktemp("chart")
    subprocess.run(["make", "chart", f"HELM={helm.program}", f"DIST={folder}"], cwd=ROOT, check=True)
    (package,) = folder.iterdir()
    helm("push", package, f"oci://{registry}/charts", "--plain-http")
    return f"oci://{registry}/charts/{CHART.name}", "--version=0.1.0", "--plain-http"


@pytest.fixture(scope="module")
def recorded_statuses_are_understood(health_tools: HealthTools) -> Iterator[None]:
    """Check what the tools report about every status that the tests of a file have written, when they have ended."""
    yield
    assert RECORDED, "no status was recorded"
    health_tools.check(RECORDED.values())


@pytest.fixture
def namespace(control_plane: ControlPlane | ExistingCluster) -> Iterator[str]:
    """A new namespace for each test."""
    with fresh_namespace(control_plane) as name:
        yield name


@pytest.fixture(scope="module")
def shared_namespace(control_plane: ControlPlane | ExistingCluster) -> Iterator[str]:
    """A namespace for the tests of a file that create nothing in it, or objects with different names.

    To create a namespace and to delete it takes the cluster and kubectl 0.4 s of CPU time.
    """
    with fresh_namespace(control_plane) as name:
        yield name


@pytest.fixture
def kubectl(control_plane: ControlPlane | ExistingCluster, namespace: str) -> Kubectl:
    """kubectl with administrator permissions in the test's namespace."""
    return control_plane.kubectl.within(namespace)


@pytest.fixture(scope="module")
def setup(pods_cluster: PodsCluster, store_server: EmbeddedStore) -> Iterator[TrainingSetup]:
    """An operator and the requirements of its trainer pods, for all tests of a file; each uses its own job names."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store_server.env().items():
            patch.setenv(name, value)
        store = ObjectStore.connect(StorageSettings(endpoint=store_server.endpoint, path_style=True))
        with training_setup(pods_cluster, store_server, store) as setup:
            yield setup


@pytest.fixture(scope="session")
def admin(control_plane: ControlPlane | ExistingCluster) -> Path:
    """The administrator's kubeconfig, after installing the CRD and the operator's permissions."""
    install(control_plane)
    return control_plane.kubectl.kubeconfig


@pytest.fixture
def background() -> Iterator[LoopThread]:
    """An event loop for tasks that run concurrently with the test."""
    with LoopThread() as loop:
        yield loop


@pytest.fixture
def kubelet(background: LoopThread, admin: Path, namespace: str) -> Iterator[SimulatedKubelet]:
    """A simulated kubelet for the test's namespace."""
    with running_kubelet(background, admin, namespace) as simulated:
        yield simulated


@pytest.fixture
def objects(background: LoopThread, admin: Path, namespace: str) -> Iterator[Objects]:
    """Objects of the test's namespace."""
    view = Objects(background, admin, namespace)
    yield view
    view.close()
