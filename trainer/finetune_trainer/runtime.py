"""Rank, world size and folders of this process, from the environment. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.constants import Env

from .errors import UsageError


def variable(environ: Mapping[str, str], name: Env) -> str:
    """Return the value of the variable. Raises UsageError if it is missing."""
    try:
        return environ[name]
    except KeyError:
        raise UsageError(f"environment variable {name} is missing; variables: {', '.join(Env)}") from None


def number(environ: Mapping[str, str], name: Env, default: int | None = None) -> int:
    """Return a whole number. Raises UsageError if the value is not one, or if it is missing and has no default."""
    text = environ.get(name, "") if default is not None else variable(environ, name)
    if not text and default is not None:
        return default
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"environment variable {name} must be a whole number, not {text!r}") from None


@dataclass(frozen=True)
class RuntimeEnv:
    """Ranks and sizes of one process, by torchrun's names, and its folders."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    scratch: Path
    """Folder that is deleted with the pod."""
    cache: Path
    """Folder for downloads, shared by the processes of a node."""

    @property
    def lasting_cache(self) -> Path | None:
        """The cache if it outlives the pod, for data that only a later pod reads; None if it is within `scratch`."""
        return None if self.cache.is_relative_to(self.scratch) else self.cache

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "RuntimeEnv":
        """Parse the environment. Raises UsageError if a variable is missing or is not a number."""
        scratch = Path(variable(environ, Env.SCRATCH))
        return cls(
            rank=number(environ, Env.RANK),
            world_size=number(environ, Env.WORLD_SIZE),
            local_rank=number(environ, Env.LOCAL_RANK),
            local_world_size=number(environ, Env.LOCAL_WORLD_SIZE),
            scratch=scratch,
            cache=Path(environ.get(Env.CACHE) or scratch / "cache"),
        )

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which logs and writes for all ranks."""
        return self.rank == 0
