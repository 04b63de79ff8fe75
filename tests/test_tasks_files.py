"""Your own conversations: every shape to one, splits that never leak, errors that help."""

import gzip
import json
from pathlib import Path

import pytest
from stage_corpus import stage_context

from rung.errors import DataError
from rung.tasks import files
from rung.text.rows import read_rows, write_rows

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
SHAPES = {
    "messages": {"messages": TURNS},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
    },
    "alpaca": {"instruction": "Hi", "input": "", "output": "Hello!"},
    "prompt-completion": {"prompt": "Hi", "completion": "Hello!"},
    "prompt-completion of messages": {"prompt": TURNS[:1], "completion": TURNS[1:]},
    "question-answer": {"question": "Hi", "answer": "Hello!"},
    "turns": {"text": "### Human: Hi ### Assistant: Hello!"},
    "tree": {
        "prompt": {
            "text": "Hi",
            "role": "prompter",
            "replies": [
                {"text": "Go.", "role": "assistant", "rank": 1},
                {"text": "Hello!", "role": "assistant", "rank": 0},
            ],
        }
    },
}


def run(folder, *names, **config):
    context = stage_context(folder)
    files.run(context, files.Config(files=tuple(str(name) for name in names), **config))
    report = json.loads((context.out / "report.json").read_text())
    sides = ("train", "heldout", "prompts")
    return report, {s: [row for _, row in read_rows(context.out / f"{s}.jsonl")] for s in sides}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_conversation(tmp_path, shape):
    path = write(tmp_path / "a.jsonl", SHAPES[shape])
    _, rows = run(tmp_path, path, heldout_fraction=0)
    assert rows["train"][0]["messages"] == TURNS
    assert rows["train"][0]["truth"]["answer"] == "Hello!"


def test_system_history_input_and_weights_are_kept(tmp_path):
    alpaca = {
        "instruction": "Add",
        "input": "2 3",
        "output": "5",
        "system": "Be brief.",
        "history": [["Hi", "Hello!"]],
    }
    weighted = {"messages": [*TURNS, TURNS[0], {**TURNS[1], "weight": 0}]}
    _, rows = run(tmp_path, write(tmp_path / "a.jsonl", alpaca, weighted), heldout_fraction=0)
    by_length = sorted(rows["train"], key=lambda row: len(row["messages"]))
    assert by_length[0]["messages"][3]["weight"] == 0
    contents = [message["content"] for message in by_length[1]["messages"]]
    assert contents == ["Be brief.", "Hi", "Hello!", "Add\n2 3", "5"]


def test_rows_split_by_content_and_nothing_is_lost(tmp_path):
    rows = [{"prompt": f"Question {i}", "completion": f"Answer {i}"} for i in range(400)]
    path = write(tmp_path / "a.jsonl", *rows, rows[0], {"prompt": "Only asked"})
    report, sides = run(tmp_path, path, heldout_fraction=0.2, prompts_fraction=0.1)
    ids = [row["id"] for of_side in sides.values() for row in of_side]
    assert len(ids) == len(set(ids)) == 401
    assert report["dropped"] == {"duplicate": 1}
    assert 50 < len(sides["heldout"]) < 110
    assert 20 < len(sides["prompts"]) < 70
    assert report["without_answer"] == 1
    asked = [row for row in sides["prompts"] if not row["truth"]["answer"]]
    assert asked[0]["messages"][0]["content"] == "Only asked"
    # a row keeps its side whatever stands beside it
    _, alone = run(tmp_path / "b", write(tmp_path / "b.jsonl", *rows[:200]), heldout_fraction=0.2)
    assert {r["id"] for r in alone["heldout"]} <= {r["id"] for r in sides["heldout"]}


def test_gzip_and_json_lists_are_read(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(SHAPES["alpaca"]).encode()))
    (tmp_path / "b.json").write_text(json.dumps([{"prompt": "Bye", "completion": "Bye!"}]))
    report, _ = run(tmp_path, tmp_path / "a.jsonl.gz", tmp_path / "b.json", heldout_fraction=0)
    assert report["shapes"] == {"alpaca": 1, "prompt-completion": 1}


