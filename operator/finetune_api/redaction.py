"""Hide values of environment variables and credentials in addresses, which must not be shown or stored. Pure."""

import re

from .v1alpha1 import Spec

HIDDEN = "(hidden)"
"""Replacement for hidden values."""

# `hf://name@revision` is not a credential. The greedy middle part covers passwords that contain an unescaped `@`.
_USERINFO = re.compile(r"\b(?!hf://)([a-zA-Z][a-zA-Z0-9+.-]{0,30}://)[^/\s\"'<>]+@")


def hide_credentials(text: str) -> str:
    """`https://user:password@host/x` -> `https://(hidden)@host/x`, anywhere in a text."""
    return _USERINFO.sub(rf"\g<1>{HIDDEN}@", text)


def has_credentials(address: str) -> bool:
    """Whether an address contains a user name or password."""
    return _USERINFO.search(address) is not None


def without_secrets(spec: Spec) -> Spec:
    """Return a spec that may be stored and shown: environment variables without values, with names and references.

    The trainer reads the values from its environment, never from its configuration.
    """
    env = tuple(
        variable.model_copy(update={"value": HIDDEN}) if variable.value else variable for variable in spec.workers.env
    )
    return spec.model_copy(update={"workers": spec.workers.model_copy(update={"env": env})})
