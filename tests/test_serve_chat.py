"""The chat page's endpoints: rendering, blind comparisons, feedback, who may ask."""

import json
import re
from types import SimpleNamespace

import pytest
from chat_server import MODELS, Fake, build
from starlette.testclient import TestClient

from rung.feedback.events import as_rankings
from rung.feedback.inbox import Inbox, inbox_path
from rung.feedback.schema import FLAGS
from rung.serve.arena import MAX_COMPARISONS, Arena, ComparisonError
from rung.serve.chat import FLAG_NAMES, MAX_TEXT
from rung.serve.html import STATIC, TEMPLATES

ASK = [{"role": "user", "content": "Hi"}]
THUMB = {
    "key": "k1",
    "kind": "thumb",
    "subject": "a1",
    "prompt": ASK,
    "answers": [{"text": "Hello!", "model": "polite", "artefact": "9b1f77aa"}],
    "value": "up",
}


def serve(tmp_path, **how):
    application, fake = build(tmp_path, **how)
    return TestClient(application), fake


def compare(client, models=("polite", "base")):
    reply = client.post("/chat/arena", json={"models": list(models)})
    assert reply.status_code == 200, reply.text
    return reply.json()["id"]


def vote(comparison, value="left", **other):
    answers = [{"text": "one"}, {"text": "two"}]
    event = {"key": f"v-{comparison}", "kind": "vote", "subject": comparison, "value": value}
    return event | {"prompt": ASK, "answers": answers} | other


def test_the_page(tmp_path):
    client, _ = serve(tmp_path)
    page = client.get("/chat")
    assert page.headers["content-type"].startswith("text/html")
    assert 'aria-current="page">Chat<' in page.text
    assert "may be used for training" in page.text
    said = [">polite<", ">base<", *MODELS.values()]
    assert not any(name in page.text for name in said)  # the list comes with the key
    for address in re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text):
        assert client.get(address).status_code == 200, address
    assert set(FLAG_NAMES) == set(FLAGS)


def test_pages_hold_no_inline_script_and_load_nothing_from_elsewhere():
    for path in [*TEMPLATES.iterdir(), *STATIC.iterdir()]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".html":
            assert not re.search(r"<script(?![^>]*\bsrc=)", text), path
            assert not re.search(r"\son\w+=", text), path
        addresses = set(re.findall(r"https?://[^\s\"')]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path
        assert not re.search(
            r"\beval\(|new Function|insertAdjacentHTML|outerHTML|document\.write", text
        )
    # Markdown that was cleaned on the server, and parts of pages that its templates escaped.
    written = {p.name: len(re.findall(r"innerHTML = ", p.read_text())) for p in STATIC.glob("*.js")}
    assert {n: c for n, c in written.items() if c} == {"prose.js": 1, "active.js": 1, "runs.js": 1}


def test_models_that_chat(tmp_path):
    client, _ = serve(tmp_path)
    said = client.get("/chat/models").json()
    assert {m["name"]: m["artefact"] for m in said["models"]} == MODELS  # no reward model
    assert said["collect_feedback"] is True


def test_rendering(tmp_path):
    client, _ = serve(tmp_path)
    texts = ["**a**\n\nb", "<script>alert(1)</script>", ""]
    first, second, third = client.post("/chat/render", json={"texts": texts}).json()["rendered"]
    assert first == [
        {"html": "<p><strong>a</strong></p>\n", "line": 0},
        {"html": "<p>b</p>\n", "line": 2},
    ]
    assert "<script" not in second[0]["html"]
    assert third == []
    assert client.post("/chat/render", json={"texts": ["a" * (MAX_TEXT + 1)]}).status_code == 413
    assert client.post("/chat/render", json={"texts": "a"}).status_code == 400
    assert client.post("/chat/render", json={"texts": ["a"] * 201}).status_code == 400
    assert client.post("/chat/render", json={"texts": [1]}).status_code == 413


POSTS = ["/chat/render", "/chat/arena", "/chat/arena/x/names", "/chat/feedback"]


@pytest.mark.parametrize("path", [*POSTS, "/chat/arena/x/left/completions"])
def test_other_pages_are_refused(tmp_path, path):
    client, fake = serve(tmp_path)
    body = json.dumps(THUMB)
    as_json = {"content-type": "application/json"}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert client.post(path, content=body, headers={"content-type": kind}).status_code == 415
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://testserver.evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        assert client.post(path, content=body, headers=as_json | headers).status_code == 403
    assert not inbox_path(tmp_path).exists()
    assert fake.asked == []
    fine = {"origin": "http://testserver", "sec-fetch-site": "same-origin"}
    assert client.post(path, content=body, headers=as_json | fine).status_code not in (403, 415)


def test_feedback_is_stored_once_with_the_servers_time(tmp_path):
    client, _ = serve(tmp_path)
    first = client.post("/chat/feedback", json=THUMB).json()
    again = client.post("/chat/feedback", json=THUMB).json()
    assert again == first
    (event,) = Inbox(inbox_path(tmp_path)).events()
    assert event.id == first["id"]
    assert event.time == first["time"]
    assert event.answers[0].artefact == "9b1f77aa"
    (ranking,) = as_rankings([event])
    assert ranking.labels == [True]


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"value": "maybe"}, 400, "a thumb is one of"),
        ({"id": "mine"}, 400, "id is set by the server"),
        ({"prompt": []}, 400, "messages are a non-empty list"),
        ({"comment": "x" * 10_001}, 400, "at most 10,000 characters"),
        ({"answers": [{"text": "a" * 4_000_001}]}, 413, "at most 4,000,000 bytes"),
    ],
)
def test_wrong_feedback_is_refused_and_says_why(tmp_path, change, status, said):
    client, _ = serve(tmp_path)
    reply = client.post("/chat/feedback", json=THUMB | change)
    assert reply.status_code == status
    assert said in reply.json()["detail"]
    assert list(Inbox(inbox_path(tmp_path)).events()) == []


