"""Labelled texts from every layout, and what is said of broken ones."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rung.errors import DataError
from rung.text.labelled import Keys, read_classes, read_labelled, read_lines, read_texts

SHARED = Path(__file__).parent.parent.parent / "shared/data"


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def pairs(path: Path, keys: Keys | None = None) -> list[tuple[str, tuple[str, ...]]]:
    return [(row.text, row.labels) for row in read_labelled(path, keys or Keys())]


WANTED = [("It drags, badly.", ("neg",)), ('A "joy"', ("pos",))]


def test_json_lines_and_lists_also_packed(tmp_path):
    rows = [{"text": "It drags, badly.", "label": "neg"}, {"text": 'A "joy"', "label": "pos"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    assert pairs(write(tmp_path / "a.jsonl", lines)) == WANTED
    assert pairs(write(tmp_path / "a.jsonl.gz", gzip.compress(lines.encode()))) == WANTED
    assert pairs(write(tmp_path / "a.json", json.dumps(rows))) == WANTED


def test_tables(tmp_path):
    csv = 'sentence,label\n"It drags, badly.",neg\n"A ""joy""",pos\n'
    assert pairs(write(tmp_path / "a.csv", csv)) == WANTED
    assert pairs(write(tmp_path / "b.csv", b"\xef\xbb\xbf" + csv.encode())) == WANTED
    swapped = 'label\ttext\nneg\tIt drags, badly.\npos\t"A ""joy"""\n'
    assert pairs(write(tmp_path / "a.tsv", swapped)) == WANTED
    table = pyarrow.table({"text": [t for t, _ in WANTED], "category": ["neg", "pos"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert pairs(tmp_path / "a.parquet") == WANTED


def test_a_table_of_two_columns_needs_no_header(tmp_path):
    lines = 'one long string\t0\na "joy\t1\nanother\t0\n'  # a quote that never closes is text
    wanted = [("one long string", ("0",)), ('a "joy', ("1",)), ("another", ("0",))]
    assert pairs(write(tmp_path / "a.tsv", lines)) == wanted
    turned = "".join(f"{label[0]},{text!s}\n" for text, label in wanted).replace('"', "")
    assert pairs(write(tmp_path / "b.csv", turned))[0] == wanted[0]


def test_a_quoted_cell_may_hold_the_separator_and_line_breaks(tmp_path):
    rows = pairs(write(tmp_path / "a.tsv", 'text\tlabel\n"two\nlines\tand a tab"\tx\nplain\ty\n'))
    assert rows == [("two\nlines\tand a tab", ("x",)), ("plain", ("y",))]


def test_labels_may_be_numbers_truth_values_lists_or_cells_with_a_separator(tmp_path):
    rows = [1, 2.0, True, None, "  ", ["b", "a", "b"], []]
    lines = "".join(json.dumps({"text": "t", "labels": label}) + "\n" for label in rows)
    found = list(read_labelled(write(tmp_path / "a.jsonl", lines), Keys()))
    assert [row.labels for row in found] == [
        ("1",), ("2",), ("true",), (), (), ("a", "b"), ()
    ]  # fmt: skip
    assert [row.listed for row in found] == [False] * 5 + [True] * 2
    cells = write(tmp_path / "a.csv", "text,label\nx,sport; news\ny,\n")
    assert [row.labels for row in read_labelled(cells, Keys(separator=";"))] == [
        ("news", "sport"), ()
    ]  # fmt: skip


def test_other_keys_are_named(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"title": "x", "topic": "Arts", "text": "y"}\n')
    assert pairs(path, Keys(label="topic")) == [("y", ("Arts",))]
    assert pairs(path, Keys(text="title", label="topic")) == [("x", ("Arts",))]


def test_a_folder_per_label_and_a_file_per_label(tmp_path):
    for label, name, text in (("pos", "b", "good"), ("pos", "a", "fine"), ("neg", "c", "bad")):
        write(tmp_path / "set" / label / f"{name}.txt", text)
    rows = [(row.text, row.labels) for row in read_classes(tmp_path / "set")]
    assert rows == [("bad", ("neg",)), ("fine", ("pos",)), ("good", ("pos",))]
    latin = write(tmp_path / "films.neg", "caf\xe9 noir \n\n dull\n".encode("latin-1"))
    lines = list(read_lines(latin, "neg"))
    assert [(row.text.strip(), row.where[-2:]) for row in lines] == [
        ("caf\xe9 noir", ":1"), ("dull", ":3")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"txt": "y", "label": "b"}\n', ":2: no text .*"
         "keys found: label, txt. Name it with text_key.*for|such as"),
        ("a.jsonl", '{"text": "x", "tag": "a"}\n', ":1: no label .*keys found: tag, text"),
        ("a.jsonl", '{"text": 5, "label": "a"}\n', ":1: the text is int"),
        ("a.jsonl", '{"text": "x", "label": {"a": 1}}\n', ':1: a label is text.*{"a": 1}'),
        ("a.jsonl", '{"text": "x", "label": 0.5}\n', ":1: a label is text"),
        ("a.jsonl", '{"text": "x", "sentence": "y", "label": 1}\n', "text and sentence could each"),
        ("a.jsonl", "{text}\n", ":1: not JSON"),
        ("a.csv", "text,label\na,b\nx,y,z\n", ":3: 3 columns where 2 are due"),
        ("a.csv", "text,text\na,b\n", ":1: the columns are called"),
        ("a.csv", 'text,label\n"open,b\n', ":2: unexpected end of data"),
        ("a.csv", b"text,label\nx\x00\x00y,b\n", "not text"),
        ("a.parquet", "no parquet", "not a Parquet file"),
        ("a.csv.gz", b"\x1f\x8bnope", "cannot be read"),
    ],
)  # fmt: skip
def test_broken_files_name_the_line_and_the_way_out(tmp_path, name, content, said):
    with pytest.raises(DataError, match=said):
        list(read_labelled(write(tmp_path / name, content), Keys()))


def test_texts_alone(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"id": 7, "sentence": "x"}\n')
    assert list(read_texts(path)) == [({"id": 7, "sentence": "x"}, "x")]
    plain = write(tmp_path / "a.txt", "one\n\n two \n")
    assert [text.strip() for _, text in read_texts(plain)] == ["one", "two"]


def test_real_files():
    folder = SHARED / "rt_polarity"
    if not folder.is_dir():
        pytest.skip("no ../shared/data/rt_polarity on this machine")
    rows = list(read_labelled(folder / "sst2_test.tsv", Keys()))
    assert len(rows) == 1821  # the published size of the split
    assert {row.labels for row in rows} == {("0",), ("1",)}
    assert rows[0].text == "no movement , no yuks , not much of anything"
    assert sum(1 for _ in read_lines(folder / "rt-polarity.neg", "neg")) == 5331
    vital = read_labelled(SHARED / "wiki_vital/wiki_vital.jsonl.gz", Keys(label="topic"))
    assert len({row.labels for row in vital}) == 12
