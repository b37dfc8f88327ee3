"""What must not be shown or stored: values of environment variables, and credentials inside addresses. Pure."""

import re

from .v1alpha1 import Spec

HIDDEN = "(hidden)"
"""Stands in the place of what is left out."""

# `hf://name@revision` is no credential. The greedy middle part covers passwords that contain an unescaped `@`.
_USERINFO = re.compile(r"\b(?!hf://)([a-zA-Z][a-zA-Z0-9+.-]{0,30}://)[^/\s\"'<>]+@")


def hide_credentials(text: str) -> str:
    """`https://user:password@host/x` -> `https://(hidden)@host/x`, wherever it occurs in a text."""
    return _USERINFO.sub(rf"\g<1>{HIDDEN}@", text)


def has_credentials(address: str) -> bool:
    """Whether an address holds a user name or password."""
    return _USERINFO.search(address) is not None


def without_secrets(spec: Spec) -> Spec:
    """The spec as it may be stored and shown: environment variables keep their names and references, not their values.

    The trainer finds the values in its environment; no stage reads them from its configuration.
    """
    env = tuple(
        variable.model_copy(update={"value": HIDDEN}) if variable.value else variable for variable in spec.workers.env
    )
    return spec.model_copy(update={"workers": spec.workers.model_copy(update={"env": env})})
