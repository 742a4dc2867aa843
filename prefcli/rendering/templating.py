"""The package's Jinja2 templates. Every value is escaped: names and texts from files are shown, never interpreted."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from prefcli.errors import plural

if TYPE_CHECKING:
    from jinja2 import Environment

_SPACES = "\n\u00a0\u3000"


def render(template: str, **context: Any) -> str:
    """A template of ``templates/`` with the values of ``context``."""
    return environment().get_template(template).render(context)


@functools.cache
def environment() -> Environment:
    """Where templates come from and how values are written into them."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # verbs that render nothing do without

    environment = Environment(
        loader=PackageLoader("prefcli.rendering"),
        autoescape=True,
        finalize=printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["fmt"] = format  # Python's own, with its format specifications
    environment.filters["plural"] = plural
    return environment


def printable(value: object) -> object:
    """Replace what a page cannot hold, or what changes how it reads: control, bidirectional and unpaired characters.

    Jinja2 calls it on every value before it escapes the value; markup that templates made passes unchanged.
    """
    if hasattr(value, "__html__"):
        return value
    return "".join(c if c.isprintable() or c in _SPACES else "\ufffd" for c in str(value))
