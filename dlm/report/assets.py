"""Self-contained pages: rendered templates with the styles and scripts of the server's page inlined."""

from __future__ import annotations

import re
from base64 import b64encode
from pathlib import Path
from typing import Any

from dlm._paths import PACKAGE

SHARED = PACKAGE / "serving" / "page"
"""The server's page, the source of shared styles and scripts."""
OWN = Path(__file__).parent / "static"

_IMPORT = re.compile(r"^import\b[^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)


def render(template: str, **values: Any) -> str:
    """Render a page from `templates/`; text in `values` is escaped.

    The template may also use `styles`, `script` and `modules` with file names, `section` with the class of a section
    of the server's page, and `icon`.
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
    """Join ES modules into one; list each after those it imports. Their top-level names must be unique."""
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", text_of(name))) for name in names)


def section_of(page: str, name: str) -> str:
    """The `<section class="name">` of a page, which must not contain another section."""
    found = re.search(rf'<section class="{re.escape(name)}".*?</section>', text_of(page), re.DOTALL)
    if found is None:
        raise LookupError(f"{page} has no section {name!r}")
    return found[0]


def data_uri(content: bytes, kind: str) -> str:
    """A file as a data URI; `kind` is its media type."""
    return f"data:{kind};base64,{b64encode(content).decode()}"