def test_empty_messages_are_dropped_and_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", SHAPES["messages"], {"prompt": "Hi", "completion": " "})
    report, _ = run(tmp_path, path, heldout_fraction=0)
    assert report["dropped"] == {"empty_message": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": 1', r"a\.jsonl:2: not JSON.*for example"),
        ("[1]", r"a\.jsonl:2: a row is a JSON object, found list"),
        (
            '{"instruction": "Hi", "answer": "Hello"}',
            r"a\.jsonl:2: no known shape; keys found: answer, instruction\. "
            r"Nearest: alpaca \(it lacks output\), for example",
        ),
        ('{"messages": [{"role": "owl", "content": "Hi"}]}', r"jsonl:2: message role 'owl'"),
        ('{"messages": [{"role": "user", "content": 3}]}', "content is int, it must be text"),
        ('{"messages": [{"role": "assistant", "content": "Hi"}]}', "expected 'user'"),
        ('{"messages": []}', "non-empty list"),
        ('{"instruction": "a", "output": 3}', "output is int, it must be text"),
        ('{"prompt": {"text": "Hi"}}', "the values have other types"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(SHAPES["messages"]) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        run(tmp_path, path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "Hi", "good": "Hello!", "bad": "Go."},
            r"no answer, but 'good', 'bad' may be one.*Nearest: prompt-completion \(it lacks "
            r"completion\).*--set ignore=\[good,bad\].*stage `feedback`",
        ),
        ({"prompt": "Hi", "response": "Ho"}, r"'response' may be .* columns\.completion=response"),
        (
            {"conversations": SHAPES["sharegpt"]["conversations"][:1], "chosen": "a"},
            "'chosen' may be one .*stage `feedback`",
        ),
        ({"chosen": "a", "rejected": "b"}, "no known shape.*stage `feedback`"),
        ({"messages": TURNS, "label": False}, r"label is false: .*`feedback`.*ignore=\[label\]"),
        ({"prompt": "Hi", "completion": "Ho", "kto_tag": True}, "kto_tag is true"),
        ({"text": "Only text."}, "no known shape.*stage `curate`"),
        ({"prompt": "Hi", "completions": ["a"], "labels": [True]}, "stage `feedback`"),
    ],
)
def test_answers_under_other_names_are_not_lost_in_silence(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", SHAPES["messages"], row)
    with pytest.raises(DataError, match=rf"a\.jsonl:2: .*{message}"):
        run(tmp_path, path)


def test_what_is_passed_over_knowingly_is_and_the_rest_is_said(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"prompt": "Hi", "good": "Hello!", "source": "web"},
        {"messages": [{**TURNS[0], "mood": "glad"}, TURNS[1]], "label": True, "chosen": "x"},
    )
    context = stage_context(tmp_path)
    config = files.Config(files=(str(path),), ignore=("good", "label"), heldout_fraction=0)
    files.run(context, config)
    report = json.loads((context.out / "report.json").read_text())
    assert report["unused_keys"] == {"chosen": 1, "mood of a message": 1, "source": 1}
    said = "\n".join(context.progress.lines)
    assert "keys that are not used: chosen (1)" in said
    assert "assistant: [Hello!]" in said


def test_columns_give_keys_their_usual_names(tmp_path):
    path = write(tmp_path / "a.jsonl", {"instruction": "Hi", "context": "C", "response": "Ho"})
    columns = {"input": "context", "output": "response"}
    report, rows = run(tmp_path, path, columns=columns, heldout_fraction=0)
    assert report["shapes"] == {"alpaca": 1}
    assert [m["content"] for m in rows["train"][0]["messages"]] == ["Hi\nC", "Ho"]


def test_labelled_texts_become_questions_about_the_labels(tmp_path):
    (tmp_path / "films.csv").write_text("text,label\nGreat.,good\nDull.,bad\n")
    _, rows = run(tmp_path, tmp_path / "films.csv", heldout_fraction=0)
    asked = {row["messages"][0]["content"]: row["truth"]["answer"] for row in rows["train"]}
    assert asked == {
        "Which label fits this text? Labels: bad, good.\n\nGreat.": "good",
        "Which label fits this text? Labels: bad, good.\n\nDull.": "bad",
    }


