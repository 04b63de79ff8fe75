"""The chat page in a real browser, by mouse, by keyboard, and against hostile answers."""

import json
from pathlib import Path

import browsers
import pytest
from chat_server import MODELS, Fake, build, running

from rung.feedback.inbox import Inbox, inbox_path
from rung.tasks.files import Config, read_sources

ANSWER = "# Title\n\nHello **you**.\n\n- one\n- two\n\n```python\nprint(1)\n```\n\nThe end."
HOSTILE = (
    "<script>alert(1)</script>\n\n<img src=x onerror=alert(1)>\n\n<svg onload=alert(1)></svg>\n\n"
    "<style>body{display:none}</style>\n\n[click](javascript:alert(1)) [data](data:text/html,x)\n\n"
    "![pixel](https://tracker.invalid/x.png)\n\n```html\n</code></pre><script>alert(1)</script>\n"
    '```\n\n<iframe srcdoc="<script>alert(1)</script>"></iframe>\n\n\u202egnp.exe **un\n\n| a\n|-\n'
)


@pytest.fixture(scope="module")
def chromium():
    with browsers.chromium() as browser:
        yield browser


class Page:
    """A tab on a server of its own. problems: whatever a visitor must never see."""

    def __init__(self, browser, address, *, width, scheme, waits):
        self.context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, accept_downloads=True
        )
        self.context.set_default_timeout(120_000)
        self.tab = self.context.new_page()
        self.problems = []
        expected = ("401", "403", "503", "429")  # a browser names failed requests by itself
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.on(
            "console",
            lambda m: (
                self.problems.append(m.text)
                if m.type == "error" and not any(f"status of {code}" in m.text for code in expected)
                else None
            ),
        )
        self.tab.on("dialog", lambda dialog: self.problems.append(f"ran: {dialog.message}"))
        own = (address, "data:", "blob:")
        self.tab.on(
            "request", lambda r: None if r.url.startswith(own) else self.problems.append(r.url)
        )
        self.tab.goto(f"{address}/chat")
        if waits:
            self.ready()

    def ready(self):
        self.tab.wait_for_selector("[data-ready]", state="attached")

    def ask(self, text):
        self.tab.fill("#text", text)
        self.tab.press("#text", "Enter")

    def answered(self, times=1):
        """Waits until no answer is written and this many figures are shown."""
        self.tab.wait_for_selector("#stop", state="hidden")
        self.tab.locator(".from-model .figures").nth(times - 1).wait_for(state="attached")

    def key(self, key):
        self.tab.evaluate("document.activeElement.blur()")
        self.tab.keyboard.press(key)

    def texts(self, selector):
        return self.tab.locator(selector).all_inner_texts()

    def until(self, holds):
        """Waits for what the server hears."""
        for _ in range(600):
            if holds():
                return
            self.tab.wait_for_timeout(100)

    def flush(self):
        """Waits for the store: it writes a little later than the page shows."""
        self.tab.wait_for_timeout(700)


@pytest.fixture
def visit(chromium, tmp_path):
    """visit(fake, ...) -> Page; at the end no script ran, nothing failed, nothing was fetched."""
    opened = []

    def open_page(fake=None, *, width=1200, scheme="light", waits=True, **how):
        application, fake = build(tmp_path, fake=fake, **how)
        server = running(application)
        page = Page(chromium, server.__enter__(), width=width, scheme=scheme, waits=waits)
        page.fake = fake
        opened.append((server, page))
        return page

    yield open_page
    for server, page in opened:
        page.context.close()
        server.__exit__(None, None, None)
        assert page.problems == []


def pieces(text, size=4):
    return [text[i : i + size] for i in range(0, len(text), size)]


def events(tmp_path):
    return list(Inbox(inbox_path(tmp_path)).events())


def test_an_answer_streams_and_is_kept(visit):
    page = visit(Fake(pieces={"": pieces(ANSWER, 3)}, delay=0.01))
    page.ask("Hi\nthere")
    page.tab.wait_for_selector(".prose .block:nth-child(3)")
    page.tab.evaluate("document.querySelector('.prose .block').dataset.mark = 'kept'")
    page.answered()
    page.tab.wait_for_selector(".prose .block:nth-child(5)")
    # finished blocks were not drawn anew: no flicker
    assert page.tab.locator(".prose .block[data-mark]").count() == 1
    assert page.tab.locator(".prose h1").inner_text() == "Title"
    assert page.tab.locator(".prose strong").inner_text() == "you"
    assert page.texts(".prose li") == ["one", "two"]
    assert page.tab.locator(".prose .hl-nb").inner_text() == "print"
    assert page.texts(".from-user .said") == ["Hi\nthere"]
    assert page.fake.asked[0]["messages"] == [{"role": "user", "content": "Hi\nthere"}]
    assert page.fake.asked[0]["stream_options"] == {"include_usage": True}
    assert "temperature" not in page.fake.asked[0]  # the server's defaults
    assert "The end." in page.tab.locator("#announce").inner_text()
    page.flush()
    page.tab.reload()
    page.ready()
    page.tab.wait_for_selector(".prose h1")
    assert page.texts("#conversations .open") == ["Hi there"]


