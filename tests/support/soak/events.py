"""What is killed, and when: every pair of victim and point, in an order that depends on a seed. Pure."""

import random
from enum import StrEnum
from itertools import product

from pydantic import BaseModel, ConfigDict


class Victim(StrEnum):
    """What is killed. After a rank, the rest of the attempt is terminated shortly afterwards, like by its
    supervisor."""

    ONE_RANK = "one rank"
    ALL_RANKS = "all ranks"
    UPLOADER = "an uploader"
    STORE = "the storage server"


class Point(StrEnum):
    """The request to storage at which it is killed, or any time."""

    ANY = "any moment"
    CLAIM = "the claim"
    RESTORE = "a read of a checkpoint"
    BLOB = "a blob"
    PART = "a part"
    MANIFEST = "a manifest"
    PRUNED_MANIFESTS = "the removal of manifests"
    PRUNED_BLOBS = "the removal of blobs"


_BEFORE_UPLOADERS = (Point.CLAIM, Point.RESTORE)
_MANY = {Point.BLOB: 5, Point.PART: 2, Point.RESTORE: 8}
"""Number of such requests in a save or restore, and thus the possible indices."""


class Event(BaseModel):
    """One kill."""

    model_config = ConfigDict(frozen=True)

    victim: Victim
    point: Point
    is_after: bool = False
    """Kill after storage executed the request but before the response; otherwise before storage gets it."""
    number: int = 1
    """Index of the request since the event became due."""
    seconds: float = 0.0
    """For ANY: seconds since the event became due."""
    rank: int = 0
    away_seconds: float = 0.0
    """Downtime of the storage server."""

    @property
    def is_fatal(self) -> bool:
        """Whether the attempt ends with it."""
        return self.victim in (Victim.ONE_RANK, Victim.ALL_RANKS)

    def __str__(self) -> str:
        when = "at" if self.point is Point.ANY else ("after" if self.is_after else "before")
        return f"{self.victim} {when} {self.point}"


def _pairs() -> list[tuple[Victim, Point, bool]]:
    """ANY is included twice for each victim, like each request (before and after)."""
    return [
        (victim, point, is_after)
        for victim, point, is_after in product(Victim, Point, (False, True))
        if not (victim is Victim.UPLOADER and point in _BEFORE_UPLOADERS)
    ]


def events(seed: int, count: int) -> list[Event]:
    """`count` kills: all pairs once in random order, then all of them again with other indices and seconds."""
    draw = random.Random(seed)
    made: list[Event] = []
    while len(made) < count:
        pairs = _pairs()
        draw.shuffle(pairs)
        made += [
            Event(
                victim=victim,
                point=point,
                is_after=is_after,
                number=draw.randint(1, _MANY.get(point, 1)),
                seconds=round(draw.uniform(0.0, 3.0), 2),
                rank=draw.randrange(2),
                away_seconds=round(draw.uniform(0.1, 1.5), 2),
            )
            for victim, point, is_after in pairs
        ]
    return made[:count]