def test_a_flagged_answer_is_marked_in_the_traffic_log(tmp_path):
    flags = []
    traffic = SimpleNamespace(flag=lambda id, why, *, comment: flags.append((id, why, comment)))
    client, _ = serve(tmp_path, traffic=traffic)
    answers = [{"text": "Hello!", "completion": "chatcmpl-1"}]
    flag = {"kind": "flag", "value": ["misleading", "biased"], "comment": "no", "answers": answers}
    for event in (flag, flag, {"answers": answers, "key": "k2"}, flag | {"value": [], "key": "k3"}):
        assert client.post("/chat/feedback", json=THUMB | event).status_code == 200
    assert flags == [("chatcmpl-1", "biased, misleading", "no")]


def test_one_switch_turns_collecting_off(tmp_path):
    client, _ = serve(tmp_path, collect=False)
    page = client.get("/chat").text
    assert "training" not in page
    assert "flagging" not in page
    assert client.get("/chat/models").json()["collect_feedback"] is False
    assert client.post("/chat/feedback", json=THUMB).status_code == 403
    assert client.post("/chat/feedback", json=vote(compare(client))).status_code == 403
    assert not inbox_path(tmp_path).exists()


def answer(client, comparison, side, **body):
    path = f"/chat/arena/{comparison}/{side}/completions"
    return client.post(path, json={"messages": ASK, "stream": True} | body)


def test_a_comparison_hides_the_names_until_the_vote(tmp_path):
    fake = Fake(pieces={"polite": ["I am A"], "base": ["\u00e4 B", "\u4e2d"]})
    client, _ = serve(tmp_path, fake=fake)
    comparison = compare(client)
    texts = {}
    for side in ("left", "right"):
        reply = answer(client, comparison, side)
        assert reply.headers["content-type"].startswith("text/event-stream")
        for name in MODELS:
            assert f'"{name}"' not in reply.text
        data = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
        assert data[-1] == "[DONE]"
        chunks = [json.loads(d) for d in data[:-1]]
        assert {chunk["model"] for chunk in chunks} == {side}
        texts[side] = "".join(
            c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]
        )
    asked = [body["model"] for body in fake.asked]
    assert sorted(asked) == sorted(MODELS)
    said = {"polite": "I am A", "base": "\u00e4 B\u4e2d"}
    assert texts == {"left": said[asked[0]], "right": said[asked[1]]}

    reply = client.post("/chat/feedback", json=vote(comparison, "right", comment="shorter"))
    names = reply.json()["names"]
    assert [names[side]["model"] for side in ("left", "right")] == asked
    (event,) = Inbox(inbox_path(tmp_path)).events()
    assert [a.model for a in event.answers] == asked  # in the order shown
    assert [a.artefact for a in event.answers] == [MODELS[name] for name in asked]
    assert event.blind is True
    (ranking,) = as_rankings([event])
    assert ranking.ranks == [2, 1]


