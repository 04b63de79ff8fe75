"""Instruction rows from real docstrings: true, disjoint, balanced, repeatable."""

import json
import random
import re
from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage_corpus import PARTS, artefact, stage_context, write_corpus

from rung.config import parse_config
from rung.errors import DataError
from rung.tasks import instruct
from rung.tasks.entries import Entry, clean_signature, clean_summary, defaults, load_library
from rung.tasks.grade import is_admission, utility
from rung.tasks.made_up import NameForge
from rung.tasks.phrasings import PHRASINGS, choose_phrasing, off_topic_questions
from rung.tasks.questions import Limits, ask, cut_words, returns_of
from rung.text.rows import read_rows

CONFIG = {"train_rows": 600, "prompts": 120, "heldout_per_cell": 8, "heldout_made_up": 20}
FILES = ("train", "heldout", "prompts")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def build(folder, corpus, **config):
    context = stage_context(folder, many={"corpora": [corpus]})
    instruct.run(context, parse_config(instruct.Config, {**CONFIG, **config}))
    return {name: [row for _, row in read_rows(context.out / f"{name}.jsonl")] for name in FILES}


@pytest.fixture(scope="module")
def rows(tmp_path_factory, corpus):
    return build(tmp_path_factory.mktemp("facts"), corpus)


def of_kind(rows, group):
    return [row for row in rows if row["split_group"] == group]


def test_a_name_is_in_one_file_only(rows):
    names = {file: {r["truth"]["name"] for r in rows[file]} - {None} for file in FILES}
    assert all(len(found) > 50 for found in names.values())
    assert not names["train"] & names["heldout"]
    assert not names["train"] & names["prompts"]
    assert not names["heldout"] & names["prompts"]


def test_ids_are_unique(rows):
    ids = Counter(row["id"] for file in FILES for row in rows[file])
    assert ids.most_common(1)[0][1] == 1


def test_groups_follow_the_parts_of_the_corpus(rows, corpus):
    part = {e.name: e.part for e in load_library([corpus.file("documents.parquet")]).entries}
    expected = {"seen": "instruct", "text_only": "text_only", "nowhere": "nowhere"}
    for file in FILES:
        for row in rows[file]:
            if row["truth"]["exists"]:
                assert part[row["truth"]["name"]] == expected[row["split_group"]]
    for file in ("train", "prompts"):
        assert {r["split_group"] for r in rows[file]} <= {"seen", "made_up", "off_topic"}


def test_heldout_has_every_cell_in_equal_number(rows):
    cells = Counter((row["format"], row["split_group"]) for row in rows["heldout"])
    for group, formats in instruct.HELDOUT_FORMATS.items():
        for format in formats:
            assert cells[format, group] == 8, (format, group)
    assert cells["unknown", "made_up"] == 20
    assert cells["unknown", "off_topic"] == 12


def test_made_up_names_occur_nowhere_in_the_corpus(rows, corpus):
    text = "\n".join(pq.read_table(corpus.file("documents.parquet"))["text"].to_pylist())
    known = set(re.findall(r"\w+", text))
    made_up = [row for file in FILES for row in of_kind(rows[file], "made_up")]
    assert len(made_up) > 60
    modules = [module for of_part in PARTS.values() for module in of_part]
    for row in made_up:
        name = row["truth"]["name"]
        assert name.rpartition(".")[2] not in known
        assert any(name.startswith(module + ".") for module in modules), name


def test_answers_are_the_truth_and_passages_hold_them(rows):
    checked = Counter()
    for row in (row for file in FILES for row in rows[file]):
        prompt, answer = (message["content"] for message in row["messages"])
        truth = row["truth"]
        assert answer == truth["answer"]
        assert is_admission(answer) is not truth["exists"]
        assert utility(row, answer, stopped=True).value == 1.0
        if row["format"] == "passage":
            assert truth["passage"] in prompt
            passage = " ".join(truth["passage"].split())
            if truth["question"] == "returns":
                assert answer in passage
            elif truth["question"] == "default":
                argument, default = re.findall(r"`([^`]*)`", answer)
                assert re.search(rf"\b{argument}\b.*= ?{re.escape(default)}", passage)
            checked[truth["question"]] += 1
        elif row["format"] == "module" and truth["exists"]:
            assert f"{truth['name']}" == ".".join(reversed(re.findall(r"`([^`]*)`", answer)))
    assert min(checked[kind] for kind in ("signature", "default", "returns", "explain")) > 3


def test_what_a_short_passage_does_not_hold_is_not_asked():
    def kinds(words, **fields):
        entry = Entry("m.f", "function", "m", **fields, domain="d", part="instruct")
        limits = Limits(passage_words=words, prompt_chars=900)
        asked = [
            ask(entry, "passage", random.Random(i), limits=limits, modules=[]) for i in range(40)
        ]
        return {question.question for question in asked if question}

    doc = "Fine. " * 20 + "Return the list of all things."
    returns = {"signature": "", "summary": "", "doc": doc}
    assert kinds(60, **returns) == {"passage_returns"}
    assert kinds(10, **returns) == set()
    signature = {"signature": "(a, b, c, d, e, f)", "summary": "", "doc": "Fine."}
    assert kinds(60, **signature) == {"passage_signature"}
    assert kinds(3, **signature) == set()


def test_made_up_names_are_all_different(corpus):
    library = load_library([corpus.file("documents.parquet")])
    forge, draw = NameForge(library), random.Random(0)
    names = [forge.make(draw).name for _ in range(1500)]
    assert len(set(names)) == 1500
    assert not set(names) & library.names
    few = replace(library, entries=library.entries[:3])
    with pytest.raises(DataError, match="too few to make up plausible ones"):
        NameForge(few)