def test_stop_frees_the_stream_and_keeps_what_came(visit):
    page = visit(Fake(pieces={"": ["word "] * 2000}, delay=0.05))
    page.ask("Hi")
    page.tab.wait_for_selector(".prose p")
    page.key("Escape")
    page.tab.wait_for_selector(".note")
    assert page.tab.locator(".note").inner_text() == "Stopped."
    assert page.tab.locator(".prose").inner_text().startswith("word")
    page.until(lambda: page.fake.left)
    assert page.fake.left == 1


def test_edit_and_answer_again_keep_the_earlier_versions(visit):
    page = visit()
    page.ask("first")
    page.answered()
    page.key("e")
    page.tab.fill(".editor textarea", "second")
    page.tab.press(".editor textarea", "Control+Enter")
    page.answered()
    assert page.texts(".from-user .said") == ["second"]
    page.fake.pieces = {"": ["Another."]}
    page.key("r")
    page.tab.wait_for_selector("text=Another.")
    page.answered()
    assert [m["messages"][-1]["content"] for m in page.fake.asked] == ["first", "second", "second"]
    assert page.texts(".versions") == ["2/2", "2/2"]
    page.key("[")  # of the last message: the answer before
    assert page.texts(".prose") == ["Hello there."]
    page.tab.locator(".from-user [data-act=earlier]").click()
    assert page.texts(".from-user .said") == ["first"]
    page.ask("on the old branch")
    page.answered(2)
    assert [m["content"] for m in page.fake.asked[-1]["messages"]] == [
        "first",
        "Hello there.",
        "on the old branch",
    ]


def test_system_prompt_and_sampling_are_sent(visit):
    page = visit()
    page.key(",")
    page.tab.fill("#system", "Be brief.")
    page.tab.fill("#set-temperature", "0.5")
    page.tab.fill("#set-seed", "7")
    page.tab.fill("#set-top_p", "3")  # out of range: not sent, and said
    page.tab.locator("summary").click()
    page.tab.fill("#set-stop", "END\n\nSTOP")
    page.ask("Hi")
    page.tab.wait_for_selector("#toasts >> text=Not used, out of its range: top_p.")
    page.answered()
    asked = page.fake.asked[0]
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (asked["temperature"], asked["seed"], asked["stop"]) == (0.5, 7, ["END", "STOP"])
    assert "top_p" not in asked


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_hostile_answers_do_nothing(visit, size):
    page = visit(Fake(pieces={"": pieces(HOSTILE, size)}))
    page.ask("<script>alert(1)</script><img src=x onerror=alert(1)>")
    page.answered()
    page.tab.wait_for_selector(".prose .code pre")
    assert "alert(1)" in page.tab.locator(".prose").inner_text()
    inside = (
        "script, img, svg:not(.i), style, iframe, [onerror], [onload], [href^=java], [href^=data]"
    )
    assert page.tab.locator(f".prose :is({inside}), .said :is({inside})").count() == 0
    assert page.tab.locator(".prose").is_visible()
    assert page.tab.title().startswith("<script>alert(1)</script>")  # a title is text
    page.flush()
    page.tab.reload()
    page.ready()
    page.tab.wait_for_selector(".prose .code pre")


def test_two_models_side_by_side_without_names(visit, tmp_path):
    page = visit(Fake(pieces={"polite": ["Answer one."], "base": ["Answer two."]}))
    page.key("x")
    page.ask("Which?")
    page.tab.wait_for_selector(".votes")
    before = page.tab.locator("#messages").inner_html()
    assert not any(name in before for name in (*MODELS, *MODELS.values()))
    left, right = page.texts(".sides .prose")
    page.key("2")
    page.tab.wait_for_selector(".verdict")
    (event,) = events(tmp_path)
    assert (event.value, event.blind) == ("right", True)
    assert [a.text for a in event.answers] == [left, right]
    said = {"polite": "Answer one.", "base": "Answer two."}
    assert [said[a.model] for a in event.answers] == [left, right]
    assert event.prompt == [{"role": "user", "content": "Which?"}]
    first, second = (a.model for a in event.answers)
    verdict = page.tab.locator(".verdict").inner_text()
    assert verdict.startswith(f"You preferred B, {second}, to A, {first}.")
    # the better answer goes on
    page.key("x")
    page.ask("And then?")
    page.answered(3)
    assert page.fake.asked[-1]["messages"][1]["content"] == right
    page.tab.locator("[data-act=unvote]").click()
    page.tab.wait_for_selector("text=Not voted on.")
    page.until(lambda: len(events(tmp_path)) == 2)
    assert [e.value for e in events(tmp_path)] == ["right", "none"]


