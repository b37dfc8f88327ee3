"""Who this process is among the ranks of its stage, from the environment. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.constants import Env


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
        """Raises KeyError for a missing variable, ValueError for one that is not a number."""
        scratch = Path(environ[Env.SCRATCH])
        return cls(
            rank=int(environ[Env.RANK]),
            world_size=int(environ[Env.WORLD_SIZE]),
            local_rank=int(environ[Env.LOCAL_RANK]),
            local_world_size=int(environ[Env.LOCAL_WORLD_SIZE]),
            scratch=scratch,
            cache=Path(environ.get(Env.CACHE) or scratch / "cache"),
        )

    @property
    def is_main(self) -> bool:
        """True on the one rank that speaks for all."""
        return self.rank == 0
