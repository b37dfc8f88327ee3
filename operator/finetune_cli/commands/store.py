"""`finetune store put|get|ls`: access to object storage without an S3 client."""

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
from ..terminal import say
from .options import DEFAULT_WORK_DIR, Endpoint, WorkDir

if TYPE_CHECKING:  # boto3 comes with it: half a second that most commands need not spend
    from finetune_trainer.store import ObjectInfo

app = typer.Typer(help="Copy files into and out of object storage, and list it.", no_args_is_help=True)

Uri = Annotated[str, typer.Argument(metavar="s3://BUCKET/KEY", help="Address.", show_default=False)]


@app.command()
def put(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="File or folder.", show_default=False)],
    uri: Uri,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    endpoint: Endpoint = None,
) -> None:
    """Upload a file or a folder.

    In the embedded store the bucket is made if it is not there.
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
                say(uploaded)
            return
        target = _completed(uri, path.name)
        store.upload(path, target)
        say(target)


@app.command()
def get(
    uri: Uri,
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="File or folder; - is standard output.", show_default=False),
    ] = None,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    endpoint: Endpoint = None,
) -> None:
    """Download an object.

    An address that ends with a slash is a folder: all that is in it comes.
    """
    from finetune_trainer.store import parse

    name = parse(uri).key.rstrip("/").rpartition("/")[2]
    with shared_storage(work_dir, endpoint) as storage:
        store = storage.connect()
        if path == Path("-"):
            sys.stdout.buffer.write(store.get(uri))
        elif uri.endswith("/"):
            for downloaded in store.download_folder(uri, path or Path(name)):
                say(downloaded)
        else:
            target = path / name if path and path.is_dir() else path or Path(name)
            store.download(uri, target)
            say(target)


@app.command()
def ls(
    uri: Annotated[
        str | None,
        typer.Argument(metavar="[s3://BUCKET/PREFIX]", help="Prefix to list; by default all buckets."),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Every object, also in folders.")] = False,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    endpoint: Endpoint = None,
) -> None:
    """List objects with size and time.

    A folder is one line, with the sum of what is in it.
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
        raise CommandError(f"there is nothing under {uri}")
    for row in rows:
        say(row)


def _list_buckets(storage: LocalStorage) -> None:
    if storage.embedded is None:
        raise CommandError("which bucket? write `finetune store ls s3://BUCKET/`", 2)
    for bucket in storage.embedded.buckets():
        say(f"s3://{bucket}/")


def _completed(uri: str, name: str) -> str:
    """An address that names a bucket or a folder gets the file's name."""
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
    """Rows to print: objects, and folders one level below the prefix unless `recursive`."""
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
