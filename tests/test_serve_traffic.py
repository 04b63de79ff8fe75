"""The traffic log: nothing without its switch, nothing personal in it, edge cases marked."""

import json
import stat

import pytest
from serve_fake import ANSWER, LINES, serving

from rung.serve.marks import is_refusal
from rung.serve.traffic import Exchange, TrafficLog, edge_cases, read_traffic

CHAT = "/v1/chat/completions"


def chat(text="hello", **more):
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **more}


def log_in(folder, **more):
    return TrafficLog(folder, **{"slow_seconds": 60, "low_reward": -1.0, **more})


def test_without_the_switch_nothing_is_written(tmp_path):
    with serving(tmp_path) as (client, _):
        client.json(CHAT, chat("jane@gmail.com"))
        error = client.error("/v1/flags", {"id": "x", "reason": "wrong"}, status=400)
        assert "--log-traffic" in error["message"]
    assert not list((tmp_path / "store").rglob("*.jsonl"))


def test_rows_are_redacted_and_complete(tmp_path):
    folder = tmp_path / "traffic"
    with serving(tmp_path, traffic=log_in(folder)) as (client, _):
        system = {"role": "system", "content": "I am +1 212 555 0123 4."}
        body = chat("MAIL me at bob@gmail.com", seed=3)
        body["messages"].insert(0, system)
        answer = client.json(CHAT, body)
        list(client.events(CHAT, chat("EURO")))
        client.json("/v1/completions", {"prompt": "call a@gmail.com", "max_tokens": 3})
    text = next(folder.glob("*.jsonl")).read_text()
    assert "@gmail" not in text
    first, second, third = read_traffic(folder)
    assert first["id"] == answer["id"]
    assert first["messages"][1] == {"role": "user", "content": "MAIL me at <EMAIL>"}
    assert first["answers"] == ["Write to <EMAIL> for more."]
    assert first["redacted"]["email"] == 2
    assert first["usage"] == answer["usage"]
    assert (first["model"], first["artefact"]) == ("fake/chat", "a" * 64)
    assert first["sampling"]["seed"] == 3
    assert first["finish"] == ["stop"]
    assert second["answers"] == [LINES["EURO"]]
    assert third["prompt"] == "call <EMAIL>"
    assert third["finish"] == ["length"]
    assert all(row["marks"] == [] for row in (first, second, third))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(next(folder.glob("*.jsonl")).stat().st_mode) == 0o600


def test_edge_cases_are_marked(tmp_path):
    folder = tmp_path / "traffic"

    def score(messages, answers):
        return [-2.5 if "EURO" in messages[-1]["content"] else 0.5 for _ in answers]

    with serving(tmp_path, traffic=log_in(folder, score=score)) as (client, _):
        client.json(CHAT, chat())
        client.json(CHAT, chat("EURO"))
        client.json(CHAT, chat("REFUSE"))
        flagged = client.json(CHAT, chat())["id"]
        noted = client.json(
            "/v1/flags", {"id": flagged, "reason": "wrong", "comment": "ask me: x@gmail.com"}
        )
        assert noted["noted"] is True
        client.error("/v1/flags", {"id": flagged}, status=400)
    rows = list(read_traffic(folder))
    assert [row["marks"] for row in rows] == [[], ["low_reward"], ["refusal"], ["flag"]]
    assert rows[1]["rewards"] == [-2.5]
    assert rows[3]["flags"] == [{"reason": "wrong", "comment": "ask me: <EMAIL>"}]
    assert [row["id"] for row in edge_cases(folder)] == [row["id"] for row in rows[1:]]


def exchange(**more):
    known = {
        "id": "x", "endpoint": "chat", "model": "m", "artefact": "a", "prompt": "p",
        "answers": ["fine"], "finishes": ["stop"], "seconds": 1.0, "first_token_seconds": 0.5,
        "usage": {},
    }  # fmt: skip
    return Exchange(**{**known, **more})


def test_slow_answers_are_marked(tmp_path):
    log = log_in(tmp_path, slow_seconds=2)
    log.record(exchange(seconds=1.9))
    log.record(exchange(id="y", seconds=2.1))
    log.close()
    assert [row["marks"] for row in read_traffic(tmp_path)] == [[], ["slow"]]


def test_an_abandoned_answer_is_logged_as_far_as_it_came(tmp_path):
    from serve_fake import until

    folder = tmp_path / "traffic"
    with serving(tmp_path, traffic=log_in(folder), pace=0.02) as (client, service):
        events = client.events(CHAT, chat("LONG"))
        for _ in range(4):
            next(events)
        events.close()
        until(lambda: service.cancelled)
        until(lambda: list(read_traffic(folder)))
    (row,) = read_traffic(folder)
    assert row["finish"] == [None]
    assert LINES["LONG"].startswith(row["answers"][0])
    assert row["answers"][0]


def test_a_torn_line_is_cut_off_and_the_rest_kept(tmp_path):
    log = log_in(tmp_path)
    log.record(exchange())
    log.close()
    path = next(tmp_path.glob("*.jsonl"))
    with path.open("a") as file:
        file.write('{"id": "torn')
    assert [row["id"] for row in read_traffic(tmp_path)] == ["x"]
    log = log_in(tmp_path)
    log.record(exchange(id="z"))
    log.close()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["x", "z"]


def test_a_text_that_cannot_be_scored_is_logged_all_the_same(tmp_path):
    said: list[str] = []

    def broken(messages, answers):
        raise ValueError("secret")

    log = log_in(tmp_path, score=broken, say=said.append)
    log.record(exchange(prompt=[{"role": "user", "content": "a"}]))
    log.close()
    (row,) = read_traffic(tmp_path)
    assert row["rewards"] is None
    assert said == ["traffic: x was not scored (ValueError)"]


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("I'm sorry, but I can't do that.", True),
        ("Sorry, I cannot say.", True),
        ("I\u2019m unable to help.", True),
        ("As an AI, I have no opinion.", True),
        ("There is no json.foo that I know of.", True),
        ("I don't know.", True),
        (ANSWER, False),
        ("Sorry is a word of regret.", False),
        ("To say that you cannot come, write: I'm sorry, but I can't.", False),
        ("Unfortunately named, it still works.", False),
        ("", False),
    ],
)
def test_refusals_are_told_by_their_beginning(answer, refuses):
    assert is_refusal(answer) is refuses
