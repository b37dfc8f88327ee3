"""What is killed, and when: every pair of victim and moment, in an order that a seed decides. Pure."""

import random
from enum import StrEnum
from itertools import product

from pydantic import BaseModel, ConfigDict


class Victim(StrEnum):
    """What dies. The rest of an attempt is ended a moment after a rank, as its supervisor would."""

    ONE_RANK = "one rank"
    ALL_RANKS = "all ranks"
    UPLOADER = "an uploader"
    STORE = "the storage server"


class Point(StrEnum):
    """A request to storage at which it dies, or any moment."""

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
"""How many such requests there are in a save, or in a restore, and so which of them it may be."""


class Event(BaseModel):
    """One kill."""

    model_config = ConfigDict(frozen=True)

    victim: Victim
    point: Point
    is_after: bool = False
    """Once storage has done what was asked, of which nobody hears; else before it is told."""
    number: int = 1
    """The how-manieth such request since the event was due."""
    seconds: float = 0.0
    """ANY: since the event was due."""
    rank: int = 0
    away_seconds: float = 0.0
    """Of the storage server."""

    @property
    def is_fatal(self) -> bool:
        """Whether the attempt ends with it."""
        return self.victim in (Victim.ONE_RANK, Victim.ALL_RANKS)

    def __str__(self) -> str:
        when = "at" if self.point is Point.ANY else ("after" if self.is_after else "before")
        return f"{self.victim} {when} {self.point}"


def _pairs() -> list[tuple[Victim, Point, bool]]:
    """Any moment is in it twice for each victim, as each request is, once before it and once after."""
    return [
        (victim, point, is_after)
        for victim, point, is_after in product(Victim, Point, (False, True))
        if not (victim is Victim.UPLOADER and point in _BEFORE_UPLOADERS)
    ]


def events(seed: int, count: int) -> list[Event]:
    """`count` kills: all pairs once, in any order, then all of them again, with other numbers and seconds."""
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
