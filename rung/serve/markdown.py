"""Model output as safe HTML: Markdown that knows no HTML, then an allow-list over what it made.

A text becomes a list of blocks, each with the line it begins on, so that a page which streams can
keep what is finished and ask for the rest only.
"""

import re
from functools import cache
from typing import NamedTuple

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token

MAX_HIGHLIGHTED = 20_000  # characters of a block of code; longer ones are shown in one colour

_LANGUAGES = (
    "bash c cpp csharp css diff go haskell html ini java javascript js json julia kotlin lua "
    "make perl php py pycon python r ruby rust scala sh shell sql swift tex toml ts typescript "
    "xml yaml yml zig"
)
LANGUAGES = frozenset(_LANGUAGES.split())
"""Words behind the fence that are coloured; nothing is guessed from the code itself."""


class Block(NamedTuple):
    """A paragraph, list, table, ... of a text. line: of the text, from 0."""

    html: str
    line: int


def render_blocks(text: str) -> list[Block]:
    """The blocks of `text` in their order; safe to insert into a page as they are.

    HTML in the text stays text. Images become links: a page that loads what an answer names would
    tell strangers what was said.
    """
    parser = _parser()
    env: dict[str, object] = {}
    tokens = parser.parse(text, env)
    return [
        Block(_cleaner().clean(parser.renderer.render(part, parser.options, env)), line)
        for part, line in _split(tokens)
    ]


def _split(tokens: list[Token]) -> list[tuple[list[Token], int]]:
    """Tokens of each block at the top: from an opening one at depth 0 to the one that closes it."""
    found: list[tuple[list[Token], int]] = []
    depth, start = 0, 0
    for index, token in enumerate(tokens):
        if depth == 0:
            start = index
        depth += token.nesting
        if depth == 0:
            begin = tokens[start].map
            found.append((tokens[start : index + 1], begin[0] if begin else 0))
    return found


@cache
def _parser() -> MarkdownIt:
    options = {"html": False, "breaks": True, "highlight": _highlight}
    parser = MarkdownIt("commonmark", options).enable(["table", "strikethrough"])
    return parser.disable(["image", "html_block", "html_inline"])


def _highlight(code: str, language: str, attributes: str) -> str:
    """Code with a span around each word of the language; "" where it is shown as it is."""
    if language.lower() not in LANGUAGES or len(code) > MAX_HIGHLIGHTED:
        return ""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(language.lower(), stripnl=False, ensurenl=False)
    except ClassNotFound:  # an older Pygments knows fewer
        return ""
    html: str = highlight(code, lexer, HtmlFormatter(nowrap=True, classprefix="hl-"))
    return html if code.endswith("\n") else html.removesuffix("\n")  # it ends every line


_TAGS = (
    "p br hr h1 h2 h3 h4 h5 h6 strong em s code pre blockquote ul ol li a span "
    "table thead tbody tr th td"
)
_ATTRIBUTES = {
    "a": {"href", "title"},
    "code": {"class"},
    "span": {"class"},
    "ol": {"start"},
    "th": {"style"},
    "td": {"style"},
}
_ALLOWED = {
    "class": re.compile(r"language-[\w+#.-]{1,30}|hl-[a-z0-9]{1,4}"),
    "style": re.compile(r"text-align:(left|right|center)"),
    "start": re.compile(r"\d{1,9}"),
}


def _filter(tag: str, name: str, value: str) -> str | None:
    allowed = _ALLOWED.get(name)
    return value if allowed is None or allowed.fullmatch(value) else None


@cache
def _cleaner() -> nh3.Cleaner:
    return nh3.Cleaner(
        tags=set(_TAGS.split()),
        attributes=_ATTRIBUTES,
        attribute_filter=_filter,
        url_schemes={"http", "https", "mailto"},
        url_relative="deny",
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )
