"""`spec.data`: the data that the model is trained and evaluated on."""

import re
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from .base import ApiModel, DataUri, Duration, matching
from .scope import Scope

ColumnName = Annotated[str, Field(min_length=1, max_length=128)]


class DataFormat(StrEnum):
    """How a record becomes a training example."""

    CLASSIFICATION = "Classification"
    TEXT = "Text"
    INSTRUCTION = "Instruction"
    CHAT = "Chat"
    TOKEN_CLASSIFICATION = "TokenClassification"
    PREFERENCE = "Preference"


class BadRecordAction(StrEnum):
    """What happens when a record cannot be read or used."""

    FAIL = "Fail"
    SKIP = "Skip"


class Redaction(StrEnum):
    """Personal data that is replaced with a placeholder."""

    EMAIL = "Email"
    PHONE = "Phone"
    CREDIT_CARD = "CreditCard"
    IBAN = "Iban"
    IP_ADDRESS = "IpAddress"
    URL = "Url"


MAY_BE_SEVERAL_WORDS = (Redaction.PHONE, Redaction.CREDIT_CARD, Redaction.IBAN)
"""Not for TokenClassification, whose words are redacted one by one."""


_CODES = (
    "ace|af|am|an|ar|ary|arz|as|az|ba|bcl|be|bg|bn|br|bs|ca|crh|cs|cy|da|de|dz|el|en|eo|es|et|eu|ext|fa|fi|fo|fr|"
    "fuv|fy|ga|gcf|gcr|gd|gl|gom|grc|gu|gug|guw|ha|hbo|he|hi|hr|ht|hu|hy|id|ig|is|it|ja|jv|ka|kab|kik|kk|km|kn|ko|"
    "ku|ky|la|lb|lg|lij|ln|lo|lt|ltg|lv|mg|mk|ml|mn|mr|ms|mt|my|ne|nl|nn|no|nso|oc|om|or|pa|pcm|pl|ps|pt|qu|ro|ru|"
    "rw|sa|sdh|se|si|sk|sl|sn|so|sq|sr|st|sv|sw|ta|te|tg|th|tk|tl|tr|tt|ug|uk|ur|uz|uzs|vec|vi|vo|wa|wuu|xh|yo|"
    "yue|zh|zu"
)
LANGUAGES = tuple(_CODES.split("|"))
"""Codes of the languages that py3langid identifies: ISO 639-1, and 639-3 for languages without such a code."""
UNSPACED_LANGUAGES = ("dz", "ja", "km", "lo", "my", "th", "wuu", "yue", "zh")
"""Languages that are written without spaces between words."""


def _language_fault(value: str) -> str:
    code = re.split("[-_]", value.strip().lower())[0]
    return f"write {code}" if code in LANGUAGES else f"the known codes are {', '.join(LANGUAGES)}"


Language = Annotated[
    str,
    matching(
        f"^({_CODES})$",
        "the ISO 639 code of a known language, such as en or de",
        max_length=16,
        fault=_language_fault,
    ),
]
"""Code of a language."""


class Source(ApiModel, scope=Scope.DATA):
    """Files to read."""

    uri: DataUri
    """One file or a glob: JSON Lines (`.jsonl`, `.jsonl.gz`), CSV, Parquet or plain text (`.txt`). In object storage
    `s3://bucket/key`, in a dataset on the hub `hf://datasets/organization/name[@revision]/path`. Files with the same
    content are read once."""


class TrainingSource(Source, scope=Scope.DATA):
    """Files to train on."""

    weight: Annotated[float, Field(ge=0.0001, le=100.0)] = 1.0
    """How often an epoch has each record of these files. 2 repeats every record, 0.3 is a random sample of 30 %, drawn
    by `training.seed`, and 2.3 is both. It applies to the records that are left in the training split after `cleaning`,
    `validation` and `test`, which it does not change. The copies of `augmentation` are repeated or left out with their
    record. Not with `fewShot`. Absent: 1."""


