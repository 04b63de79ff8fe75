"""Pages from templates: everything that goes in is escaped."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"
STATIC = Path(__file__).parent / "static"

NAVIGATION = (("/chat", "Chat"), ("/runs", "Runs"), ("/lineage", "Lineage"))


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(template: str, *, path: str, **context: object) -> str:
    """HTML of a template that extends base.html. path: of the request, marked in the navigation."""
    return _environment().get_template(template).render(path=path, navigation=NAVIGATION, **context)
