"""Preference files: every usual shape to one row, what states no preference is counted."""

import json
from pathlib import Path

import pytest
from stage_corpus import stage_context

from rung.errors import DataError
from rung.feedback import files
from rung.feedback.rankings import load_rankings, pairs, ties
from rung.feedback.shapes import SHAPES, dense

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ASK = [{"role": "user", "content": "Hi"}]
GOOD, BAD = "Hello!", "Go away."


def said(text):
    return [{"role": "assistant", "content": text}]


PAIRS = {
    "explicit text": {"prompt": "Hi", "chosen": GOOD, "rejected": BAD},
    "explicit messages": {"prompt": ASK, "chosen": said(GOOD), "rejected": said(BAD)},
    "implicit messages": {"chosen": ASK + said(GOOD), "rejected": ASK + said(BAD)},
    "implicit text": {
        "chosen": f"\n\nHuman: Hi\n\nAssistant: {GOOD}",
        "rejected": f"\n\nHuman: Hi\n\nAssistant: {BAD}",
    },
    "alpaca": {"instruction": "Hi", "input": "", "chosen": GOOD, "rejected": BAD},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": GOOD},
        "rejected": {"from": "gpt", "value": BAD},
    },
    "openai": {
        "input": {"messages": ASK},
        "preferred_output": said(GOOD),
        "non_preferred_output": said(BAD),
    },
    "ranking": {"prompt": "Hi", "answers": [GOOD, BAD], "ranks": [1, 2]},
    "ratings": {"prompt": "Hi", "answers": [GOOD, BAD], "ratings": [4.5, 1]},
}


def run(folder, *rows, **config):
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return run_files(folder, path, **config)


def run_files(folder, *paths, **config):
    context = stage_context(folder)
    files.run(context, files.Config(files=tuple(str(path) for path in paths), **config))
    return json.loads((context.out / "report.json").read_text()), load_rankings(context.out)


@pytest.mark.parametrize("shape", PAIRS)
def test_every_shape_gives_the_same_ranking(tmp_path, shape):
    _, (record,) = run(tmp_path, PAIRS[shape], annotator="ann")
    assert record.prompt == ASK
    assert record.answers == [GOOD, BAD]
    assert pairs(record) == [(0, 1)]
    assert (record.kind, record.annotator) == ("human", "ann")


def test_the_worked_examples_in_messages_work(tmp_path):
    rows = [json.loads(shape.example) for shape in SHAPES if "..." not in shape.example]
    assert len(rows) >= 6
    report, _ = run(tmp_path, *rows)
    assert report["dropped"].get("duplicate", 0) + report["rankings"] == len(rows)


LABELLED = {
    "prompt and completion": {"prompt": "Hi", "completion": GOOD, "label": True},
    "messages both": {"prompt": ASK, "completion": said(GOOD), "label": True},
    "a number": {"prompt": "Hi", "completion": GOOD, "label": 1},
    "conversation": {"completion": ASK + said(GOOD), "label": True},
    "messages": {"messages": ASK + said(GOOD), "label": True},
    "kto_tag": {"messages": ASK + said(GOOD), "kto_tag": True},
    "kto_tag sharegpt": {
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": GOOD}],
        "kto_tag": True,
    },
    "kto_tag alpaca": {"instruction": "Hi", "input": "", "output": GOOD, "kto_tag": True},
    "own": {"prompt": "Hi", "answers": [GOOD], "ranks": [1], "labels": [True]},
    "own, no ranks": {"prompt": "Hi", "answers": [GOOD], "labels": [True]},
}


@pytest.mark.parametrize("shape", LABELLED)
def test_a_single_answer_with_a_label(tmp_path, shape):
    report, (record,) = run(tmp_path, LABELLED[shape], annotator="ann")
    assert (record.prompt, record.answers, record.labels) == (ASK, [GOOD], [True])
    assert (record.ranks, pairs(record), record.annotator) == ([1], [], "ann")
    assert (report["pairs"], report["labels"]) == (0, {"desirable": 1})


def test_opposite_labels_of_one_answer_are_two_judgements(tmp_path):
    row = {"prompt": "Hi", "completion": GOOD, "label": True}
    report, records = run(tmp_path, row, row, {**row, "label": False})
    assert [record.labels for record in records] == [[True], [False]]
    assert report["dropped"] == {"duplicate": 1}


def test_labels_of_several_answers_rank_them(tmp_path):
    row = {"prompt": "Hi", "answers": ["a", "b", "c"], "labels": [False, None, True]}
    _, (record,) = run(tmp_path, row)
    assert record.ranks == [3, 2, 1]
    assert record.labels == [False, None, True]


