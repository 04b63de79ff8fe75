"""/runs, /lineage, /artefacts and /reports over a real small store, by requests."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from serve_pages import CSP, pages_app
from toy.table import RECIPE, STAGES

from rung.pipeline import run as run_recipe
from rung.progress import PlainProgress
from rung.recipe import load_recipe
from rung.serve.panels import panels_of
from rung.serve.reports import REPORT_CSP, report_of
from rung.serve.shelf import shelf_of
from rung.store.journal import Journal
from rung.store.runlog import SAMPLES, RunLog, read_metrics
from rung.store.store import Store

HOSTILE = "</script><img src=x onerror=alert(1)>{{ 7*7 }}"
KEY = "ab" * 32


def build(root, *overrides):
    page = root / "ladder.yaml"
    page.write_text(RECIPE)
    recipe = load_recipe(page, overrides=overrides, stages=STAGES)
    store = Store(root / "store")
    run_recipe(recipe, store, progress=PlainProgress(io.StringIO()))
    return store


@pytest.fixture
def store(tmp_path):
    return build(tmp_path)


@pytest.fixture
def client(store):
    with TestClient(pages_app(store)) as client:
        yield client


@pytest.fixture
def hostile(store):
    """A stage at work whose every text is an attack."""
    folder = store.root / "work" / KEY / "run"
    folder.mkdir(parents=True)
    about = {
        "name": f"ladder/{HOSTILE}",
        "stage": HOSTILE,
        "kind": HOSTILE,
        "config": {"prompt": HOSTILE},
        "parents": {HOSTILE: store.open("text").id},
    }
    journal = Journal(folder, PlainProgress(io.StringIO()), about)
    log = RunLog(folder)
    with journal:
        journal.start(HOSTILE, total=10, unit=HOSTILE)
        journal.say(HOSTILE)
        log.append({"step": 0, "loss": 1.5, HOSTILE: 2.0})
        RunLog(folder, SAMPLES).append({"step": 0, "prompt": HOSTILE, "text": HOSTILE})
        journal._write("running")
        yield journal


def get(client, path, code=200):
    answer = client.get(path, follow_redirects=False)
    assert answer.status_code == code, (path, answer.status_code, answer.text[:300])
    return answer


def key_of(store, name):
    return str(store.open(name).notes["recipe_key"])[:16]


# runs


def test_runs_lists_every_stage_and_filters(client, store):
    page = get(client, "/runs").text
    for name in ("text", "base", "other", "scores"):
        assert f'href="/runs/{key_of(store, name)}">ladder/{name}</a>' in page
    assert page.count('type="checkbox"') == 2  # those that logged figures can be compared
    assert "Nothing is running" in page
    some = get(client, "/runs?q=ladder%2Fba&stage=train").text
    assert "ladder/base" in some
    assert "ladder/other" not in some
    assert "No run fits" in get(client, "/runs?q=nothing-like-this").text


def test_a_run_at_work_is_shown_live(client, store, hostile):
    hostile._now["done"] = 4.0
    hostile._write("running")
    live = get(client, "/runs/active")
    assert live.headers["cache-control"] == "no-store"
    assert 'value="0.4000"' in live.text
    assert "4 of 10" in live.text
    assert '<progress max="1"' in get(client, f"/runs/{KEY[:16]}").text


def test_data_are_the_logged_figures_and_a_cursor_brings_only_new_ones(client, store, hostile):
    base = store.open("base")
    rows = read_metrics(store.metrics(base))
    (run,) = get(client, f"/runs/data?run={key_of(store, 'base')}").json()["runs"]
    assert run["whole"]
    assert run["lines"]["loss"]["x"] == [row["step"] for row in rows]
    assert run["lines"]["loss"]["y"] == pytest.approx([row["loss"] for row in rows], rel=1e-8)
    assert run["status"]["state"] == "done"

    (live,) = get(client, f"/runs/data?run={KEY[:16]}&metric=loss").json()["runs"]
    RunLog(store.root / "work" / KEY / "run").append({"step": 1, "loss": 1.25})
    again = get(client, f"/runs/data?run={KEY[:16]}@{live['cursor']}&metric=loss").json()["runs"]
    assert again[0]["lines"] == {"loss": {"x": [1.0], "y": [1.25], "num": 1}}
    assert (again[0]["whole"], again[0]["rows"], again[0]["status"]["active"]) == (False, 2, True)


def test_curves_follow_a_run_from_work_to_done(client, store, hostile):
    run = store.root / "work" / KEY / "run"
    (one,) = get(client, f"/runs/data?run={KEY}").json()["runs"]
    artefact = store.open("base")
    notes = json.loads((artefact.path / "manifest.json").read_text())
    notes["notes"]["recipe_key"] = KEY  # as if this had been the run that built it
    (artefact.path / "manifest.json").write_text(json.dumps(notes))
    kept = store.root / "runs" / KEY
    kept.mkdir()
    (run / "metrics.jsonl").rename(kept / "metrics.jsonl")
    (run / "stage.json").unlink()
    with TestClient(pages_app(store)) as fresh:
        (two,) = get(fresh, f"/runs/data?run={KEY}@{one['cursor']}").json()["runs"]
    assert two["status"]["state"] == "done"
    assert (two["whole"], two["lines"]) == (False, {})


def test_a_hundred_thousand_steps_are_a_small_answer(client, store, hostile):
    path = store.root / "work" / KEY / "run" / "metrics.jsonl"
    lines = [f'{{"step": {i}, "loss": {1000 if i == 54321 else 2}}}' for i in range(100_000)]
    path.write_text("\n".join(lines) + "\n")
    answer = get(client, f"/runs/data?run={KEY}&metric=loss&points=500")
    loss = answer.json()["runs"][0]["lines"]["loss"]
    assert len(loss["x"]) <= 1002
    assert loss["num"] == 100_000
    assert loss["y"][loss["x"].index(54321)] == 1000  # no spike is lost
    assert len(answer.content) < 60_000


def test_several_runs_on_one_page_and_no_more_than_there_are_colours(client, store):
    keys = [key_of(store, name) for name in ("base", "other")]
    page = get(client, f"/runs/compare?run={keys[0]}&run={keys[1]}").text
    spec = json.loads(
        re.search(r'data-runs="([^"]*)"', page)[1].replace("&#34;", '"').replace("&amp;", "&")
    )
    assert [run["label"] for run in spec] == ["ladder/base", "ladder/other"]
    differs = page.partition("What differs")[2]
    assert ">lr<" in differs
    assert ">seed<" in differs
    assert ">steps<" not in differs
    nine = "&".join(f"run={keys[0]}" for _ in range(9))
    assert get(client, f"/runs/data?{nine}", 422).json()["detail"].startswith("9 runs were chosen")
    get(client, "/runs/compare", 422)


def test_what_is_not_there_is_404(client):
    for path in (
        "/runs/0123456789abcdef",
        "/runs/..%2f..%2fnames",
        "/runs/data?run=0123456789abcdef",
        "/artefacts/no-such-name",
        "/artefacts/..%2f..%2fetc%2fpasswd",
        "/lineage?of=no-such-name",
        "/reports/ladder",
        "/reports/..%2fnames%2fladder+base",
    ):
        get(client, path, 404)


def test_texts_of_others_are_never_markup(client, store, hostile):
    for path in (
        "/runs",
        "/runs/active",
        f"/runs/{KEY}",
        f"/runs/{KEY}/texts",
        f"/runs/compare?run={KEY}&run={key_of(store, 'base')}",
        "/lineage?of=ladder",
        f"/runs?q={HOSTILE}&stage={HOSTILE}",
        f"/artefacts?q={HOSTILE}&kind={HOSTILE}",
    ):
        answer = get(client, path)
        assert "<img" not in answer.text, path
        assert "{{ 7*7 }}" in answer.text, path
        assert "onerror" in answer.text, path  # it is there, as text


def test_samples_and_lines_are_on_the_page_of_a_run(client, hostile):
    page = get(client, f"/runs/{KEY}/texts").text
    assert "What it said" in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") >= 3


def test_charts_take_every_figure_once():
    names = ["step", "loss", "tokens", "heldout_loss", "eval/utility", "health/x", "tokens_per_s"]
    panels = panels_of(names)
    shown = [series.name for panel in panels for series in panel.series]
    assert sorted(shown) == ["eval/utility", "health/x", "heldout_loss", "loss", "tokens_per_s"]
    assert [panel.title for panel in panels if panel.main] == ["Loss", "Truth", "Speed"]
    growing = panels_of(["loss"], growing=True)
    assert [s.name for s in growing[0].series] == ["loss", "heldout_loss"]


# lineage and artefacts


def test_the_picture_leads_to_every_artefact(client, store):
    page = get(client, "/lineage").text
    for name in ("text", "base", "other"):
        assert f'href="/artefacts/{store.open(name).id[:16]}"' in page
    assert f'href="/artefacts/{store.open("scores").id[:16]}"' not in page  # an evaluation
    assert store.open("scores").id[:16] in get(client, "/lineage?evaluations=true").text
    ids = [store.open(name).id[:16] for name in ("text", "base", "other")]
    wires = set(re.findall(r'data-start="(\w+)" data-end="(\w+)"', page))
    assert wires == {(ids[0], ids[1]), (ids[0], ids[2])}


def test_a_run_at_work_and_a_served_model_are_in_the_picture(store, hostile):
    served = SimpleNamespace(name="assistant", artefact_id=store.open("base").id)
    app = pages_app(store, service=SimpleNamespace(models=lambda: [served]))
    with TestClient(app) as client:
        page = get(client, "/lineage?of=ladder").text
    assert f'href="/runs/{KEY[:16]}"' in page
    assert 'class="box kind-served is-served"' in page
    assert (store.open("base").id[:16], "served assistant") in re.findall(
        r'data-start="(\w+)" data-end="([\w ]+)"', page
    )


def test_an_artefact_shows_what_it_is_and_its_kin(client, store):
    base = store.open("base")
    for path in (f"/artefacts/{base.id[:16]}", "/artefacts/ladder/base", "/artefacts/base"):
        page = get(client, path).text
        assert f'href="/artefacts/{store.open("text").id[:16]}"' in page
        assert f'href="/artefacts/{store.open("scores").id[:16]}"' in page
        assert f'href="/runs/{key_of(store, "base")}"' in page
        for name, entry in base.files.items():
            assert f'<th scope="row">{name}</th>' in page
            assert entry.sha256 in page
        assert ">lr<" in page


def test_verify_hashes_and_names_what_changed(client, store):
    base = store.open("base")
    here = f"/artefacts/{base.id}"
    assert "not hashed since" in get(client, here).text
    done = client.post(f"{here}/verify", follow_redirects=False)
    assert (done.status_code, done.headers["location"]) == (303, f"{here[:27]}#files")
    assert ">Whole</b>" in get(client, here).text
    weights = base.file("weights")
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    assert ">Whole</b>" in get(client, here).text  # as it was when it was hashed
    client.post(f"{here}/verify")
    assert "weights has other bytes" in get(client, here).text
    weights.unlink()
    assert "weights is missing" in get(client, here).text  # seen without hashing


def test_artefacts_are_listed_and_found(client, store):
    page = get(client, "/artefacts").text
    assert page.count('<th scope="row">') == 4
    assert get(client, "/artefacts?kind=corpus").text.count('<th scope="row">') == 1
    assert get(client, f"/artefacts?q={store.open('base').id[:10]}").text.count("<th scope") == 7


def test_an_empty_store_says_how_to_fill_it(tmp_path):
    with TestClient(pages_app(Store(tmp_path / "none"))) as client:
        for path in ("/runs", "/lineage"):
            assert "rung run recipes/quickstart.yaml" in get(client, path).text
        get(client, "/artefacts")
        get(client, "/reports")


# reports and scripts


def test_a_report_is_fenced_off(client, store):
    reports = store.root / "reports"
    reports.mkdir()
    (reports / "ladder.html").write_text("<script>1</script>")
    (store.root / "secret.html").write_text("no")
    (reports / "ladder-base.html").write_text("of one artefact")
    app = pages_app(store)
    shelf = shelf_of(SimpleNamespace(app=app))
    assert report_of(shelf, "../secret") is None  # no route leads there; nor does the name
    assert report_of(shelf, "ladder-base") == reports / "ladder-base.html"
    answer = get(client, "/reports/ladder")
    assert answer.headers["content-security-policy"] == REPORT_CSP
    assert "allow-same-origin" not in REPORT_CSP
    assert REPORT_CSP.startswith("sandbox")
    assert 'href="/reports/ladder"' in get(client, "/reports").text
    get(client, "/reports/..%2fsecret", 404)
    assert get(client, "/runs").headers["content-security-policy"] == CSP


def test_a_report_is_made_on_demand(client, store):
    done = client.post("/reports/ladder", follow_redirects=False)
    # the toy ladder's evaluation is of no kind that a report knows: the store is left as it was
    assert done.status_code in (303, 409), done.text
    assert client.post("/reports/none", follow_redirects=False).status_code == 404


def test_plotly_is_served_once(client):
    first = get(client, "/static/plotly.min.js")
    assert len(first.content) > 1_000_000
    assert "immutable" in first.headers["cache-control"]
    again = client.get("/static/plotly.min.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_pages_have_no_script_or_handler_inside():
    for path in Path("rung/serve/templates").glob("*.html"):
        text = path.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)", text), path
        assert not re.search(r"\son\w+=", text), path
        assert "| safe" not in text, path


def test_the_pages_start_without_torch():
    code = (
        "import sys; sys.path.insert(0, 'tests'); from serve_pages import pages_app\n"
        "from rung.store.store import Store; from fastapi.testclient import TestClient\n"
        "client = TestClient(pages_app(Store(sys.argv[1])))\n"
        "for path in ('/runs', '/lineage', '/artefacts', '/reports'):\n"
        "    assert client.get(path).status_code == 200\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'daft'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, "none"], check=True, timeout=250)
