"""Model output on a page: Markdown and code as HTML, and nothing that runs, loads or hides."""

import re
from html.parser import HTMLParser

import pytest

from rung.serve.markdown import LANGUAGES, MAX_HIGHLIGHTED, render_blocks

_TAGS = (
    "p br hr h1 h2 h3 h4 h5 h6 strong em s code pre blockquote ul ol li a span "
    "table thead tbody tr th td"
)
TAGS = set(_TAGS.split())


class Reader(HTMLParser):
    """Tags, attributes and text as a browser would see them; an independent look at the result."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text += data


def read(text):
    reader = Reader()
    for block in render_blocks(text):
        reader.feed(block.html.removesuffix("\n"))
    return reader


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)><script href='data:text/javascript,alert(1)'/></svg>",
    "<style>body{display:none}</style>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<math><mtext><table><mglyph><style><img src onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java&#x0A;script:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](vbscript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "<javascript:alert(1)>",
    "![x](https://tracker.example/?q=secret)",
    "![x](data:image/svg+xml,<svg/onload=alert(1)>)",
    '[x](https://a.example "\\" onmouseover=\\"alert(1)")',
    '[x](https://a.example/"onmouseover="alert(1))',
    '```python" onmouseover="alert(1)\nx\n```',
    '```x"><img/src=x/onerror=alert(1)>\ny\n```',
    "```html\n<script>alert(1)</script>\n```",
    "`<img src=x onerror=alert(1)>`",
    "| <img src=x onerror=alert(1)> |\n|-|\n| <script>alert(1)</script> |",
    "[a]: javascript:alert(1)\n\n[a]",
    "<a href='javascript:alert(1)'>x</a>",
    "<!-- --><script>alert(1)</script>",
    "</div></article><form action=//evil.example><input>",
    "<b <script>alert(1)</script>",
    "[x](//evil.example/path) [y](/chat/feedback) [z](feedback)",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\x00<script>\x00alert(1)</script>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text):
    seen = read(text)
    assert set(seen.tags) <= TAGS
    for tag, name, value in seen.attributes:
        allowed = {
            ("a", "href"): r"(https?://|mailto:).*",
            ("a", "title"): r".*",
            ("a", "target"): r"_blank",
            ("a", "rel"): r"noopener noreferrer nofollow",
            ("code", "class"): r"language-[\w+#.-]+",
            ("span", "class"): r"hl-\w+",
            ("th", "style"): r"text-align:\w+",
            ("td", "style"): r"text-align:\w+",
            ("ol", "start"): r"\d+",
        }.get((tag, name))
        assert allowed is not None, f"<{tag} {name}>"
        assert re.fullmatch(allowed, value, re.DOTALL), f"<{tag} {name}={value!r}>"


def test_html_of_an_answer_is_shown_as_it_was_written():
    text = "<b>bold?</b> & <script>alert(1)</script>"
    assert read(text).text == text
    assert read(f"```html\n{text}\n```").text == f"{text}\n"  # coloured, and nothing is lost


def test_markdown():
    (heading, paragraph, listing, table) = render_blocks(
        "# Title\n\none **two** `three`\nfour\n\n1. a\n   - b\n\n| x | y |\n|:-:|--:|\n| 1 | 2 |\n"
    )
    assert heading.html == "<h1>Title</h1>\n"
    assert paragraph.html == ("<p>one <strong>two</strong> <code>three</code><br>\nfour</p>\n")
    assert listing.html.replace("\n", "") == "<ol><li>a<ul><li>b</li></ul></li></ol>"
    assert 'td style="text-align:right">2<' in table.html
    assert [b.line for b in (heading, paragraph, listing, table)] == [0, 2, 5, 8]
    (link,) = render_blocks("[x](https://a.example/?q=1&r=2)")
    assert link.html == (
        '<p><a href="https://a.example/?q=1&amp;r=2" target="_blank" '
        'rel="noopener noreferrer nofollow">x</a></p>\n'
    )


def test_code_is_coloured_where_the_language_is_known_and_never_changed():
    code = "def f(x):\n    return '<&>' if x else \"\\u202e\"  # end"
    for language in ("python", "py", "no-such", ""):
        seen = read(f"```{language}\n{code}\n```")
        assert seen.text == f"{code}\n"
        coloured = [a for a in seen.attributes if a[0] == "span"]
        assert bool(coloured) == (language in LANGUAGES)
    # unfinished, as while it streams: no line is added
    assert read("```python\nprint(1").text == "print(1"
    long = "x = 1\n" * (MAX_HIGHLIGHTED // 6 + 1)
    assert "span" not in read(f"```python\n{long}```").tags


def test_every_language_has_its_colours():
    from pygments.lexers import get_lexer_by_name

    for language in LANGUAGES:
        get_lexer_by_name(language)


@pytest.mark.parametrize(
    "text",
    ["[" * 20_000, "*a **a " * 3_000, "> " * 20_000, "`" * 20_000, "<" * 20_000, "[a](b" * 4_000],
)
def test_broken_markup_ends_and_gives_allowed_tags_only(text):
    assert set(read(text).tags) <= TAGS


def test_blocks_of_a_growing_text_settle():
    """What the page relies on while it streams: all but the last block stay as they are."""
    text = (
        "# A\n\nSome *text* here\nand here.\n\n- one\n- two\n\n  more\n\n1. x\n\n```py\na = 1\n\n"
        "b\n```\n\n| a |\n|---|\n| b |\n\n> quote\nlazy\n\n---\n\nend `code`\n"
    )
    whole = render_blocks(text)
    for at in range(0, len(text), 3):
        part = render_blocks(text[:at])
        assert part[:-1] == whole[: max(0, len(part) - 1)]
    # ... and rendering may begin at any settled block
    lines = text.split("\n")
    for i, block in enumerate(whole):
        rest = render_blocks("\n".join(lines[block.line :]))
        assert [b.html for b in rest] == [b.html for b in whole[i:]]


def test_right_to_left_and_control_characters_pass_through():
    text = "\u0645\u0631\u062d\u0628\u0627 **\u0628\u0643** abc \u202egnp.exe"
    assert read(text).text.strip() == text.replace("**", "")
