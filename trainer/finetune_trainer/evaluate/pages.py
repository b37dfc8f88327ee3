"""How HTML pages are made from templates. Pure."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from . import formatting


def page_environment() -> Environment:
    """Return an environment that escapes all texts, with the filters that every page uses."""
    environment = Environment(
        loader=PackageLoader(__package__, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=formatting.count_text,
        size=formatting.size_text,
        duration=formatting.duration_text,
        digest=formatting.short_digest,
    )
    return environment
