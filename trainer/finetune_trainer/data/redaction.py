"""Finds personal data in texts and replaces it with placeholders.

Every kind has a cheap test that most texts fail, then a pattern that needs time linear in the length of the text:
repetitions are bounded or begin at a character that the repeated part does not contain. Numbers with a checksum are
replaced only if it is correct.
"""

import re
import string
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address

from finetune_api.v1alpha1 import Redaction

Match = re.Match[str]


@dataclass(frozen=True)
class _Kind:
    placeholder: str
    is_possible: Callable[[str], object]
    """Whether a text may contain such data; fast."""
    pattern: re.Pattern[str]
    matched: Callable[[Match], str | None] = lambda match: match[0]
    """The part of the match, from its start, that is such data; None: nothing."""


_LOCAL = r"\w\u0300-\u036f!#$%&'*+/=?^`{|}~.-"
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Characters of languages that are written without spaces."""
_LOCAL_PART = re.compile(rf"[{_UNSPACED}][{_LOCAL}]*|(?:(?![{_UNSPACED}])[{_LOCAL}])*")
"""The part before the @ from its last character to its first: letters and digits of all languages, with accents that
are characters of their own. It ends at a character of a language without spaces, which is the word before the address,
unless it begins with one."""
_MOST_LOCAL = 64
"""Characters before the @ of an address (RFC 5321)."""


def _luhn(match: Match) -> str | None:
    digits = [int(character) for character in match[0] if character.isdigit()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    is_valid = len(digits) >= 13 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
    return match[0] if is_valid else None


_SHORTEST_IBAN = 15


def _iban(match: Match) -> str | None:
    """The longest beginning with a correct checksum: words in capitals may follow the number."""
    text = match[0]
    while sum(map(str.isalnum, text)) >= _SHORTEST_IBAN:
        compact = text.replace(" ", "")
        if int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1:
            return text
        text = text.rpartition(" ")[0]
    return None


_DATE = re.compile(r"[0-9]{1,4}[./-][0-9]{1,2}[./-][0-9]{1,4}(?![0-9])")
_GROUPED = re.compile(r"\(?[0-9]{3}\)?[ .-]{0,2}[0-9]{3}[ .-][0-9]{4}")


def _phone(match: Match) -> str | None:
    """A number with a country code, with a leading zero, or with the groups of North America."""
    text = match[0]
    if _DATE.match(text):
        return None
    digits = sum(map(str.isdigit, text))
    is_phone = text.startswith("+") or (digits >= 9 and text.lstrip("(").startswith("0")) or _GROUPED.fullmatch(text)
    return text if is_phone else None


def _ipv6(match: Match) -> str | None:
    text = match[0]
    if text.count(":") < 2 or not any(character in string.digits for character in text):
        return None
    try:
        IPv6Address(text)
    except AddressValueError:
        return None
    return text


_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_BYTE}\.{_BYTE}\.{_BYTE}\.{_BYTE}")
_IP = re.compile(
    rf"(?<![\w.:]){_IPV4.pattern}(?![\w]|\.[0-9])|(?<![\w.:])[0-9A-Fa-f:]{{2,39}}(?:\.[0-9.]{{5,11}})?(?![\w:])"
)
_TWO_DIGITS = re.compile("[0-9][0-9]")


def _ip(match: Match) -> str | None:
    if ":" in match[0]:
        return _ipv6(match)
    return match[0] if _IPV4.fullmatch(match[0]) else None


_KINDS: Mapping[Redaction, _Kind] = {
    # The order matters: an address may be a part of a URL, and a phone number a part of another number.
    Redaction.URL: _Kind(
        "[URL]",
        lambda text: "://" in text or "www." in text.lower(),
        re.compile(r"(?:\b(?:https?|ftp)://|\bwww\.)[^\s<>\"\]})]+", re.IGNORECASE),
        lambda match: match[0].rstrip(".,;:!?'"),
    ),
    Redaction.EMAIL: _Kind(
        "[EMAIL]",
        lambda text: "@" in text,
        re.compile(r"@[^\W_](?:[\w-]{0,61}[^\W_])?(?:\.[^\W_](?:[\w-]{0,61}[^\W_])?){1,8}"),
    ),
    Redaction.IBAN: _Kind(
        "[IBAN]",
        _TWO_DIGITS.search,
        re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}(?![A-Za-z0-9])"),
        _iban,
    ),
    Redaction.CREDIT_CARD: _Kind(
        "[CREDIT_CARD]",
        _TWO_DIGITS.search,
        re.compile(
            r"(?<![\w+])(?:[2-6][0-9]{3}([ -]?)[0-9]{4}\1[0-9]{4}\1[0-9]{1,4}(?:\1[0-9]{3})?"
            r"|3[0-9]{3}([ -]?)[0-9]{6}\2[0-9]{5})(?!\w)"
        ),
        _luhn,
    ),
    Redaction.IP_ADDRESS: _Kind("[IP_ADDRESS]", lambda text: text.count(".") >= 3 or text.count(":") >= 2, _IP, _ip),
    Redaction.PHONE: _Kind(
        "[PHONE]",
        _TWO_DIGITS.search,
        re.compile(r"(?<![\w+.])[+(]?\(?[0-9](?:[ ./()-]{0,2}[0-9]){6,14}(?!\w)"),
        _phone,
    ),
}
PLACEHOLDERS = re.compile("|".join(re.escape(kind.placeholder) for kind in _KINDS.values()))


def redacted(text: str, kinds: Collection[Redaction] = tuple(Redaction)) -> str:
    """The text with a placeholder such as `[EMAIL]` for all data of these kinds."""
    for name, kind in _KINDS.items():
        if name in kinds and kind.is_possible(text):
            text = _without_email(text, kind) if name is Redaction.EMAIL else _without(text, kind)
    return text


def _without(text: str, kind: _Kind) -> str:
    def replaced(match: Match) -> str:
        found = kind.matched(match)
        return match[0] if found is None else kind.placeholder + match[0][len(found) :]

    return kind.pattern.sub(replaced, text)


def _without_email(text: str, kind: _Kind) -> str:
    """The pattern matches from the @, because a pattern that begins with the local part is tried at every letter."""
    pieces, done = [], 0
    for match in kind.pattern.finditer(text):
        head = text[max(done, match.start() - _MOST_LOCAL) : match.start()]
        found = _LOCAL_PART.match(head[::-1])
        local = found[0][::-1].lstrip("!#$%&'*/=?^`{|}~.-") if found else ""
        if local:
            pieces += [text[done : match.start() - len(local)], kind.placeholder]
            done = match.end()
    return "".join([*pieces, text[done:]])
