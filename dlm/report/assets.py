"""Self-contained pages: templates filled in, with the styles and scripts of the server's page inside them."""

from __future__ import annotations

import re
from base64 import b64encode
from pathlib import Path
from typing import Any

from dlm._paths import PACKAGE

SHARED = PACKAGE / "serving" / "page"
"""The server's page: what looks and moves alike comes from there."""
OWN = Path(__file__).parent / "static"

_IMPORT = re.compile(r"^import\b[^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)


def render(template: str, **values: Any) -> str:
    """A page from `templates/`; text among `values` is escaped.

    The template may also use `styles`, `script` and `modules` with names of files, `section` with the class of a
    section of the server's page, and `icon`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        styles=lambda *names: Markup("\n".join(map(text_of, names))),
        script=lambda name: Markup(text_of(name)),
        modules=lambda *names: Markup(joined(*names)),
        section=lambda name: Markup(section_of("index.html", name)),
        icon=data_uri(SHARED.joinpath("icon.svg").read_bytes(), "image/svg+xml"),
    )
    return environment.get_template(template).render(**values)


def text_of(name: str) -> str:
    """A style or script, of the reports or of the server's page."""
    own = OWN / name
    return (own if own.exists() else SHARED / name).read_text(encoding="utf-8")


def joined(*names: str) -> str:
    """ES modules as one: each after those that it imports. Their top-level names must all differ."""
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", text_of(name))) for name in names)


def section_of(page: str, name: str) -> str:
    """A `<section class="name">` of a page, in which there is no other."""
    found = re.search(rf'<section class="{re.escape(name)}".*?</section>', text_of(page), re.DOTALL)
    if found is None:
        raise LookupError(f"{page} has no section {name!r}")
    return found[0]


def data_uri(content: bytes, kind: str) -> str:
    """A file inside a page; `kind` is its media type."""
    return f"data:{kind};base64,{b64encode(content).decode()}"
