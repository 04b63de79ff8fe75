"""A server with API keys in a real browser: its own question for a password opens the pages."""

from pathlib import Path
from typing import Any

import pytest
from browsers import chromium
from serve_fake import ANSWER, serving

from rung.feedback.inbox import Inbox, inbox_path
from rung.serve.state import Settings

KEY = "a-long-enough-key"


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("keys")
    with serving(root, settings=Settings(api_keys=(KEY,))) as (client, service):
        yield client.url, service, root / "store"


def opened(browser: Any, password: str | None) -> Any:
    """A tab of who types this password, if asked for one. What runs into it: tab.problems."""
    known = None if password is None else {"username": "me", "password": password}
    tab = browser.new_context(http_credentials=known).new_page()
    tab.set_default_timeout(120_000)
    tab.problems = []
    tab.on("console", lambda m: tab.problems.append(m.text) if m.type == "error" else None)
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    return tab


def test_who_has_a_key_can_chat_and_look_around(browser, server: tuple[str, Any, Path]) -> None:
    url, _, store = server
    tab = opened(browser, KEY)
    assert tab.goto(f"{url}/chat").status == 200
    tab.wait_for_selector("[data-ready]", state="attached")
    tab.fill("#text", "hello")
    tab.press("#text", "Enter")
    tab.locator(".from-model .figures").first.wait_for(state="attached")
    words = ANSWER.split(".")[0].removeprefix("The ")
    tab.locator(".prose", has_text=words).wait_for()  # drawn after the figures, at times
    tab.locator(".up").first.click()
    tab.wait_for_selector(".up[aria-pressed=true]")
    for _ in range(600):
        if inbox_path(store).exists() and list(Inbox(inbox_path(store)).events()):
            break
        tab.wait_for_timeout(100)
    assert [e.value for e in Inbox(inbox_path(store)).events()] == ["up"]
    assert not tab.locator("#ask-key").is_visible(), "the browser asks, and asks once"
    for page in ("/runs", "/artefacts", "/lineage"):
        assert tab.goto(url + page).status == 200
    assert tab.problems == []
    tab.context.close()


@pytest.mark.parametrize("password", [None, "a-wrong-key-here"])
def test_others_see_nothing(browser, server: tuple[str, Any, Path], password: str | None) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    url, service, _ = server
    tab = opened(browser, password)
    service.orders.clear()
    for page in ("/chat", "/runs"):
        try:
            status = tab.goto(url + page).status
        except playwright.Error as error:  # what chromium shows for a wrong password
            status = 401 if "ERR_INVALID_AUTH_CREDENTIALS" in str(error) else str(error)
        assert status == 401
        assert tab.locator("#text, nav").count() == 0
    assert service.orders == []
    tab.context.close()
