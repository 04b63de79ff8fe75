"""Files of rows in every format: the same rows out, line numbers, doubled keys, tables."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rung.errors import DataError
from rung.text.json_rows import json_list
from rung.text.rows import read_rows
from rung.text.sources import find_sources, fingerprint_sources, source_rows

ROWS = [
    {"prompt": 'He said "hi", twice\nover', "completion": "a,b\tc"},
    {"prompt": "caf\u00e9 \u2028 next", "completion": '{"not": "messages"}'},
]


def write_all(folder):
    """The two rows in every format."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    cells = [[row["prompt"], row["completion"]] for row in ROWS]

    def table(delimiter):
        quoted = [delimiter.join('"' + c.replace('"', '""') + '"' for c in row) for row in cells]
        return "\n".join([f"prompt{delimiter}completion", *quoted]) + "\n"

    texts = {
        "a.jsonl": lines,
        "a.ndjson": lines,
        "lines.json": lines,
        "list.json": json.dumps(ROWS, indent=2),
        "data.json": json.dumps({"version": "1", "data": ROWS, "more": [1]}),
        "a.csv": "\ufeff" + table(","),
        "a.tsv": table("\t"),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
        (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet")
    return [*texts, *(f"{name}.gz" for name in texts), "a.parquet"]


def test_every_format_gives_the_same_rows(tmp_path):
    names = write_all(tmp_path)
    for name in names:
        assert [row for _, row in read_rows(tmp_path / name)] == ROWS, name
    (folder,) = find_sources([str(tmp_path)])
    assert [path.name for _, path in folder.files] == sorted(names)
    assert len(list(source_rows(folder, example="{}"))) == len(names) * len(ROWS)


def test_a_json_list_tells_the_line_of_each_row(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n  {"a": 1},\n\n  {"a":\n 2}, {"a": 3}]')
    assert list(read_rows(path)) == [(2, {"a": 1}), (4, {"a": 2}), (5, {"a": 3})]
    path.write_text('{"info": {"data": [0]},\n "data": [\n{"a": 1}]}')
    assert list(read_rows(path)) == [(3, {"a": 1})]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(values=st.lists(VALUES, max_size=5), indent=st.sampled_from([None, 1]))
def test_a_json_list_is_read_as_json_reads_it(values, indent):
    text = json.dumps(values, indent=indent)
    assert [value for _, value in json_list(text, path="a", example="")] == values
    inside = json.dumps({"first": values, "data": values, "last": 1}, indent=indent)
    assert [value for _, value in json_list(inside, path="a", example="")] == values


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.jsonl",
            '{"a": 1}\n{"a": 1, "b": {"c": 1, "c": 2}}',
            r"a\.jsonl:2: key 'c' is there tw",
        ),
        ("a.json", '[{"a": 1},\n{"a": 1, "a": 2}]', r"a\.json:2: key 'a' is there twice"),
        ("a.json", '{"data": [{}],\n "data": []}', r"a\.json:2: key 'data' is there twice"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', r"a\.json:2: not JSON \(',' or '\]' expected"),
        ("a.json", '[{"a": 1},\n', r"a\.json:2: not JSON"),
        ("a.json", '[{"a": 1}', "found the end of the file"),
        ("a.json", '"text"', "found str"),
        ("a.json", "[1,\n 2]", r"a\.json:1: a row is a JSON object, found int"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: not JSON"),
        ("a.csv", "a,b,a\n1,2,3", r"a\.csv:1: column 'a' is there twice"),
        ("a.csv", "a,b\n1,2\n\n1,2,3", r"a\.csv:4: 3 cells under 2 columns \(a, b\)"),
        ("a.csv", 'a,b\n1,"2" x\n', r"a\.csv:2: .*inside it is written twice"),
        ("a.csv", "a,\n1,2", "column 2 has no name"),
        ("a.csv", "messages\n[{]", r"a\.csv:2: messages holds no JSON list"),
        ("a.csv", "margin\nmuch", r"a\.csv:2: margin 'much' is not a number"),
        ("a.parquet", "no", "not a Parquet file"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / name))


def test_cells_of_tables_become_lists_and_truth_values(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text(
        "prompt\tanswers\tranks\tlabel\tmargin\n"
        '[INST] is text\t["a", "b"]\t[1, 2]\tTRUE\t0.5\n'
        '[{"role": "user", "content": "Hi"}]\tnone\t\t["x", "y"]\t1\n'.replace('"', '""')
        .replace("\t[", '\t"[')
        .replace("]\t", ']"\t')
        .replace('[{""role', '"[{""role')
    )
    first, second = (row for _, row in read_rows(path))
    assert first == {
        "prompt": "[INST] is text",
        "answers": ["a", "b"],
        "ranks": [1, 2],
        "label": True,
        "margin": 0.5,
    }
    assert second["prompt"] == [{"role": "user", "content": "Hi"}]
    assert second["label"] == ["x", "y"]


def test_two_columns_without_names_are_a_text_and_its_label(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('a "stirring" film\t1\nit drags\t0\nno\t0\n')
    rows = [row for _, row in read_rows(path)]
    assert rows[0] == {"text": 'a "stirring" film', "label": "1"}
    path.write_text("0,dull\n1,great\n1,good\n")
    path = path.rename(tmp_path / "a.csv")
    assert next(read_rows(path)) == (1, {"label": "0", "text": "dull"})
    path.write_text("question,answer\nHi,Ho\n")
    assert next(read_rows(path)) == (2, {"question": "Hi", "answer": "Ho"})


def test_nulls_of_parquet_are_absent_keys(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "Hi", "weight": None}], "system": None},
        {"messages": [{"role": "user", "content": "Ho", "weight": 1}], "system": "S"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    first = next(read_rows(tmp_path / "a.parquet"))
    assert first == (1, {"messages": [{"role": "user", "content": "Hi"}]})


def test_sources_are_named_labelled_and_passed_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my/sub/b.csv", "my/a.jsonl.gz", "my/.hidden/c.jsonl", "my/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text\nHi\n" if name.endswith("csv") else '{"text": "Hi"}')
    (tmp_path / "my" / "dataset_info.json").write_text("{}")
    folder, file = find_sources(["my", "my/a.jsonl.gz"])
    assert (folder.label, file.label) == ("my", "a")
    assert [name for name, _ in folder.files] == ["my/a.jsonl.gz", "my/sub/b.csv"]
    assert folder.passed_over == ("dataset_info.json", "notes.txt")
    places = [where for where, _ in source_rows(folder, example="{}")]
    assert places == ["my/a.jsonl.gz:1", "my/sub/b.csv:2"]
    before = fingerprint_sources(["my"])
    (tmp_path / "my" / "new.jsonl").write_text('{"text": "Ho"}')
    assert set(fingerprint_sources(["my"])) == {*before, "my/new.jsonl"}


def test_columns_rename_and_a_missing_one_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"frage": "Hi", "prompt": 3, "antwort": "Ho"}\n{"frage": "Hi"}\n')
    (source,) = find_sources([str(path)])
    rows = source_rows(source, example="{}", columns={"prompt": "frage", "completion": "antwort"})
    assert next(rows)[1] == {"prompt": "Hi", "completion": "Ho"}
    with pytest.raises(DataError, match=r"a\.jsonl:2: no key 'antwort'.*keys found: frage"):
        next(rows)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", r"none\.jsonl: no such file"),
        ("chat.jsonl", r"did you mean 'chats\.jsonl'"),
        ("empty.jsonl", r"empty\.jsonl: no usable rows: the file is empty; for example"),
        ("notes.txt", r"cannot read \.txt here.*goes into the stage `curate`"),
        ("folder", r"folder: no files to read; seen: no files at all; known: \.jsonl"),
    ],
)
def test_a_name_that_gives_no_rows_is_an_error(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "chats.jsonl").write_text('{"text": "Hi"}')
    (tmp_path / "empty.jsonl").write_text("\n \n")
    (tmp_path / "notes.txt").write_text("Hi")
    with pytest.raises(DataError, match=message):
        [list(source_rows(source, example="{}")) for source in find_sources([name])]