def test_a_vote_is_repeated_and_taken_back_but_not_changed(tmp_path):
    client, _ = serve(tmp_path)
    comparison = compare(client)
    first = client.post("/chat/feedback", json=vote(comparison)).json()
    assert client.post("/chat/feedback", json=vote(comparison)).json() == first
    other = client.post("/chat/feedback", json=vote(comparison, "right", key="v2"))
    assert other.status_code == 409
    assert "was voted on" in other.json()["detail"]
    assert client.post("/chat/feedback", json=vote(comparison, "none", key="v3")).status_code == 200
    assert as_rankings(Inbox(inbox_path(tmp_path)).events()) == []
    # also when the server has forgotten the comparison, a repeated vote gets its answer
    anew, _ = serve(tmp_path)
    assert anew.post("/chat/feedback", json=vote(comparison)).json() == first


def test_no_vote_after_the_names(tmp_path):
    client, _ = serve(tmp_path)
    comparison = compare(client)
    names = client.post(f"/chat/arena/{comparison}/names", json={}).json()["names"]
    assert {names[side]["model"] for side in names} == set(MODELS)
    assert client.post("/chat/feedback", json=vote(comparison)).status_code == 409
    assert client.post("/chat/feedback", json=vote("unknown")).status_code == 409
    assert client.post("/chat/arena/unknown/names", json={}).status_code == 410
    assert answer(client, "unknown", "left").status_code == 410
    assert answer(client, comparison, "middle").status_code == 404


def test_errors_of_the_api_come_through_without_the_name(tmp_path):
    fake = Fake(refusal=(429, "model {model} is busy"))
    client, _ = serve(tmp_path, fake=fake)
    reply = answer(client, compare(client), "left")
    assert reply.status_code == 429
    assert reply.json()["error"]["message"] == "model left is busy"


def test_sides_are_drawn_by_chance(tmp_path):
    arena = Arena()
    models = list(MODELS.items())
    left = [arena.start(models, ["polite", "base"]).models[0] for _ in range(400)]
    # binomial(400, 1/2): outside of 140..260 with chance 1e-9
    assert 140 <= left.count("polite") <= 260
    assert len(set(arena._known)) == 400
    three = [*models, ("third", "3")]
    drawn = {frozenset(arena.start(three, []).models) for _ in range(200)}
    assert len(drawn) == 3  # every pair of different models
    same = arena.start(models, ["base", "base"])
    assert same.models == ("base", "base")
    for wrong in (["base"], ["base", "judge"], ["a", "b", "c"]):
        with pytest.raises(ComparisonError, match="takes two of: polite, base"):
            arena.start(models, wrong)
    with pytest.raises(ComparisonError):
        arena.start([("one", "1")], [])


def test_old_comparisons_are_forgotten():
    arena = Arena()
    models = list(MODELS.items())
    first = arena.start(models, [])
    for _ in range(MAX_COMPARISONS):
        last = arena.start(models, [])
    assert arena.get(last.id) is last
    with pytest.raises(ComparisonError, match="not known"):
        arena.get(first.id)


def test_two_answers_of_one_model_have_two_seeds(tmp_path):
    client, fake = serve(tmp_path)
    comparison = compare(client, ("base", "base"))
    for side in ("left", "right"):
        answer(client, comparison, side, seed=7)
    assert [body["seed"] for body in fake.asked] == [7, 8]
    other = compare(client)
    for side in ("left", "right"):
        answer(client, other, side, seed=7)
    assert [body["seed"] for body in fake.asked[2:]] == [7, 7]


def test_a_model_cannot_be_smuggled_in(tmp_path):
    client, fake = serve(tmp_path)
    answer(client, compare(client, ("base", "base")), "left", model="polite")
    assert fake.asked[0]["model"] == "base"