def test_margins_and_weights_of_pairs_are_kept(tmp_path):
    row = {"prompt": "Hi", "chosen": GOOD, "rejected": BAD}
    _, records = run(tmp_path, {**row, "margin": 2, "weight": 0.5}, {**row, "prompt": "Ho"})
    assert [(r.margin, r.weight) for r in records] == [(2.0, 0.5), (None, 1.0)]
    assert "margin" not in records[1].to_json()  # bytes of other rows stay what they were


def test_rankings_keep_ties_flags_and_annotators(tmp_path):
    row = {"prompt": "Hi", "answers": ["a", "b", "c"], "ranks": [10, 30, 10]}
    report, records = run(
        tmp_path,
        {**row, "annotator": "ann", "flags": [[], ["harmful"], []]},
        {**row, "annotator": "bob"},
        {**row, "annotator": "bob"},
        {"prompt": "Hi", "answers": ["a", "b", "c"], "ratings": [1, 5, 1]},
    )
    assert [record.annotator for record in records] == ["ann", "bob", "files"]
    assert [record.ranks for record in records] == [[1, 2, 1], [1, 2, 1], [2, 1, 2]]
    assert ties(records[0]) == [(0, 2)]
    assert records[2].ratings == [1, 5, 1]
    assert report["flags"] == {"harmful": 1}
    assert report["dropped"] == {"duplicate": 1}


def test_what_states_no_preference_is_counted(tmp_path):
    report, records = run(
        tmp_path,
        PAIRS["explicit text"],
        {"prompt": "Hi", "chosen": "Same", "rejected": "Same"},
        {"prompt": "Hi", "chosen": "Yes", "rejected": " "},
        {"prompt": " ", "chosen": "Yes", "rejected": "No"},
        {"chosen": ASK + said("a") + ASK + said("b"), "rejected": ASK + said("c")},
        {"chosen": ASK, "rejected": ASK},
    )
    assert len(records) == 1
    assert report["dropped"] == {
        "empty_message": 1,
        "empty_answer": 1,
        "equal_answers": 1,
        "no_answer_at_the_end": 1,
        "part_before_last_message": 1,
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "Yes", "rejected": "No"}, 'without "Human:" and "Assistant:" turns'),
        (
            {"prompt": "Hi", "good": "a", "bad": "b"},
            r"keys found: bad, good, prompt\. Nearest: pair \(it lacks chosen, rejected\), for",
        ),
        ({"prompt": "Hi", "texts": ["a"], "scores": [1]}, r"Nearest: ranking \(it lacks answers"),
        ({"prompt": "Hi", "answers": ["a", "b"]}, r"Nearest: ranking \(it lacks ranks\)"),
        ({"prompt": "Hi", "chosen": ASK + said("a"), "rejected": "b"}, "leave `prompt` out"),
        ({"prompt": said("Hi"), "chosen": "a", "rejected": "b"}, "expected 'user'"),
        ({"prompt": ASK + said("Hi"), "chosen": "a", "rejected": "b"}, "must be a user's"),
        ({"prompt": "Hi", "answers": ["a", "b"], "ratings": ["x", 1]}, "a list of numbers"),
        ({"prompt": "Hi", "answers": ["a", "b"], "ranks": [1]}, "2 answers need 2 ranks, found 1"),
        ({"prompt": "Hi", "answers": ["a"], "ranks": [1]}, "or a label, for example"),
        ({"prompt": "Hi", "completion": "a", "label": "good"}, "label is true .* found 'good'"),
        ({"messages": ASK + said("a"), "kto_tag": None}, "kto_tag is true .* found None"),
        ({"prompt": "Hi", "answers": ["a"], "labels": ["up"]}, "a label is true, false or null"),
        ({**PAIRS["explicit text"], "margin": -1}, "margin -1 must be a number >= 0"),
        ({**PAIRS["explicit text"], "weight": 0}, "weight 0 must be a number > 0"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=rf"in\.jsonl:2: .*{message}"):
        run(tmp_path, PAIRS["explicit text"], row)


def test_a_margin_is_kept(tmp_path):
    _, records = run(tmp_path, {**PAIRS["explicit text"], "margin": 2}, PAIRS["openai"])
    assert [record.margin for record in records] == [2.0]  # the second is the same
    for wrong in (-1, "much", True, float("nan")):
        with pytest.raises(DataError, match=r"in\.jsonl:1: margin .* must be a number >= 0"):
            run(tmp_path, {**PAIRS["explicit text"], "margin": wrong})


def test_system_tools_and_history_are_part_of_the_prompt(tmp_path):
    row = {**PAIRS["alpaca"], "system": "Be brief.", "history": [["Ho", "Ha"]]}
    _, (record,) = run(tmp_path, row)
    assert [m["content"] for m in record.prompt] == ["Be brief.", "Ho", "Ha", "Hi"]


