"""Rows of small, seeded datasets for tests."""

import json
import random
from typing import Any

CLASSES = {"good": "a very good film", "bad": "a very bad film", "mixed": "a good film and a bad book"}


def classified(rows: int = 60) -> list[dict[str, Any]]:
    words = random.Random(5)
    names = list(CLASSES)
    return [
        {"text": f"{CLASSES[names[i % 3]]} {i} " + "very " * words.randrange(8), "label": names[i % 3]}
        for i in range(rows)
    ]


def tagged(rows: int = 60) -> list[dict[str, Any]]:
    """Sentences with names of people and places, which are the capitalized words."""
    draw = random.Random(3)
    made: list[dict[str, Any]] = []
    for _ in range(rows):
        person, place = draw.choice(["Ada", "Grace", "Alan"]), draw.choice(["London", "Paris"])
        words = [person, "Byron", "was", *["very"] * draw.randrange(4), "good", "in", place]
        tags = ["B-PER", "I-PER", *["O"] * (len(words) - 3), "B-LOC"]
        made.append({"tokens": words, "tags": tags})
    return made


def chats(rows: int = 40) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"what is {i} and {i}?"},
                {"role": "assistant", "content": f"it is {2 * i}" + " or so" * (i % 7)},
            ]
        }
        for i in range(rows)
    ]


def preferences(rows: int = 40) -> list[dict[str, Any]]:
    """Pairs of which the chosen answer begins with another word than the rejected one."""
    return [
        {
            "prompt": f"what is {i} and {i}?",
            "chosen": f"it is {2 * i}" + " or so" * (i % 3),
            "rejected": f"no idea about {i}" + " at all" * (i % 4),
        }
        for i in range(rows)
    ]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def colors(count: int = 160) -> bytes:
    """Rows whose label is the color that they mention: learned within a few steps."""
    draw = random.Random(1)
    words = ["the", "a", "big", "small", "house", "car", "is", "was", "very"]
    rows = []
    for index in range(count):
        label = ("red", "green", "blue", "black")[index % 4]
        text = draw.choices(words, k=draw.randint(2, 12))
        text.insert(draw.randint(0, len(text)), label)
        rows.append({"text": " ".join(text), "label": label})
    return jsonl(rows)


def many_classes(count: int) -> bytes:
    """Four short rows for each of many classes with long names."""
    names = [f"intent number {index:05d} of a bank's customers" for index in range(count)]
    return jsonl(
        [{"text": f"red {row} blue {index}", "label": names[index]} for index in range(count) for row in "abcd"]
    )
