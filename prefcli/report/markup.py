"""HTML and SVG from function calls: nothing but :func:`element` makes markup, and it escapes every piece of text."""

from __future__ import annotations

import html

_SPACES = "\n\u00a0\u3000"


class Html(str):
    """Markup that is safe to write; any other string is text and will be escaped."""


def element(name: str, *children: str | None, **attributes: str | float | None) -> Html:
    """``<name attributes>children</name>``.

    Parameters
    ----------
    name:
        Of the element.
    children:
        :class:`Html` is taken as it is, other strings are escaped, None is left out.
    attributes:
        Always escaped, None left out. ``class_`` is ``class``; underscores become hyphens, but ``viewBox`` and the
        like keep their capitals.
    """
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{told}>{joined(*children)}</{name}>")


def joined(*children: str | None) -> Html:
    """Children one after the other, text escaped."""
    return Html(
        "".join(child if isinstance(child, Html) else _escape(child) for child in children if child is not None)
    )


def _escape(text: str) -> str:
    """Text for HTML: markup escaped, characters that a page cannot hold replaced."""
    shown = "".join(c if c.isprintable() or c in _SPACES else "\ufffd" for c in text)
    return html.escape(shown.encode("utf-8", "replace").decode("utf-8"), quote=True)


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
