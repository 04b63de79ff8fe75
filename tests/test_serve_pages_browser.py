"""The pages in a real browser, while a stage is at work: curves grow, nothing breaks out."""

import io
import shutil
import threading
import time
from pathlib import Path

import pytest
import uvicorn
from browsers import chromium
from serve_pages import pages_app
from test_serve_pages import HOSTILE, KEY, build

from rung.progress import PlainProgress
from rung.store.journal import Journal
from rung.store.runlog import SAMPLES, RunLog


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def address(store):
    """The pages on a free port of this machine."""
    config = uvicorn.Config(pages_app(store), host="127.0.0.1", port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser):
    """A narrow, dark window; what its console complains of is an error."""
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark")
    context.set_default_timeout(120_000)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def until(page, expression: str) -> None:
    """Wait for it to be true. (What playwright has for this is stopped by the pages' policy.)"""
    end = time.monotonic() + 120
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(100)


class Stage:
    """A stage at work in this process: a step whenever it is told."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        about = {"name": f"r/{HOSTILE}", "stage": "train", "kind": "model", "config": {}}
        self.journal = Journal(folder, PlainProgress(io.StringIO()), {**about, "parents": {}})
        self.log, self.samples = RunLog(folder), RunLog(folder, SAMPLES)
        self.done = 0

    def steps(self, count: int, **figures: float) -> None:
        for _ in range(count):
            self.log.append({"step": self.done, "loss": 3 - self.done / 100, **figures})
            self.done += 1
        self.journal.update(self.done)
        self.journal._write("running")


@pytest.fixture
def stage(store):
    folder = store.root / "work" / KEY
    stage = Stage(folder / "run")
    with stage.journal:
        stage.journal.start("train", total=200, unit="step")
        yield stage
    shutil.rmtree(folder)


def test_a_run_is_watched_while_it_works(page, address, stage):
    stage.steps(30)
    page.goto(f"{address}/runs/{KEY[:16]}")
    loss = page.locator(".plot").first
    points = "document.querySelector('.plot').dataset.points"
    until(page, f"{points} === '30'")
    assert loss.locator("svg").count() > 0
    tint = "getComputedStyle(document.querySelector('.plot .js-line')).stroke"
    assert page.evaluate(tint) == "rgb(124, 201, 181)"  # --c0 of a dark page
    stage.steps(25)
    stage.samples.append({"step": 54, "prompt": HOSTILE, "text": HOSTILE})
    until(page, f"Number({points}) > 55")  # as logged, and smoothed
    until(page, "document.querySelector('.sample') !== null")
    assert page.locator(".summary tbody td").nth(4).inner_text() == "55"
    assert page.locator(".sample .written").inner_text() == HOSTILE
    assert "55 of 200" in page.locator(".bar").inner_text()
    stage.steps(5, **{"eval/utility": 0.5})  # a figure that was not there when the page was made
    page.wait_for_selector("figcaption:has-text('Truth')")
    assert page.locator("img").count() == 0
    page.locator(".values summary").first.click()
    assert page.locator(".values td").count() >= 10


def test_the_list_lives_and_leads_to_the_run(page, address, stage):
    stage.steps(1)
    page.goto(f"{address}/runs")
    stage.steps(99)
    until(page, "document.querySelector('.bar')?.innerText.includes('100 of 200')")
    page.locator("#active a").click()
    page.wait_for_selector("#charts")


def test_runs_are_chosen_and_laid_over_each_other_by_keyboard(page, address):
    page.goto(f"{address}/runs")
    boxes = page.locator("input[name=run]")
    for index in range(2):
        boxes.nth(index).focus()
        page.keyboard.press("Space")
    assert "2 of at most 8" in page.locator("#chosen").inner_text()
    page.keyboard.press("Enter")
    page.wait_for_url("**/compare**")
    until(page, "document.querySelector('.plot')?.dataset.points === '60'")
    names = page.locator(".swatch").all_inner_texts()
    assert sorted(names) == ["ladder/base", "ladder/other"]


def test_the_picture_is_walked_by_keyboard(page, address, store):
    page.goto(f"{address}/lineage")
    base = store.open("base").id[:16]
    page.locator(f"a[data-id='{base}']").focus()
    assert page.locator(".wire.lit").count() == 1
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('ladder/base')")
    page.locator("button:has-text('Verify now')").click()
    page.wait_for_selector("b.good")


def test_a_report_can_run_its_scripts_and_nothing_else(page, address, store):
    reports = store.root / "reports"
    reports.mkdir(exist_ok=True)
    (reports / "ladder.html").write_text(
        "<!doctype html><link rel=icon href='data:,'><title>start</title><script>"
        "document.title = 'drawn ' + origin;"
        "</script>"
    )
    page.goto(f"{address}/reports/ladder")
    assert page.title() == "drawn null"  # an origin of its own
