"""The inbox of the chat page: stored once, on disk when acknowledged, read as rankings."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
from stage_corpus import stage_context

from rung.errors import DataError
from rung.feedback import files
from rung.feedback.events import as_rankings, parse_event
from rung.feedback.inbox import Inbox, inbox_path
from rung.feedback.labels import label_answers
from rung.feedback.rankings import load_rankings, pairs

ASK = [{"role": "user", "content": "Hi"}]


def event(kind="thumb", value="up", *, key="k1", subject="a1", answers=("Hello!",), **other):
    row = {"id": f"chat/{key}", "key": key, "time": "2026-10-05T09:30:00+00:00", "kind": kind}
    row |= {"subject": subject, "prompt": ASK, "value": value}
    row |= {"answers": [{"text": text, "model": "chat", "artefact": "9b1f"} for text in answers]}
    return parse_event(row | other, where="test")


def vote(verdict, **other):
    return event("vote", verdict, answers=("Hello!", "Go away."), subject="c1", **other)


def test_a_retry_is_stored_once_and_gets_the_first_event_back(tmp_path):
    inbox = Inbox(inbox_path(tmp_path))
    first = inbox.add(event(key="k1"))
    again = inbox.add(event("thumb", "down", key="k1"))
    assert again == first
    assert [e.value for e in inbox.events()] == ["up"]
    # ... also by a server that was started anew
    assert Inbox(inbox.path).add(event("thumb", "down", key="k1")) == first
    assert Inbox(inbox.path).find("k1") == first
    assert inbox.find("k2") is None
    assert inbox.path.stat().st_mode & 0o777 == 0o600


def test_the_line_is_synced_before_add_returns(tmp_path, monkeypatch):
    inbox = Inbox(inbox_path(tmp_path))
    seen = []
    sync = os.fsync

    def fsync(handle):
        sync(handle)
        if os.path.samestat(os.fstat(handle), os.stat(inbox.path)):
            seen.append(inbox.path.read_bytes())

    monkeypatch.setattr(os, "fsync", fsync)
    inbox.add(event())
    assert seen == [inbox.path.read_bytes()]
    assert seen[0].endswith(b"\n")


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    inbox = Inbox(inbox_path(tmp_path))
    inbox.add(event(key="k1"))
    whole = inbox.path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        inbox.add(event(key="k2"))
    monkeypatch.undo()
    assert inbox.path.read_bytes() == whole
    inbox.add(event(key="k2"))
    assert [e.key for e in inbox.events()] == ["k1", "k2"]


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_line_cut_by_a_kill_is_dropped_and_the_next_is_whole(tmp_path, cut):
    inbox = Inbox(inbox_path(tmp_path))
    inbox.add(event(key="k1"))
    whole = inbox.path.read_bytes()
    with inbox.path.open("ab") as file:
        file.write(whole.replace(b"k1", b"k2")[:cut])
    assert [e.key for e in inbox.events()] == ["k1"]
    Inbox(inbox.path).add(event(key="k2"))
    assert [e.key for e in inbox.events()] == ["k1", "k2"]


def test_an_inbox_that_was_put_away_starts_anew(tmp_path):
    inbox = Inbox(inbox_path(tmp_path))
    inbox.add(event(key="k1"))
    inbox.path.rename(tmp_path / "old.jsonl")
    inbox.add(event(key="k2"))
    assert [e.key for e in inbox.events()] == ["k2"]
    inbox.path.write_bytes(b"")
    inbox.add(event(key="k3"))
    assert [e.key for e in inbox.events()] == ["k3"]


def _add_many(path, name):
    inbox = Inbox(path)
    for i in range(20):
        inbox.add(event(key=f"{name}-{i}"))
        inbox.add(event(key=f"shared-{i}"))


def test_threads_and_processes_lose_and_double_nothing(tmp_path):
    path = inbox_path(tmp_path)
    other = multiprocessing.get_context("spawn").Process(target=_add_many, args=(path, "p"))
    other.start()
    inbox = Inbox(path)
    threads = [threading.Thread(target=_add_many, args=(path, f"t{i}")) for i in range(2)]
    for thread in threads:
        thread.start()
    for i in range(20):
        inbox.add(event(key=f"own-{i}"))
    for thread in threads:
        thread.join()
    other.join(60)
    keys = [e.key for e in inbox.events()]
    assert len(keys) == len(set(keys)) == 5 * 20  # own, p, t0, t1 and shared


def test_a_damaged_line_is_named(tmp_path):
    inbox = Inbox(inbox_path(tmp_path))
    inbox.add(event())
    with inbox.path.open("ab") as file:
        file.write(b"{broken\n")
    with pytest.raises(DataError, match=r"inbox\.jsonl:2: not JSON .* remove that line"):
        list(inbox.events())


def test_votes_become_rankings_in_the_order_shown():
    for verdict, ranks, labels in (
        ("left", [1, 2], None),
        ("right", [2, 1], None),
        ("tie", [1, 1], None),
        ("both_bad", [1, 1], [False, False]),
    ):
        (ranking,) = as_rankings([vote(verdict, blind=True)])
        assert (ranking.ranks, ranking.labels) == (ranks, labels)
        assert ranking.answers == ["Hello!", "Go away."]
        assert ranking.source["blind"] is True
        assert ranking.source["artefacts"] == ["9b1f", "9b1f"]
    assert pairs(as_rankings([vote("right")])[0]) == [(1, 0)]
    assert as_rankings([vote("left"), vote("none", key="k2")]) == []


def test_the_last_word_counts_and_thumb_and_flags_are_one_judgement():
    said = [
        event("thumb", "up"),
        event("flag", ["harmful", "misleading"], key="k2", comment="made up"),
        event("thumb", "down", key="k3"),
        event("comment", "no such function", key="k4"),
        event("thumb", "up", key="k5", annotator="kim"),
        event("thumb", "none", key="k6", annotator="kim"),
    ]
    (ranking,) = as_rankings(said)
    assert ranking.labels == [False]
    assert ranking.flags == [["harmful", "misleading"]]
    assert ranking.source["comment"] == "made up\nno such function"
    assert as_rankings(said[3:4]) == []  # a comment alone orders and labels nothing
    (flagged,) = label_answers(as_rankings(said[1:2]), rule="best_worst")
    assert flagged.labels == [False]


def test_an_edited_answer_wins_over_the_answer():
    (ranking,) = as_rankings([event("edit", "Hello, how can I help?")])
    assert ranking.answers == ["Hello, how can I help?", "Hello!"]
    assert pairs(ranking) == [(0, 1)]
    assert ranking.source["models"] == ["", "chat"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "star"}, "kind 'star' is not one of vote, thumb, flag, comment, edit"),
        ({"value": "maybe"}, "a thumb is one of up, down, none, found 'maybe'"),
        ({"kind": "flag", "value": ["rude"]}, "unknown flag 'rude'"),
        ({"kind": "flag", "value": [["harmful"]]}, "unknown flag"),
        ({"kind": "vote", "value": "left"}, "a vote is about 2 answers, found 1"),
        ({"kind": "edit", "value": "Hello!"}, "equals the answer"),
        ({"kind": "edit", "value": " "}, "the value of a edit is text"),
        ({"key": ""}, "key is empty"),
        ({"key": "x" * 81}, "key is a text of at most 80"),
        ({"prompt": []}, "non-empty list"),
        ({"prompt": [{"role": "assistant", "content": "Hi"}]}, "expected 'user'"),
        ({"answers": ["Hello!"]}, "an answer is an object with its text"),
        ({"answers": None}, "answers is a list"),
        ({"kind": "comment", "value": "\ud800"}, "half a character"),
        ({"sampling": [1]}, "sampling is an object"),
        ({"color": "red"}, "unknown key 'color'"),
    ],
)
def test_wrong_events_are_refused(change, said):
    with pytest.raises(DataError, match=said):
        parse_event(event().to_json() | change, where="test")


def test_the_feedback_stage_reads_the_inbox(tmp_path):
    inbox = Inbox(inbox_path(tmp_path))
    inbox.add(vote("right", key="k1"))
    inbox.add(event("thumb", "up", key="k2"))
    inbox.add(event("thumb", "down", key="k3"))
    inbox.add(event("edit", "Hello, you.", key="k4"))
    inbox.add(event("comment", "nice", key="k5"))
    context = stage_context(tmp_path)
    files.run(context, files.Config(files=(str(inbox.path),)))
    first, edit, thumb = load_rankings(context.out)
    assert [first.ranks, edit.ranks, thumb.ranks] == [[2, 1], [1, 2], [1]]
    assert thumb.labels == [False]
    assert thumb.source["comment"] == "nice"
    assert first.source["models"] == ["chat", "chat"]
    assert {r.annotator for r in (first, edit, thumb)} == {"chat"}
    report = json.loads((context.out / "report.json").read_text())
    assert report["shapes"] == {"chat event": 5}
    assert report["unused_keys"] == {}
    assert report["pairs"] == 2


def test_the_inbox_needs_no_torch():
    code = "import sys, rung.feedback.inbox; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