class Holdout(ApiModel, scope=Scope.DATA):
    """A split that is never trained on: its own files, or a fraction of the training files."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1, max_length=64)] | None = None
    """Separate files, none of which has the content of a training file. Exactly one of `sources` and `fraction`."""

    fraction: Annotated[float, Field(ge=0.0, le=0.9)] | None = None
    """Share of the training files to hold out, drawn by `training.seed`. 0: no such split."""

    stratify: bool | None = None
    """Keep every label's share the same in all splits. Absent: true for Classification, unless `groupBy` is set. Only
    with `fraction`."""

    group_by: ColumnName | None = None
    """Column whose value records of one group share, such as a document or a user: all records of a group are in the
    same split. Only with `fraction`, and without `stratify: true`. If both splits are fractions, both need it."""


class Columns(ApiModel, scope=Scope.DATA):
    """Names of the columns that differ from the usual names."""

    text: ColumnName | None = None
    """Text of a Classification or Text record. Usual name: `text`."""

    label: ColumnName | None = None
    """Label of a Classification record, text or integer. Usual name: `label`."""

    prompt: ColumnName | None = None
    """Prompt of an Instruction or Preference record. Usual names: `prompt`, `instruction`. A Preference record without
    it has the prompt as the common beginning of both answers."""

    completion: ColumnName | None = None
    """Answer of an Instruction record. Usual names: `completion`, `output`, `response`."""

    messages: ColumnName | None = None
    """List of `{role, content}` of a Chat record. Usual name: `messages`."""

    tokens: ColumnName | None = None
    """List of the words of a TokenClassification record. Usual name: `tokens`."""

    chosen: ColumnName | None = None
    """Preferred answer of a Preference record: text, or a list of `{role, content}`. Usual name: `chosen`."""

    rejected: ColumnName | None = None
    """Other answer of a Preference record: text, or a list of `{role, content}`. Usual name: `rejected`."""

    tags: ColumnName | None = None
    """List of the labels of a TokenClassification record, one for each word. Usual names: `tags`, `ner_tags`."""


Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Quality(ApiModel, scope=Scope.DATA):
    """Heuristics for English texts from the web, with the values of Gopher (Rae et al. 2021, arXiv 2112.11446, A.1).
    Words are separated by white space, paragraphs by blank lines. Lines without text are not counted."""

    min_words: Annotated[int, Field(ge=1, le=1_000_000_000)] = 50
    """Fewest words of a text."""

    max_words: Annotated[int, Field(ge=1, le=1_000_000_000)] = 100_000
    """Most words of a text."""

    min_mean_word_length: Annotated[float, Field(ge=0.0, le=1000.0)] = 3.0
    """Lowest mean length of the words, in characters with punctuation."""

    max_mean_word_length: Annotated[float, Field(ge=1.0, le=1000.0)] = 10.0
    """Highest mean length of the words, in characters with punctuation."""

    max_symbols: Share = 0.1
    """Highest number of `#` per word, and of ellipses (`...` or `…`) per word."""

    max_bullet_lines: Share = 0.9
    """Highest share of lines that begin with a bullet: `•`, `-` or `*`."""

    max_ellipsis_lines: Share = 0.3
    """Highest share of lines that end with an ellipsis."""

    min_alphabetic_words: Share = 0.8
    """Lowest share of words with a letter."""

    min_stop_words: Annotated[int, Field(ge=0, le=8)] = 2
    """How many of these English words a text must have: the, be, to, of, and, that, have, with. 0 for other
    languages."""

    max_duplicate_lines: Share = 0.3
    """Highest share of lines that repeat an earlier one."""

    max_duplicate_line_chars: Share = 0.2
    """Highest share of characters in lines that repeat an earlier one."""

    max_duplicate_paragraphs: Share = 0.3
    """Highest share of paragraphs that repeat an earlier one."""

    max_duplicate_paragraph_chars: Share = 0.2
    """Highest share of characters in paragraphs that repeat an earlier one."""

    max_top_ngrams: Annotated[tuple[Share, ...], Field(min_length=3, max_length=3)] = (0.2, 0.18, 0.16)
    """Highest share of the characters of all words in the most frequent sequence of 2, 3 and 4 words that occurs more
    than once."""

    max_duplicate_ngrams: Annotated[tuple[Share, ...], Field(min_length=6, max_length=6)] = (
        0.15, 0.14, 0.13, 0.12, 0.11, 0.1,
    )  # fmt: skip
    """Highest share of the characters of all words in sequences of 5, 6, 7, 8, 9 and 10 words that repeat an earlier
    one."""


class Cleaning(ApiModel, scope=Scope.DATA):
    """Rules that repair the texts of all records, or leave records out of training on purpose."""

    unicode: bool = False
    """Repair text that was decoded with the wrong encoding (`cafÃ©`), and remove control characters, before records
    are compared. Applies to the records of all files."""

    whitespace: bool = False
    """Replace runs of spaces with one space, remove spaces at the ends of lines, and keep one of several blank lines,
    before records are compared. Applies to the records of all files. Not for source code."""

    redact: Annotated[tuple[Redaction, ...], Field(max_length=16)] = ()
    """Replace this personal data with placeholders such as `[EMAIL]`, before records are compared. Applies to the
    records of all files. Training records without any other words are left out. TokenClassification: not Phone,
    CreditCard and Iban, which may be several words."""

    min_chars: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Leave out training records with fewer characters. Absent: no bound."""

    max_chars: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Leave out training records with more characters. Absent: no bound."""

    languages: Annotated[tuple[Language, ...], Field(max_length=64)] = ()
    """Leave out training records in languages other than these, such as `[en, de]`. A record whose language is not
    certain, because it is short or has several languages, is kept. Similar languages such as `id` and `ms` may be
    mistaken for each other: list both. Absent: all languages."""

    quality: Quality | None = None
    """Leave out training records that do not look like text for people: too few or too long words, too many symbols or
    bullets, too much repetition. `{}` uses the values of Gopher. Text only. Absent: not checked."""

    exact_duplicates: bool = False
    """Of training records with the same text, keep the first, and none whose text is in a held-out file. Texts are
    compared without their labels, after Unicode normalization (NFC) and with each run of white space as one space."""

    near_duplicates: Annotated[float, Field(ge=0.5, le=1.0)] | None = None
    """Of training records that are at least this similar, keep the first, and none that is this similar to a record of
    a held-out file. The similarity is the share of common sequences of five characters (Jaccard): 0.8 finds copies with
    a few changed words. Absent: records are not compared."""

    test_overlap: bool = False
    """Leave out training records that contain a held-out record of at least 8 words or share 13 consecutive words with
    one. Held-out are the records of `validation` and `test`."""


class FewShot(ApiModel, scope=Scope.DATA):
    """A small subset of the training split. Exactly one of `perClass` and `examples`."""

    per_class: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Examples of each label; all of a label that has fewer. Classification only."""

    examples: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Examples in total; all if there are fewer. For formats whose records have no label."""


class AugmentationMethodName(StrEnum):
    """How a copy of a text is changed."""

    CHARACTER_NOISE = "CharacterNoise"
    WORD_DROPOUT = "WordDropout"
    WORD_SWAP = "WordSwap"
    SYNONYM = "Synonym"


class Augmentation(ApiModel, scope=Scope.DATA):
    """Changed copies of the training records."""

    copies: Annotated[int, Field(ge=1, le=10)] = 1
    """Copies of each record. A copy that equals the record or another copy is left out."""

    methods: Annotated[tuple[AugmentationMethodName, ...], Field(min_length=1, max_length=4)]
    """The copies of a record use these methods in turn. CharacterNoise doubles, removes or exchanges a character of
    some words, WordDropout removes words, WordSwap exchanges words, Synonym replaces words by those of `synonyms`."""

    synonyms: Source | None = None
    """One file with the columns `word` and `synonyms`: JSON Lines with lists, or CSV with texts separated by `|`. At
    most 4 MiB. Required for Synonym."""

    rate: Annotated[float, Field(ge=0.01, le=0.5)] = 0.1
    """Share of the words that are changed; at least one."""

    min_per_class: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    """Only classes with fewer training records get copies, and only as many as they lack. Absent: all records get
    copies. Classification only."""


class Data(ApiModel, scope=Scope.DATA):
    """Training data, held-out splits and how records are read."""

    train: Annotated[tuple[TrainingSource, ...], Field(min_length=1, max_length=64)]
    """Files to train on."""

    validation: Holdout = Holdout(fraction=0.1)
    """Split that is evaluated during training, for the curves of the report, `earlyStopping`, `overfitting` and the
    schedule ReduceOnPlateau."""

    test: Holdout = Holdout(fraction=0.1)
    """Split that only the evaluate stage reads."""

    format: DataFormat | None = None
    """How a record becomes an example. Absent: determined from the columns of the first record."""

    columns: Columns = Columns()
    """Names of the columns that differ from the usual names."""

    train_on_inputs: bool = False
    """Whether all tokens of an Instruction or Chat record carry loss, in all splits: also the prompt, the messages of
    users, systems and tools, and what the chat template adds. false: only the answers. The losses and perplexities of
    a run with true cannot be compared with those of a run with false. Instruction and Chat only."""

    max_length: Annotated[int, Field(ge=8, le=1_048_576)] = 1024
    """Tokens per row, and of each answer of a Preference record with its prompt. A longer document of the format Text
    is divided into several rows; other examples are truncated, and the dropped tokens are counted. Limited to the
    maximum length of the model."""

    on_bad_record: BadRecordAction = BadRecordAction.FAIL
    """A malformed line, a missing column, an empty text: Fail stops the run and reports file and
    line, Skip skips and counts the record."""

    cleaning: Cleaning = Cleaning()
    """Rules that repair the texts of all records, or leave records out of training on purpose."""

    few_shot: FewShot | None = None
    """Train on a random subset of the training split, drawn by `training.seed`. Validation and test split are
    unchanged. Absent: the whole training split."""

    augmentation: Augmentation | None = None
    """Add changed copies of the records to the training split. Classification and Text only. Absent: none."""

    poll: Annotated[Duration | None, Scope.NOW] = None
    """Check at this interval, at least 1m, whether the files of `train`, `validation` and `test` have changed, and
    start a new run if they have. A small pod lists them and compares names, sizes and ETags, or the commit of a
    dataset of the hub. Only in a cluster, and only after a run has ended. Absent: never."""
