"""One HTML page from a template, with the style that all reports share."""

from pathlib import Path
from typing import Any

_STYLE = "style.css"


def render_page(template: str | Path, **values: Any) -> str:
    """Return a page that needs nothing beside it.

    Args:
        template: the Jinja template, a name in this folder or a path; it puts `style` into its
            head.
        values: what the template shows; a name that it lacks is an error.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    folder = Path(__file__).parent
    # A path with a root of its own stays as it is.
    page = environment.from_string((folder / template).read_text(encoding="utf-8"))
    return page.render(style=(folder / _STYLE).read_text(encoding="utf-8"), **values)
