"""The stage `labels`: sides, duplicates, conflicts, rare labels, names."""

import json
from collections import Counter

import pytest
from train_tiny import context

from rung.errors import DataError
from rung.tasks import labels
from rung.tasks.labels import Config


def table(path, rows):
    path.write_text("".join(json.dumps({"text": t, "label": l}) + "\n" for t, l in rows))
    return str(path)


def build(tmp_path, *, out="out", **config):
    where = context(tmp_path / out)
    notes = labels.run(where, Config(**config))
    sides = {
        side: [json.loads(line) for line in (where.out / f"{side}.jsonl").read_text().splitlines()]
        for side in ("train", "heldout")
    }
    meaning = json.loads((where.out / "labels.json").read_text())
    return sides, meaning, notes, where.progress.lines


def many(num, label, start=0):
    return [(f"text {label} {index}", label) for index in range(start, start + num)]


def test_a_share_is_held_out_and_a_growing_file_moves_no_text(tmp_path):
    small = table(tmp_path / "a.jsonl", many(200, "a") + many(200, "b"))
    large = table(tmp_path / "b.jsonl", many(50, "b", 900) + many(200, "b") + many(300, "a"))
    first, meaning, notes, _ = build(tmp_path, files=[small])
    second, *_ = build(tmp_path, out="second", files=[large])
    assert meaning == {"labels": ["a", "b"], "multi_label": False}
    assert notes["figures"]["num_train"] + notes["figures"]["num_heldout"] == 400
    assert 50 < len(first["heldout"]) < 110  # 80 expected, binomial
    sides = [{row["id"]: side for side in s for row in s[side]} for s in (first, second)]
    assert set(sides[0]) < set(sides[1])
    assert all(sides[1][id] == side for id, side in sides[0].items())


def test_duplicates_and_conflicts_are_counted(tmp_path):
    rows = [*many(30, "a"), *many(30, "b"), ("Same  text", "a"), ("same text ", "a")]
    rows += [("torn", "a"), ("torn", "b"), ("TORN", "b"), ("  ", "a"), ("unsaid", None)]
    sides, _, notes, said = build(tmp_path, files=[table(tmp_path / "a.jsonl", rows)])
    dropped = {k: v["count"] for k, v in notes["counts"]["dropped"].items()}
    assert dropped == {"duplicate": 1, "conflicting_labels": 3, "empty_text": 1, "no_label": 1}
    texts = [row["text"] for rows in sides.values() for row in rows]
    assert len(texts) == len(set(texts)) == 61
    assert "Same  text" in texts
    assert "conflicting_labels" in said[0]


def test_held_out_files_stand_as_they_are_and_leave_the_training_rows(tmp_path):
    train = table(tmp_path / "a.jsonl", many(30, "a") + many(30, "b") + [("both", "a")])
    test = table(tmp_path / "b.jsonl", [*many(4, "a", 500), ("Both", "b")])
    sides, _, notes, _ = build(tmp_path, files=[train], heldout_files=[test])
    assert len(sides["train"]) == 60
    assert [row["text"] for row in sides["heldout"]][-1] == "Both"
    assert notes["counts"]["dropped"]["in_heldout_too"]["count"] == 1


def test_labels_get_names_and_numbers_are_in_order(tmp_path):
    path = table(tmp_path / "a.jsonl", many(30, 10) + many(30, 2) + many(30, 1))
    _, meaning, *_ = build(tmp_path, files=[path])
    assert meaning["labels"] == ["1", "2", "10"]
    _, meaning, *_ = build(tmp_path, out="b", files=[path], names={1: "bad", 2: "bad", 10: "good"})
    assert meaning["labels"] == ["bad", "good"]
    with pytest.raises(DataError, match=r"names has 3, which no row has.*found: 1, 10, 2"):
        build(tmp_path, out="c", files=[path], names={3: "x"})


def test_several_labels_a_text(tmp_path):
    known = {"two": 2, "three": 3}
    lines = [
        {"text": f"t {i}", "labels": [label for label, by in known.items() if i % by == 0]}
        for i in range(120)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sides, meaning, *_ = build(tmp_path, files=[str(path)])
    assert meaning == {"labels": ["three", "two"], "multi_label": True}
    rows = sides["train"] + sides["heldout"]
    assert Counter(len(row["labels"]) for row in rows) == {0: 40, 1: 60, 2: 20}
    with pytest.raises(DataError, match=r"2 labels .* where multi_label is false"):
        build(tmp_path, out="b", files=[str(path)], multi_label=False)


def test_rare_labels_are_refused_or_left_out(tmp_path):
    path = table(tmp_path / "a.jsonl", many(30, "a") + many(30, "b") + many(3, "odd"))
    with pytest.raises(DataError, match=r"1 labels have fewer than 5 .*odd \([0-3]\).*rare: drop"):
        build(tmp_path, files=[path])
    sides, meaning, notes, said = build(tmp_path, out="b", files=[path], rare="drop")
    assert meaning["labels"] == ["a", "b"]
    assert notes["counts"]["dropped"]["rare_label"]["count"] == 3
    assert all(row["labels"] != ["odd"] for rows in sides.values() for row in rows)
    _, _, _, said = build(tmp_path, out="c", files=[path], min_examples=1, seed=1)
    assert any("few texts: odd" in line for line in said)


def test_a_folder_per_label_with_train_and_test(tmp_path):
    for side, num in (("train", 6), ("test", 2)):
        for label in ("pos", "neg"):
            for index in range(num):
                path = tmp_path / "set" / side / label / f"{index}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{side} {label} {index}")
    sides, meaning, *_ = build(tmp_path, folder=str(tmp_path / "set"))
    assert (len(sides["train"]), len(sides["heldout"])) == (12, 4)
    assert meaning["labels"] == ["neg", "pos"]
    found = labels.fingerprint(Config(folder=str(tmp_path / "set")))
    (tmp_path / "set/train/pos/0.txt").write_text("changed")
    assert labels.fingerprint(Config(folder=str(tmp_path / "set"))) != found


def test_a_file_per_label(tmp_path):
    for label in ("pos", "neg"):
        (tmp_path / f"films.{label}").write_text("".join(f"{label} {i}\n" for i in range(40)))
    lines = {label: str(tmp_path / f"films.{label}") for label in ("pos", "neg")}
    sides, *_ = build(tmp_path, lines=lines)
    assert Counter(r["labels"][0] for rows in sides.values() for r in rows) == {
        "pos": 40,
        "neg": 40,
    }


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "no data: name files"),
        ({"files": ["missing.csv"]}, "missing.csv: no such file"),
        ({"files": ["a.txt"]}, "cannot read labels from it.*lines.positive"),
        ({"files": ["."]}, "is a folder; a folder per label goes under `folder`"),
        ({"folder": "."}, "0 sub-folders with text files"),
        ({"folder": "nowhere"}, "no such folder"),
        ({"files": ["one.jsonl"]}, "1 labels with 5 texts or more"),
        ({"files": ["one.jsonl"], "folder": "x"}, "use one of them"),
        ({"files": ["empty.jsonl"]}, "no row to train on"),
        ({"files": ["two.jsonl"], "heldout_fraction": 1e-9}, "fell on the held-out side"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path, monkeypatch, config, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty.jsonl").write_text("")
    table(tmp_path / "one.jsonl", many(40, "a"))
    table(tmp_path / "two.jsonl", many(40, "a") + many(40, "b"))
    with pytest.raises(DataError, match=said):
        build(tmp_path, **config)
