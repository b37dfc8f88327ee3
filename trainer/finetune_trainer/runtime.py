"""Who this process is among the ranks of its stage, from the environment. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.constants import Env

from .errors import UsageError


def variable(environ: Mapping[str, str], name: Env) -> str:
    """Raises UsageError where the variable is missing."""
    try:
        return environ[name]
    except KeyError:
        raise UsageError(f"environment variable {name} is missing; variables: {', '.join(Env)}") from None


def number(environ: Mapping[str, str], name: Env, default: int | None = None) -> int:
    """A variable that is a whole number. Raises UsageError where it is none, or missing without a default."""
    text = environ.get(name, "") if default is not None else variable(environ, name)
    if not text and default is not None:
        return default
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"environment variable {name} must be a whole number, not {text!r}") from None


@dataclass(frozen=True)
class RuntimeEnv:
    """One rank's place in the world; the names are torchrun's."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    scratch: Path
    """Folder of the pod; gone with it."""
    cache: Path
    """Folder for downloads, shared by the processes of a node."""

    @property
    def lasting_cache(self) -> Path | None:
        """The cache where it outlives the pod, for what only a later pod reads; None: it lies in `scratch`."""
        return None if self.cache.is_relative_to(self.scratch) else self.cache

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "RuntimeEnv":
        """Raises UsageError for a variable that is missing or is not a number."""
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
        """True on the one rank that speaks for all."""
        return self.rank == 0
