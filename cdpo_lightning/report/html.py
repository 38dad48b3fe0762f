"""Renders HTML pages from the templates in `assets/`. A page is one file: it loads nothing else and runs only our own script."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

# Autoescape: whatever comes from a run is text for the browser. Only our own files and `json_text` are passed as markup.
_TEMPLATES = Environment(
    loader=PackageLoader("cdpo_lightning.report", "assets"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render_page(name: str, title: str, styles: tuple[str, ...], **values: Any) -> str:
    """Return the page of the template `<name>.html`, which runs the script `<name>.js`.

    Args:
        name: of the template and of its script.
        title: of the page.
        styles: names of style sheets in `assets/`, the later ones over the earlier ones.
        values: the variables of the template.
    """
    script = _asset(f"{name}.js")
    return _TEMPLATES.get_template(f"{name}.html").render(
        title=title,
        styles=Markup("".join(map(_asset, styles))),
        script=Markup(script),
        # Were a response ever to be read as markup, the browser would still refuse to run a script with another hash.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )


@cache
def _asset(name: str) -> str:
    return files("cdpo_lightning.report").joinpath("assets", name).read_text(encoding="utf-8")


def json_text(value: Any) -> Markup:
    """Return the value as JSON for a `script` element; no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def data_uri(kind: str, content: bytes) -> str:
    """Return a link that holds the content itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
