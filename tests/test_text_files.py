"""Files of the user: every format, and a clear sentence for what cannot be read."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rung.errors import DataError
from rung.text.decode import decode
from rung.text.files import PIECE_CHARS, Files, files_fingerprint, read_files
from rung.text.normalise import normalise
from rung.text.rules import Rules, reason_to_drop


def read(folder, **options):
    return read_files(Files(folder=str(folder), **options))


def test_every_format(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("Plain.")
    (tmp_path / "b.md.gz").write_bytes(gzip.compress(b"# Zipped"))
    (tmp_path / "c.jsonl").write_text('{"text": "One."}\n\n{"text": "Two.", "id": 7}\n')
    (tmp_path / "d.html").write_text("<html><body><script>x</script><p>Hi there.</p></body></html>")
    (tmp_path / "sub" / "e.py").write_text("x = 1\n")
    pq.write_table(pa.table({"text": ["Row.", None]}), tmp_path / "f.parquet")
    (tmp_path / "g.pdf").write_bytes(b"%PDF")
    (tmp_path / ".hidden.txt").write_text("no")
    docs = read(tmp_path)
    assert {d.id: d.text.strip() for d in docs.documents} == {
        "a.txt": "Plain.",
        "b.md.gz": "# Zipped",
        "c.jsonl:1": "One.",
        "c.jsonl:3": "Two.",
        "d.html": "Hi there.",
        "f.parquet:0": "Row.",
        "f.parquet:1": "",
        "sub/e.py": "x = 1",
    }
    assert docs.skipped == {"unknown extension .pdf": ["g.pdf"]}
    assert docs.documents[0].domain == tmp_path.name
    assert docs.documents[0].meta == {"source": "a.txt"}


def test_long_files_are_cut_without_loss(tmp_path):
    text = "\n\n".join(f"Paragraph {i} " + "word " * 50 for i in range(1000))
    (tmp_path / "long.txt").write_text(text)
    documents = read(tmp_path).documents
    assert "".join(d.text for d in documents) == text
    assert all(len(d.text) <= PIECE_CHARS for d in documents)
    assert len(documents) > 4
    assert {d.group for d in documents} == {"long.txt"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", r"a\.jsonl:2: not JSON .*'\{oops'.*\{\"text\": "),
        ("[1]", r"a\.jsonl:2: a JSON list, not an object"),
        ('{"content": "Long text here", "id": "x"}', r"keys found: content, id; set .*: content"),
        ('{"messages": []}', r"keys found: messages; .*the stage 'dataset'"),
        ('{"chosen": "a", "rejected": "b"}', r"the stage 'feedback'"),
        ('{"text": 3}', r"'text' is int, not a string"),
    ],
)
def test_misshapen_jsonl(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_missing_and_unreadable(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "x.png").write_bytes(b"x")
    (tmp_path / "bad.txt.gz").write_bytes(b"not gzip")
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "other.parquet")
    cases = [
        ({"files": (str(tmp_path / "note.txt"),)}, r"no such file: .*did you mean 'notes.txt'"),
        ({"files": (str(tmp_path / "x.png"),)}, r"cannot read .*x\.png; known: \.txt"),
        ({"files": (str(tmp_path / "bad.txt.gz"),)}, r"bad\.txt\.gz: cannot be read"),
        ({"files": (str(tmp_path / "bad.parquet"),)}, r"not a Parquet file"),
        ({"files": (str(tmp_path / "other.parquet"),)}, r"no column 'text'; columns found: body"),
        ({"files": (str(tmp_path),)}, r"is a folder; use source\.folder"),
        ({"folder": str(tmp_path / "nowhere")}, r"no such folder"),
        ({"folder": str(tmp_path / "notes.txt")}, r"is a file; use source\.files"),
    ]
    for options, message in cases:
        with pytest.raises(DataError, match=message):
            read_files(Files(**options))


def test_folder_without_known_files_names_what_it_saw(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"x")
    (tmp_path / "b.docx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"nothing to read; extensions seen: \.docx, \.pdf; known"):
        read(tmp_path)


def test_encodings_are_counted_and_binaries_skipped(tmp_path):
    (tmp_path / "a.txt").write_bytes("naïve".encode("utf-16"))
    (tmp_path / "b.txt").write_bytes("naïve €".encode("cp1252"))
    (tmp_path / "c.txt").write_bytes("naïve".encode("utf-8-sig"))
    (tmp_path / "d.txt").write_bytes(bytes(range(256)) * 4)
    docs = read(tmp_path)
    assert [d.text for d in docs.documents] == ["naïve", "naïve €", "naïve"]
    assert docs.encodings == {"cp1252": 1, "utf-16": 1, "utf-8-sig": 1}
    assert docs.skipped == {"binary": ["d.txt"]}


def test_wrong_encoding_names_byte_and_way_out():
    with pytest.raises(DataError, match=r"f\.txt: byte 2 \(0xef\) is not utf-8; .*auto"):
        decode("naïve".encode("latin-1"), encoding="utf-8", where="f.txt")
    with pytest.raises(DataError, match="'utf-9' is no encoding"):
        decode(b"x", encoding="utf-9", where="f.txt")


def test_fingerprint_follows_changes(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    before = files_fingerprint(Files(folder=str(tmp_path)))
    assert files_fingerprint(Files(folder=str(tmp_path))) == before
    (tmp_path / "a.txt").write_text("xy")
    assert files_fingerprint(Files(folder=str(tmp_path))) != before
    assert json.dumps(before)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("cafe\u0301", "café"),
        ("a\x00b\u200bc\ufeff", "abc"),
        ("a  \nb\t\n", "a\nb"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("    code\n\tmore", "    code\n\tmore"),
        ("schÃ¶n â€œso", 'schön "so'.replace('"', "\u201c")),
    ],
)
def test_normalise(text, clean):
    assert normalise(text) == clean
    assert normalise(clean) == clean


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("Too short.", "too_short"),
        ("|---|---|" * 20, "mostly_symbols"),
        ("é=" + "=-" * 40, "mostly_symbols"),
        ("Buy now, buy here\n" * 20, "repeated_lines"),
        ("An ordinary sentence that says something, twice.\n" * 2, None),
        ("\n".join(f"Line number {i} of a list" for i in range(30)), None),
        ("日本語の文章です。" * 10, None),
    ],
)
def test_named_reasons(text, reason):
    assert reason_to_drop(text, Rules()) == reason
