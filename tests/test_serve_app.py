"""The whole server as `rung serve` without a model runs it: every page behind the one guard."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from test_serve_pages import build

from rung.serve.app import create_app
from rung.serve.guard import CSP
from rung.serve.state import ServerState
from rung.store.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build(tmp_path_factory.mktemp("app"))


@pytest.fixture
def client(store: Store) -> TestClient:
    app = create_app(ServerState(store, expects_models=False))
    return TestClient(app, base_url="http://localhost", follow_redirects=False)


def test_every_page_answers_with_the_policy_of_the_guard(client: TestClient, store: Store) -> None:
    id = store.ids()[0]
    pages = ("/chat", "/runs", "/lineage", "/artefacts", f"/artefacts/{id}", "/reports")
    for path in (*pages, "/static/base.css", "/static/plotly.min.js"):
        answer = client.get(path, headers={"accept": "text/html"})
        assert answer.status_code == 200, path
        assert answer.headers.get_list("content-security-policy") == [CSP], path


def test_a_report_has_its_own_policy_alone(client: TestClient, store: Store) -> None:
    folder = Path(store.root) / "reports"
    folder.mkdir(exist_ok=True)
    (folder / "mine.html").write_text("<!doctype html><title>mine</title>")
    links = [p for p in client.get("/reports").text.split('"') if p.startswith("/reports/mine")]
    policies = [
        policy
        for link in dict.fromkeys(links)
        for policy in client.get(link).headers.get_list("content-security-policy")
    ]
    assert any("sandbox" in policy for policy in policies)
    for link in dict.fromkeys(links):
        assert len(client.get(link).headers.get_list("content-security-policy")) == 1


def test_without_a_model_people_land_on_the_runs_and_programs_are_told(client: TestClient) -> None:
    assert client.get("/").headers["location"] == "/runs"
    answer = client.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]}
    )
    assert answer.status_code == 404
    assert "no model is served" in answer.json()["error"]["message"]