def test_formats_are_mixed_and_the_realised_shares_told(tmp_path):
    one = write(
        tmp_path / "sums.jsonl", *({"prompt": f"{i}+1", "completion": "x"} for i in range(40))
    )
    two = write(
        tmp_path / "chats.jsonl",
        *({"prompt": f"Hi {i}", "completion": "xxx"} for i in range(200)),
        {"prompt": "Bye", "completion": "xxx", "format": "sums"},
    )
    config = {"heldout_fraction": 0.2, "weights": {"sums": 1, "chats": 3}, "repeat": 2}
    report, rows = run(tmp_path, one, two, **config)
    formats = report["formats"]
    train = formats["train"]
    # the scarce format twice, and three times as many of the other
    assert train["sums"]["rows"] == 2 * formats["available"]["sums"]["rows"]
    assert abs(train["sums"]["share"] - 0.25) < 0.01
    assert len(rows["train"]) == train["sums"]["rows"] + train["chats"]["rows"]
    held = [row["format"] for row in rows["heldout"]]
    assert {"sums", "chats"} == set(held)
    assert len({row["id"] for row in rows["heldout"]}) == len(held)
    with pytest.raises(DataError, match="no row to train on has the format 'sum'; did you mean"):
        run(tmp_path / "b", one, two, weights={"sum": 1, "chats": 1})


def test_broken_characters_are_dropped_and_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", SHAPES["messages"], {"prompt": "Hi", "completion": "\ud800"})
    report, _ = run(tmp_path, path, heldout_fraction=0)
    assert report["dropped"] == {"half_a_character": 1}


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        run(tmp_path, tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="files is empty"):
        run(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "ok"}\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not UTF-8 \(byte 0xe9\)"):
        run(tmp_path, tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"no usable rows.*for example"):
        run(tmp_path, tmp_path / "b.jsonl")
    (tmp_path / "c.json").write_text('{"prompt": "Hi"}')
    with pytest.raises(DataError, match="holds a list of rows"):
        run(tmp_path, tmp_path / "c.json")


def test_rows_are_written_whole_or_not_at_all(tmp_path):
    def rows():
        yield {"b": 1, "a": "\u2028 caf\u00e9"}
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_rows(tmp_path / "a.jsonl", rows(), sync=True)
    assert not (tmp_path / "a.jsonl").exists()
    write_rows(tmp_path / "a.jsonl", [{"b": 1, "a": "\u2028 caf\u00e9"}], sync=True)
    expected = '{"a":"\u2028 caf\u00e9","b":1}\n'
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8") == expected
    assert [row for _, row in read_rows(tmp_path / "a.jsonl")] == [json.loads(expected)]


def test_a_changed_file_is_another_input(tmp_path):
    path = write(tmp_path / "a.jsonl", SHAPES["messages"])
    config = files.Config(files=(str(path),))
    before = files.fingerprint(config)
    write(path, SHAPES["alpaca"])
    assert files.fingerprint(config) != before


@pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not beside the repository")
def test_real_files_of_tool_calls_trees_and_turns(tmp_path):
    names = (
        "llamafactory_demo/glaive_toolcall_en_demo.json",
        "oasst_trees/en_100_tree.jsonl",
        "dolly_openqa/chinkara-open_qa.jsonl",
    )
    report, rows = run(tmp_path, *(DATA / name for name in names))
    assert report["shapes"] == {"sharegpt": 300, "tree": 100, "turns": 3742}
    assert report["rows_read"] == sum(report["rows"].values()) + sum(report["dropped"].values())
    tools = [row for row in rows["train"] if row["format"] == "glaive_toolcall_en_demo"]
    calls = [m for row in tools for m in row["messages"] if "<tool_call>" in m["content"]]
    assert len(calls) > 100
    assert {m["role"] for m in calls} == {"assistant", "system"}
    assert {row["format"] for row in rows["train"]} == {Path(name).stem for name in names}


@pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not beside the repository")
def test_real_instruction_files_are_read_whole(tmp_path):
    names = ("llamafactory_demo/alpaca_en_demo.json", "raschka_instr/instruction-data.json")
    report, rows = run(tmp_path, *(DATA / name for name in names))
    total = sum(report["rows"].values()) + sum(report["dropped"].values())
    assert report["rows_read"] == total == 2099
    assert report["shapes"] == {"alpaca": 2099}
    assert 60 < len(rows["heldout"]) < 150