def test_thumbs_flags_comments_and_edits_reach_the_inbox(visit, tmp_path):
    page = visit(Fake(finish="length"))
    page.ask("Hi")
    page.answered()
    page.key("+")
    page.tab.wait_for_selector(".up[aria-pressed=true]")
    page.key("-")
    page.tab.wait_for_selector(".down[aria-pressed=true]")
    page.key("f")
    page.tab.get_by_label("Misleading").check()
    page.tab.get_by_label("Private data").check()
    page.tab.fill("#flag-comment", "it is <b>not</b> so")
    page.tab.get_by_role("button", name="Save").click()
    page.tab.wait_for_selector(".flag[aria-pressed=true]")
    page.key("a")
    page.tab.fill(".editor textarea", "Hello, you.")
    page.tab.press(".editor textarea", "Control+Enter")
    page.tab.wait_for_selector("text=The better answer was stored.")
    assert page.texts(".prose") == ["Hello, you."]
    assert page.texts(".versions") == ["2/2"]
    said = events(tmp_path)
    assert [(e.kind, e.value) for e in said] == [
        ("thumb", "up"),
        ("thumb", "down"),
        ("flag", ["misleading", "private"]),
        ("comment", "it is <b>not</b> so"),
        ("edit", "Hello, you."),
    ]
    assert len({e.subject for e in said}) == 1
    assert {e.answers[0].artefact for e in said} == {MODELS["polite"]}
    assert not any(e.answers[0].stopped for e in said)  # it was cut off
    assert {e.answers[0].completion for e in said} == {"c1"}  # by which the traffic log knows it
    assert said[0].annotator.startswith("browser-")


def test_a_failing_server_gets_it_later_and_once(visit, tmp_path):
    page = visit(Fake(failing=2))
    page.ask("Hi")
    page.answered()
    page.key("+")
    page.tab.wait_for_selector("text=will be sent again")
    page.tab.reload()  # what waits outlives the page
    page.ready()
    page.until(lambda: events(tmp_path))
    assert [(e.kind, e.value) for e in events(tmp_path)] == [("thumb", "up")]
    left = "Object.keys(localStorage).filter((one) => one.startsWith('rung-outbox-')).length"
    page.tab.wait_for_timeout(300)
    assert page.tab.evaluate(left) == 0


def test_without_collecting_there_is_nothing_to_say(visit, tmp_path):
    page = visit(collect=False)
    page.ask("Hi")
    page.answered()
    for key in ("+", "-", "f", "a"):
        page.key(key)
    page.key("x")
    page.ask("Both")
    page.tab.locator("[data-act=names]").click()
    page.tab.wait_for_selector(".verdict")
    assert page.tab.locator(".up, .down, .flag, #flagging, #consent, [data-act^=vote]").count() == 0
    assert not inbox_path(tmp_path).exists()


