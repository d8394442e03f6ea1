"""Templates to Markdown, and Markdown to one HTML page that holds everything it shows."""

import base64
import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt


def to_markdown(
    package: str, template: str, filters: Mapping[str, Callable[..., str]], **values: Any
) -> str:
    """Fill in a template.

    Args:
        package: that holds it.
        template: the name of its file.
        filters: functions that it may call.
        values: what it shows.

    Raises:
        jinja2.UndefinedError: it shows something else.
    """
    environment = _environment()
    environment.filters.update(filters)
    return environment.from_string(_text(package, template)).render(**values)


def to_html(markdown: str, folder: Path, title: str) -> str:
    """Render Markdown as one HTML page that holds the images it links to.

    Args:
        markdown: as :func:`to_markdown` returns it.
        folder: where the images are.
        title: of the page.
    """
    content = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    content = re.sub(
        r'src="([^"]+\.png)"', lambda link: f'src="{_embedded(folder / link[1])}"', content
    )
    page = _text("modes_fx.calibration.report", "page.html.jinja")
    return _environment().from_string(page).render(content=content, title=title)


def _environment() -> Environment:
    return Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _text(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")


def _embedded(image: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"
