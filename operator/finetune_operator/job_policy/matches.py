"""Comparisons of a value in a spec with an entry of the job policy, in Python and in CEL. Pure."""

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Match:
    """A comparison."""

    admits: Callable[[str, str], bool]
    """Whether an entry admits a value: (entry, value)."""
    cel: str
    """The same in CEL, with the variables `entry` and `value`."""


def _is_within(entry: str, image: str) -> bool:
    """Whether an image is the entry or below it, so that the rest begins with a slash, a tag or a digest.

    A colon before a slash is the port of another registry. An entry with a tag or a digest admits nothing else, because
    a digest after a tag selects any image of the repository.
    """
    if entry.endswith("/"):
        return image.startswith(entry)
    if image == entry or re.search("[:@][^/]*$", entry):
        return image == entry
    rest = "[:@][^/]*|/.*" if "/" in entry else "[:@][^/]*"
    return image.startswith(entry) and re.fullmatch(rest, image[len(entry) :]) is not None


_WITHIN_CEL = (
    "entry.endsWith('/') ? value.startsWith(entry) : value == entry || "
    "!entry.matches('[:@][^/]*$') && value.startsWith(entry) && "
    "value.substring(size(entry)).matches(entry.contains('/') ? '^([:@][^/]*|/.*)$' : '^[:@][^/]*$')"
)


def _is_at(entry: str, address: str) -> bool:
    """Whether an address has the scheme, host and port of the entry. Both may omit the port of the scheme."""
    port = ":443" if entry.startswith("https:") else ":80"
    origin = entry.removesuffix(port)
    lowered = f"{address}/".encode("utf-8", "replace").lower().decode()  # only ASCII letters, as in CEL
    has_port = re.search(":[0-9]+$", origin) is not None
    return lowered.startswith(f"{origin}/") or (not has_port and lowered.startswith(f"{origin}{port}/"))


# CEL has no local variables: a list of one value binds a name.
_AT_CEL = (
    "[entry.startsWith('https:') ? ':443' : ':80'].exists(port, "
    "[entry.endsWith(port) ? entry.substring(0, size(entry) - size(port)) : entry].exists(origin, "
    "[(value + '/').lowerAscii()].exists(lowered, "
    "lowered.startsWith(origin + '/') || "
    "!origin.matches(':[0-9]+$') && lowered.startsWith(origin + port + '/'))))"
)


def _is_named(entry: str, name: str) -> bool:
    """Whether a name is the entry, or begins with an entry that ends with *."""
    return name.startswith(entry[:-1]) if entry.endswith("*") else name == entry


_NAMED_CEL = "entry.endsWith('*') ? value.startsWith(entry.substring(0, size(entry) - 1)) : value == entry"


def _begin_with(entry: str, prefix: str) -> bool:
    """Whether the entry matches all names that begin with a prefix."""
    return entry.endswith("*") and prefix.startswith(entry[:-1])


_BEGIN_WITH_CEL = "entry.endsWith('*') && value.startsWith(entry.substring(0, size(entry) - 1))"


def _may_begin_with(entry: str, prefix: str) -> bool:
    """Whether the entry matches a name that begins with a prefix."""
    return entry.removesuffix("*").startswith(prefix) or _begin_with(entry, prefix)


_MAY_BEGIN_WITH_CEL = f"entry.startsWith(value) || {_BEGIN_WITH_CEL}"


def _upper(value: str) -> str:
    """Return it with upper-case ASCII letters, as CEL does."""
    return value.encode("utf-8", "surrogatepass").upper().decode("utf-8", "surrogatepass")


def _ignoring_case(match: Match) -> Match:
    """The comparison with entries in upper case, in which `Https_Proxy` is the variable `HTTPS_PROXY`."""
    return Match(
        lambda entry, value: match.admits(entry, _upper(value)),
        f"[value.upperAscii()].exists(upper, {match.cel.replace('value', 'upper')})",
    )


def _is_below(entry: str, path: str) -> bool:
    """Whether a path is a folder or below it. A path with `..` may leave the folder."""
    return (path == entry or path.startswith(f"{entry}/")) and ".." not in path


_BELOW_CEL = "(value == entry || value.startsWith(entry + '/')) && !value.contains('..')"

EQUAL = Match(lambda entry, value: value == entry, "value == entry")
WITHIN_IMAGE = Match(_is_within, _WITHIN_CEL)
AT_ORIGIN = Match(_is_at, _AT_CEL)
NAMED = Match(_is_named, _NAMED_CEL)
ALL_BEGIN = Match(_begin_with, _BEGIN_WITH_CEL)
SOME_BEGIN = Match(_may_begin_with, _MAY_BEGIN_WITH_CEL)
NAMED_IN_ANY_CASE = _ignoring_case(NAMED)
SOME_BEGIN_IN_ANY_CASE = _ignoring_case(SOME_BEGIN)
BELOW = Match(_is_below, _BELOW_CEL)