def test_conversations_are_searched_deleted_exported_and_imported(visit, tmp_path):
    page = visit()
    page.key(",")
    page.tab.fill("#system", "Be kind.")
    for question in ("about apples", "about pears"):
        page.tab.locator("[data-do=new]").click()
        page.ask(question)
        page.answered()
    page.tab.fill("#search", "APPLES there")
    assert page.texts("#conversations .open") == ["about apples"]
    page.tab.fill("#search", "plums")
    assert page.texts("#conversations .open") == []
    page.tab.fill("#search", "")
    with page.tab.expect_download() as download:
        page.tab.locator("[data-do=export-all]").click()
    path = Path(tmp_path, "chats.jsonl")
    download.value.save_as(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [[m["content"] for m in row["messages"]] for row in rows] == [
        ["Be kind.", "about pears", "Hello there."],
        ["Be kind.", "about apples", "Hello there."],
    ]
    found = read_sources(Config(files=(str(path),)))  # the shape that `rung dataset` reads
    assert len(found.rows) == 2
    assert not found.unused
    for _ in range(2):
        page.tab.locator("#conversations .icon").first.click()
    assert page.texts("#conversations .open") == []
    page.tab.get_by_role("button", name="Undo").last.click()
    assert page.texts("#conversations .open") == ["about apples"]
    path.write_text(path.read_text() + '{"messages": [{"role": "assistant", "content": "x"}]}\n')
    page.tab.set_input_files("#import", path)
    page.tab.wait_for_selector("text=2 conversations imported, 1 not: line 3: message 1 is from")
    assert sorted(page.texts("#conversations .open")) == [
        "about apples",
        "about apples",
        "about pears",
    ]
    assert page.tab.input_value("#system") == "Be kind."


def test_errors_are_shown_with_a_way_on(visit):
    page = visit(Fake(refusal=(429, "The queue is full.")))
    page.ask("Hi")
    page.tab.wait_for_selector(".failed")
    assert page.tab.locator(".failed").inner_text() == "The queue is full."
    page.fake.refusal = None
    page.key("r")
    page.tab.wait_for_selector("text=Hello there.")
    assert [len(body["messages"]) for body in page.fake.asked] == [1, 1]


def test_a_key_is_asked_for(visit):
    page = visit(Fake(key="secret"), waits=False)
    page.tab.fill("#api-key", "wrong")
    page.tab.press("#api-key", "Enter")
    page.tab.wait_for_selector("#ask-key[open]")
    page.tab.fill("#api-key", "secret")
    page.tab.press("#api-key", "Enter")
    page.ready()
    page.ask("Hi")
    page.answered()
    page.tab.wait_for_selector(".prose >> text=Hello there.")


def test_keys_and_names_of_controls(visit):
    page = visit()
    page.key("?")
    assert page.tab.locator("#keys").is_visible()
    page.key("Escape")
    page.ask("Hi")
    page.answered()
    page.tab.click("#text")
    page.tab.keyboard.type("n?e[+")  # in a field keys are text
    assert page.tab.input_value("#text") == "n?e[+"
    assert page.texts(".from-user .said") == ["Hi"]
    page.key("k")
    assert page.tab.evaluate("document.activeElement.getAttribute('aria-label')") == "polite"
    page.key(",")
    page.tab.uncheck("#single-keys")
    page.key("n")
    assert page.texts(".from-user .said") == ["Hi"]
    nameless = page.tab.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, article, dialog")]
        .filter((e) => !(e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim()
          || document.getElementById(e.getAttribute("aria-labelledby"))))
        .map((e) => e.outerHTML)"""
    )
    assert nameless == []


LONG = "x" * 3000 + "\n\n" + "word " * 20_000 + "\n\n```\n" + "y" * 3000 + "\n```\n\n| " + "z" * 900


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (360, "dark")])
def test_wide_and_narrow(visit, width, scheme):
    arabic = "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643 hello.\n\nEnglish again."
    page = visit(Fake(pieces={"": [arabic]}), width=width, scheme=scheme)
    page.ask("\u05e9\u05dc\u05d5\u05dd?")
    page.answered()
    page.tab.wait_for_selector(".prose .block:nth-child(2)")
    starts = page.tab.evaluate(
        """() => [...document.querySelectorAll(".prose p")].map((p) => {
          const range = document.createRange(); range.selectNodeContents(p);
          const text = range.getBoundingClientRect(), box = p.getBoundingClientRect();
          return box.right - text.right < text.left - box.left ? "right" : "left";
        })"""
    )
    assert starts == ["right", "left"]  # each paragraph begins on the side of its script
    page.fake.pieces = {"": pieces(LONG, 5000)}
    page.ask("Long, please")
    page.answered(2)
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= width
    box = "document.getElementById('thread')"
    assert page.tab.evaluate(f"{box}.scrollWidth <= {box}.clientWidth")
    dark = page.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark[4:-1].split(", "))) < 128) == (scheme == "dark")
    page.tab.emulate_media(media="print")
    assert not page.tab.locator("header.site").is_visible()
    assert not page.tab.locator("#composer").is_visible()
    assert page.tab.locator(".prose").first.is_visible()


PARSE = """async (parts) => {
  const { events } = await import("/static/sse.js");
  const bytes = parts.map((part) => new Uint8Array(part));
  const start = (to) => { bytes.forEach((b) => to.enqueue(b)); to.close(); };
  const stream = new ReadableStream({ start });
  const found = [];
  for await (const data of events(stream)) found.push(data);
  return found;
}"""


def test_events_are_parsed_however_they_are_cut(visit):
    page = visit()
    text = "data: a\r\n\r\n: ping\n\ndata:b\ndata: \u4e2d\U0001f600\n\n"
    text += "event: x\rdata:  c\r\rdata\n\ndata: end"
    expected = ["a", "b\n\u4e2d\U0001f600", " c", "", "end"]
    raw = text.encode()
    for size in (1, 2, 3, 5, 1000):
        cut = [list(raw[i : i + size]) for i in range(0, len(raw), size)]
        assert page.tab.evaluate(PARSE, cut) == expected, size