def test_a_hub_id_is_fetched_once_and_its_train_split_read(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    snapshot = tmp_path / "cache" / "abc"
    (snapshot / "data").mkdir(parents=True)
    for split in ("train-0000", "test-0000"):
        table = pa.Table.from_pylist([{"prompt": split, "completion": "Ho"}])
        pq.write_table(table, snapshot / "data" / f"{split}.parquet")
    asked = []

    def give(id, **options):
        asked.append((id, options["repo_type"]))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", give)
    (source,) = find_sources(["some/chats"])
    assert asked == [("some/chats", "dataset")]
    assert source.label == "chats"
    assert [row["prompt"] for _, row in source_rows(source, example="{}")] == ["train-0000"]
    assert source.passed_over == ("some/chats/data/test-0000.parquet",)
    (test,) = find_sources(["some/chats:test"])
    assert [row["prompt"] for _, row in source_rows(test, example="{}")] == ["test-0000"]


def test_offline_gives_a_sentence_and_paths_never_ask_the_hub(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*args, **options):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(DataError, match=r"some/chats: no such file.*hub does not give.*download"):
        find_sources(["some/chats"])

    def never(*args, **options):
        raise AssertionError("a path is no hub id")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    (tmp_path / "my").mkdir()
    for name in ("my/chats", "some/chats.jsonl", "/some/chats", "./chats", "../a/b"):
        with pytest.raises(DataError, match="no such file"):
            find_sources([name])