def test_pairs_that_several_people_judged_are_a_ranking_each(tmp_path):
    row = {"instruction": "Hi", "input": "", "response1": GOOD, "response2": BAD}
    verdicts = {"annotator1": 1, "annotator2": 2, "annotator3": 0}
    report, records = run(tmp_path, {**row, **verdicts}, {**row, "response1": True, **verdicts})
    assert [(r.annotator, r.ranks) for r in records] == [
        ("annotator1", [1, 2]),
        ("annotator2", [2, 1]),
        ("annotator3", [1, 1]),
    ]
    assert report["dropped"] == {"answer_is_no_text": 1}


def test_steps_are_ranked_among_the_solutions_of_their_prompt(tmp_path):
    def steps(*labels, prompt="2+3*2?", last="c"):
        completions = [*"ab"[: len(labels) - 1], last]
        return {"prompt": prompt, "completions": completions, "labels": list(labels)}

    report, (record,) = run(
        tmp_path,
        steps(True, False, True),  # one right step of three before the first wrong one
        steps(True, True, True, last="d"),
        steps(1, 0, last="e"),  # one of two
        steps(True, prompt="Alone?"),
    )
    assert record.answers == ["a\nb\nc", "a\nb\nd", "a\ne"]
    assert record.ranks == [3, 1, 2]
    assert record.ratings == [1 / 3, 1.0, 0.5]
    assert report["dropped"] == {"only_solution_of_its_prompt": 1}


def test_tables_columns_and_keys_that_are_not_used(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("prompt,good,rejected,score_of_it\nHi,Hello!,Go.,3\n")
    report, (record,) = run_files(tmp_path, path, columns={"chosen": "good"})
    assert record.answers == [GOOD, "Go."]
    assert report["unused_keys"] == {"score_of_it": 1}


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no usable preference.*equal_answers"):
        run(tmp_path, {"prompt": "Hi", "chosen": "a", "rejected": "a"})
    with pytest.raises(DataError, match="files is empty"):
        run_files(tmp_path)


def test_dense_ranks_by_hand():
    assert dense([10, 30, 10, 20]) == [1, 3, 1, 2]


@pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not beside the repository")
def test_real_human_pairs_with_implicit_prompts(tmp_path):
    report, records = run_files(tmp_path, DATA / "hh_harmless" / "pairs.jsonl.gz")
    assert report["shapes"] == {"conversation pair": 1156}
    assert report["rankings"] + sum(report["dropped"].values()) == 1156
    assert report["rankings"] > 1050
    for record in records:
        assert record.prompt[-1]["role"] == "user"
        assert pairs(record) == [(0, 1)]
    # in one real row the assistant itself says "Human:"; all other turns are told apart
    assert sum("\n\nHuman:" in answer for r in records for answer in r.answers) == 1


@pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not beside the repository")
def test_real_trees_and_real_annotators(tmp_path):
    report, records = run_files(tmp_path, DATA / "oasst_trees", DATA / "pandalm")
    assert report["shapes"] == {"tree": 100, "annotated pair": 499}
    assert set(report["annotators"]) == {"annotator1", "annotator2", "annotator3", "files"}
    trees = [r for r in records if r.source["shape"] == "tree"]
    # every ranked reply but those that stand alone: 641 in the file
    assert 600 < sum(len(r.answers) for r in trees) <= 641
    assert all(r.prompt[-1]["role"] == "user" for r in trees)
    assert report["ties"] > 100
    # people agree: the share of equal verdicts among those who judged the same pair
    verdicts = {}
    for r in records:
        if r.source["shape"] == "annotated pair":
            verdicts.setdefault(str((r.prompt, r.answers)), []).append(tuple(r.ranks))
    same = [len(set(v)) == 1 for v in verdicts.values() if len(v) == 3]
    assert sum(same) / len(same) > 0.8


@pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not beside the repository")
def test_real_files_of_other_shapes(tmp_path):
    report, _ = run_files(
        tmp_path,
        DATA / "llamafactory_demo" / "dpo_en_demo.json",
        DATA / "raschka_instr" / "instruction-data-with-preference.json",
    )
    assert report["shapes"] == {"alpaca pair": 1100, "sharegpt pair": 300}
    assert report["rankings"] + sum(report["dropped"].values()) == 1400


@pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not beside the repository")
def test_a_real_file_of_labels(tmp_path):
    report, records = run_files(tmp_path, DATA / "llamafactory_demo" / "kto_en_demo.json")
    assert report["shapes"] == {"label messages": 300}
    assert report["rankings"] + sum(report["dropped"].values()) == 300
    assert report["labels"] == {"desirable": 150, "undesirable": 150}
    assert all(len(record.answers) == 1 for record in records)
