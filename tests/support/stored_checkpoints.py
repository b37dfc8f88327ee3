"""What lies in storage of the run of `tiny_engine`, whose output is `s3://<folder>`."""

from finetune_trainer.store import ObjectStore


def run_uri(folder: str) -> str:
    return f"s3://{folder}/runs/r0001-1"


def manifests(store: ObjectStore, folder: str) -> list[str]:
    prefix = f"{run_uri(folder)}/checkpoints/manifests/"
    return [info.uri.removeprefix(prefix) for info in store.list(prefix)]


def blob_uri(folder: str, digest: str) -> str:
    return f"{run_uri(folder)}/checkpoints/blobs/{digest}"


def data_blobs(store: ObjectStore, folder: str, name: str) -> list[str]:
    manifest = store.get_json(f"{run_uri(folder)}/checkpoints/manifests/{name}.json")
    parts = [store.get_json(blob_uri(folder, part["digest"])) for part in manifest["parts"]]
    return [digest for part in parts for digest in part["blobs"]]