def test_prompts_and_answers_are_short(rows):
    for row in (row for file in FILES for row in rows[file]):
        prompt, answer = (message["content"] for message in row["messages"])
        assert len(prompt) <= 900
        assert len(answer) <= 200
        if row["truth"]["passage"]:
            assert len(row["truth"]["passage"].split()) <= 100


def test_refusals_are_the_share_that_was_asked_for(rows):
    train = rows["train"]
    refusals = sum(not row["truth"]["exists"] for row in train)
    assert 0.06 < refusals / len(train) < 0.11
    assert len(of_kind(rows["prompts"], "made_up")) == 30  # a quarter of 120


def test_the_last_wording_of_each_question_is_held_out(rows):
    assert not any(r["truth"]["new_phrasing"] for f in ("train", "prompts") for r in rows[f])
    new = [row for row in rows["heldout"] if row["truth"]["new_phrasing"]]
    assert 5 < len(new) < len(rows["heldout"]) / 2
    assert not [row for file in ("train", "prompts") for row in rows[file] if is_new(row)]
    assert all(is_new(row) for row in new)


def is_new(row):
    """Whether the prompt has the last wording of any question, by a regular expression."""
    prompt = plain(row["messages"][0]["content"])
    return any(
        re.fullmatch(re.sub(r"\\{\w+\\}", ".+", re.escape(plain(forms[-1]))), prompt, re.S)
        for forms in PHRASINGS.values()
    )


def plain(text):
    return text.replace("`", "").lower().rstrip("?.")


def test_questions_come_with_and_without_marks_around_the_name(rows):
    asked = [r["messages"][0]["content"] for r in rows["train"] if r["format"] == "signature"]
    marked = [text for text in asked if "`" in text]
    assert 0.55 < len(marked) / len(asked) < 0.95  # 0.75
    casual = [text for text in asked if text[0].islower()]
    assert 0.02 < len(casual) / len(asked) < 0.3  # 0.1
    assert not [text for text in casual if text.endswith("?")]


def test_marks_inside_a_passage_stay():
    for seed in range(20):
        draw = random.Random(seed)
        _, form = choose_phrasing("passage_signature", draw, heldout=False)
        assert "Use `this`." in form.format(passage="Use `this`.", name="a.b")


def test_the_question_of_the_report_is_not_in_the_lists():
    assert not [text for text in off_topic_questions() if "France" in text]


def test_same_seed_same_bytes_other_seed_other_rows(tmp_path, corpus, rows):
    again = build(tmp_path / "again", corpus)
    assert again == rows
    other = build(tmp_path / "other", corpus, seed=1)
    assert other["train"] != rows["train"]


def test_report_counts_what_is_in_the_files(tmp_path, corpus):
    files = build(tmp_path, corpus)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for name, rows in files.items():
        assert report[name]["rows"] == len(rows) == sum(report[name]["per_cell"].values())
        assert report[name]["refusals"] == sum(not row["truth"]["exists"] for row in rows)
    assert report["unusable_entries"]["private_or_dunder"] > 0


def test_a_corpus_of_plain_text_is_refused(tmp_path):
    document = {"text": "Once.", "domain": "d", "part": "instruct", "meta": '{"source": "a.md"}'}
    pq.write_table(pa.Table.from_pylist([document]), tmp_path / "documents.parquet")
    context = stage_context(tmp_path / "s", many={"corpora": [artefact(tmp_path, "corpus")]})
    with pytest.raises(DataError, match=r"no documented functions.*`dataset` stage"):
        instruct.run(context, instruct.Config())


def test_a_mix_adds_up():
    for total in (1, 7, 100, 12_000):
        assert sum(instruct.Mix().counts(total).values()) == total
    only = instruct.Mix(explain=0, signature=0, module=1, summarise=0, passage=0)
    assert only.counts(10)["module"] == 10


def test_signatures_and_defaults():
    signature = clean_signature("json.dumps(obj, *,\n  skipkeys=False, sep=(',', ':'), **kw)")
    assert signature == "(obj, *, skipkeys=False, sep=(',', ':'), **kw)"
    assert defaults(signature) == [("skipkeys", "False"), ("sep", "(',', ':')")]
    assert defaults("(a, /, b, c=None, *args, d=-1) -> int") == [("c", "None"), ("d", "-1")]
    assert clean_signature("f()") == clean_signature("f(a, [b])x") == clean_signature("") == ""


def test_summaries_are_plain_sentences():
    told = clean_summary("Serialize ``obj`` as a\n :class:`~json.Stream` now")
    assert told == "Serialize `obj` as a `json.Stream` now."
    for unfit in (">>> a = 1 + 2 + 3", "Too short.", "size (`int`): Number of rows.", "word " * 40):
        assert clean_summary(unfit) == ""


def test_what_it_returns_is_found():
    google = "Add.\n\nReturns:\n    int: the sum\n    of both.\n\nRaises:\n    ValueError"
    numpy = "Add.\n\nReturns\n-------\nout : int\n    The sum.\n\nNotes\n-----\nNone."
    assert returns_of(google) == "int: the sum of both."
    assert returns_of(numpy) == "out : int The sum."
    assert returns_of("Add two numbers. Return the sum of both.") == "Return the sum of both."
    assert returns_of("Add two numbers.") == ""


def test_passages_are_cut_at_whole_words():
    limits = Limits(passage_words=3, prompt_chars=1000)
    assert cut_words("one  two\n  three four", limits=limits) == "one  two\n  three"
    assert cut_words("one two", limits=Limits(passage_words=9, prompt_chars=8)) == "one"
