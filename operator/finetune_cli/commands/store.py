"""`finetune store put|get|ls`."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..display.text import size
from ..exit_status import CommandError
from ..local.storage import LocalStorage, shared_storage
from ..terminal import echo
from .options import DEFAULT_WORK_DIR, Endpoint, WorkDir

if TYPE_CHECKING:  # imports boto3, which takes half a second
    from finetune_trainer.store import ObjectInfo

app = typer.Typer(help="Upload, download and list objects in object storage.", no_args_is_help=True)

Uri = Annotated[str, typer.Argument(metavar="s3://BUCKET/KEY", help="Address.", show_default=False)]


@app.command()
def put(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="File or folder.", show_default=False)],
    uri: Uri,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    endpoint: Endpoint = None,
) -> None:
    """Upload a file or a folder.

    In the embedded store, the bucket is created if it does not exist.
    """
    from finetune_trainer.store import parse

    parse(uri)
    if not path.exists():
        raise CommandError(f"{path}: no such file", 66)
    with shared_storage(work_dir, endpoint) as storage:
        storage.ensure_bucket(uri)
        store = storage.connect()
        if path.is_dir():
            for uploaded in store.upload_folder(path, uri):
                echo(uploaded)
            return
        target = _completed(uri, path.name)
        store.upload(path, target)
        echo(target)


@app.command()
def get(
    uri: Uri,
    path: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="File or folder; - for standard output.", show_default=False),
    ] = None,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    endpoint: Endpoint = None,
) -> None:
    """Download an object.

    An address that ends with a slash is a folder, which is downloaded recursively.
    """
    from finetune_trainer.store import parse

    name = parse(uri).key.rstrip("/").rpartition("/")[2]
    with shared_storage(work_dir, endpoint) as storage:
        store = storage.connect()
        if path == Path("-"):
            sys.stdout.buffer.write(store.get(uri))
        elif uri.endswith("/"):
            for downloaded in store.download_folder(uri, path or Path(name)):
                echo(downloaded)
        else:
            target = path / name if path and path.is_dir() else path or Path(name)
            store.download(uri, target)
            echo(target)


@app.command()
def ls(
    uri: Annotated[
        str | None,
        typer.Argument(metavar="s3://BUCKET/PREFIX", help="Prefix to list; defaults to all buckets."),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="List all objects, also in folders.")] = False,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    endpoint: Endpoint = None,
) -> None:
    """List objects with size and time.

    A folder is one line with the total size of its objects.
    """
    from finetune_trainer.store import parse

    if uri is not None:
        parse(uri)  # report a wrong address before a server is started
    with shared_storage(work_dir, endpoint) as storage:
        if uri is None:
            _list_buckets(storage)
            return
        rows = listing(uri, storage.connect().list(uri), recursive=recursive)
    if not rows:
        raise CommandError(f"there are no objects under {uri}")
    for row in rows:
        echo(row)


def _list_buckets(storage: LocalStorage) -> None:
    if storage.embedded is None:
        raise CommandError("a bucket must be named with --endpoint; write `finetune store ls s3://BUCKET/`", 2)
    for bucket in storage.embedded.buckets():
        echo(f"s3://{bucket}/")


def _completed(uri: str, name: str) -> str:
    """Append the name of the file to the address of a bucket or folder."""
    from finetune_trainer.store import join, parse

    return join(uri, name) if uri.endswith("/") or not parse(uri).key else uri


@dataclass
class _Row:
    uri: str
    size: int
    modified: datetime
    objects: int = 0

    def __str__(self) -> str:
        many = f"  ({self.objects} objects)" if self.uri.endswith("/") else ""
        return f"{size(self.size):>10}  {self.modified.astimezone():%Y-%m-%d %H:%M:%S}  {self.uri}{many}"


def listing(prefix: str, objects: Iterable["ObjectInfo"], *, recursive: bool) -> list[_Row]:
    """Return rows to print: all objects if `recursive`, else objects and folders one level below the prefix."""
    from finetune_trainer.store import parse

    rows: dict[str, _Row] = {}
    base = prefix[: prefix.rindex("/") + 1] if parse(prefix).key else prefix.rstrip("/") + "/"
    for entry in objects:
        inner, slash, _ = entry.uri.removeprefix(base).partition("/")
        uri = entry.uri if recursive or not slash else f"{base}{inner}/"
        row = rows.setdefault(uri, _Row(uri, 0, entry.modified))
        row.size += entry.size
        row.objects += 1
        row.modified = max(row.modified, entry.modified)
    return list(rows.values())
