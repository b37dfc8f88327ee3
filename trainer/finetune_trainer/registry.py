"""Registries of objects by name. They import all modules of a package, so a new object needs only a file of its own."""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from .errors import BadConfigError


class Named(Protocol):
    """What can be registered."""

    name: ClassVar[Any]


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """One instance of each registered class. The modules of `package` are imported at the first lookup."""

    def __init__(self, package: str, field: str) -> None:
        self._package = package
        self._field = field
        """Path of the field that names an object, for messages."""
        self._found: dict[str, T] = {}
        self._is_loaded = False

    def register(self, kind: type[T]) -> type[T]:
        """Class decorator: add an instance of the class under its `name`. Raises ValueError if the name is taken."""
        one = kind()
        if one.name in self._found:
            raise ValueError(f"{self._field} {one.name} is defined twice: {kind!r} and {type(self._found[one.name])!r}")
        self._found[one.name] = one
        return kind

    def unregister(self, name: str) -> None:
        """Remove an object that a test has added."""
        del self._found[name]

    def __getitem__(self, name: str) -> T:
        """Return the object of that name. Raises BadConfigError with the known names if there is none."""
        known = self._load()
        if name not in known:
            raise BadConfigError(
                f"{self._field} must be one of {', '.join(sorted(known))}, not {name}",
                advice="correct the name, or use a trainer image that has it",
            )
        return known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._load())

    def _load(self) -> dict[str, T]:
        if not self._is_loaded:
            self._is_loaded = True
            path = importlib.import_module(self._package).__path__
            for name in sorted(module.name for module in pkgutil.iter_modules(path)):
                importlib.import_module(f"{self._package}.{name}")
        return self._found
