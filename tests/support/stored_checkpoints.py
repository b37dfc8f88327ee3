"""The objects in storage of the run of `tiny_engine`, whose output is `s3://<folder>`."""

from finetune_api.run_layout import RunLayout
from finetune_trainer.store import ObjectStore


def run_uri(folder: str) -> str:
    return layout(folder).uri


def layout(folder: str) -> RunLayout:
    return RunLayout.of(f"s3://{folder}", 1, "1")


def manifests(store: ObjectStore, folder: str) -> list[str]:
    prefix = f"{layout(folder).manifests}/"
    return [info.uri.removeprefix(prefix) for info in store.list(prefix)]


def blob_uri(folder: str, digest: str) -> str:
    return f"{layout(folder).blobs}/{digest}"


def data_blobs(store: ObjectStore, folder: str, name: str) -> list[str]:
    manifest = store.get_json(f"{layout(folder).manifests}/{name}.json")
    parts = [store.get_json(blob_uri(folder, part["digest"])) for part in manifest["parts"]]
    return [digest for part in parts for digest in part["blobs"]]
