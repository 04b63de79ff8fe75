"""The stage as a whole: counts, splits, equal bytes, errors, silence."""

import hashlib
import json
import random
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from rung.config import parse_config
from rung.errors import ConfigError, DataError
from rung.store.context import StageContext
from rung.text.curate import Config, fingerprint, run


class Lines:
    """A progress that remembers what it was told to say."""

    def __init__(self):
        self.said = []

    def start(self, title, *, total=None, unit=""):
        pass

    def update(self, done, **figures):
        pass

    def say(self, line):
        self.said.append(line)

    def finish(self):
        pass


def curate(out, **values):
    progress = Lines()
    config = parse_config(Config, values)
    context = StageContext({}, {}, out / "out", out / "run", progress, {})
    notes = run(context, config)
    table = pq.read_table(out / "out" / "documents.parquet")
    report = json.loads((out / "out" / "report.json").read_text())
    return table.to_pylist(), report, notes, progress.said


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "notes"
    root.mkdir()
    rng = random.Random(0)
    words = [f"word{i}" for i in range(2000)]
    for i in range(40):
        (root / f"n{i:02d}.txt").write_text(" ".join(rng.choices(words, k=150)) + ".")
    (root / "p_copy.txt").write_text((root / "n03.txt").read_text().upper())
    (root / "q_near.txt").write_text((root / "n05.txt").read_text() + " One more.")
    (root / "r_short.txt").write_text("Hi.")
    (root / "s_mail.txt").write_text(" ".join(words[:60]) + " ann@posteo.net, bob@posteo.net")
    return root


def test_counts_examples_and_splits(folder, tmp_path):
    rows, report, notes, said = curate(tmp_path, source={"folder": str(folder)})
    assert report["documents_read"] == 44
    assert report["documents"] == len(rows) == 41
    assert {reason: info["count"] for reason, info in report["dropped"].items()} == {
        "exact_duplicate": 1,
        "near_duplicate": 1,
        "too_short": 1,
    }
    assert report["dropped"]["near_duplicate"]["examples"][0]["same_as"] == "n05.txt"
    assert len(report["dropped"]["near_duplicate"]["examples"][0]["text"]) == 200
    assert report["dropped"]["too_short"]["examples"] == [{"id": "r_short.txt", "text": "Hi."}]
    assert report["redactions"] == {"email": {"count": 2, "documents": 1}}
    assert rows[-1]["text"].endswith("<EMAIL>, <EMAIL>")
    assert "dropped: exact_duplicate 1, near_duplicate 1, too_short 1" in said

    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert all((r["part"] == "nowhere") == (r["split"] == "heldout") for r in rows)
    domain = report["domains"]["notes"]
    for part in ("instruct", "text_only", "nowhere"):
        own = [r for r in rows if r["part"] == part]
        assert domain[part]["documents"] == len(own) > 0
        assert domain[part]["bytes"] == sum(len(r["text"].encode()) for r in own)
    assert domain["train"]["bytes"] + domain["heldout"]["bytes"] == report["bytes"]
    assert notes["figures"]["documents"] == 41


def test_a_document_has_one_reason_the_first(folder, tmp_path):
    (folder / "r_short_too.txt").write_text("hi.")
    dropped = curate(tmp_path, source={"folder": str(folder)})[1]["dropped"]
    assert (dropped["too_short"]["count"], dropped["exact_duplicate"]["count"]) == (2, 1)


def test_same_bytes_again(folder, tmp_path):
    hashes = []
    for name in ("one", "two"):
        curate(tmp_path / name, source={"folder": str(folder)}, seed=3)
        out = tmp_path / name / "out"
        files = sorted(p for p in out.iterdir())
        hashes.append([hashlib.sha256(p.read_bytes()).hexdigest() for p in files])
    assert hashes[0] == hashes[1]


def test_a_single_long_file_is_split_by_piece(tmp_path):
    text = "\n\n".join(f"Paragraph {i} of {i * 7} " + "words and more " * 20 for i in range(2000))
    (tmp_path / "book.txt").write_text(text)
    rows, report, _, _ = curate(tmp_path, source={"files": [str(tmp_path / "book.txt")]})
    assert report["domains"]["files"]["heldout"]["bytes"] > 0
    assert all(row["group"] == row["id"] for row in rows)


def test_budget_keeps_whole_groups(folder, tmp_path):
    total = curate(tmp_path / "a", source={"folder": str(folder)})[1]["bytes"]
    rows, report, _, _ = curate(
        tmp_path / "b", source={"folder": str(folder)}, max_bytes=total // 2
    )
    assert 0.4 * total < report["bytes"] <= total // 2
    assert report["dropped"]["over_budget"]["count"] == 41 - len(rows)
    same = curate(tmp_path / "c", source={"folder": str(folder)}, max_domain_bytes=total // 2)[1]
    assert same["bytes"] <= total // 2


def test_steps_can_be_switched_off(folder, tmp_path):
    _, report, _, _ = curate(
        tmp_path,
        source={"folder": str(folder)},
        pii=False,
        dedup={"exact": False, "near": False},
        rules={"min_chars": 0},
    )
    assert report["documents"] == 44
    assert report["redactions"] == {}


def test_installed_documents_keep_their_entries(tmp_path):
    pytest.importorskip("mpmath")
    source = {"installed": {"stdlib": False, "packages": ["mpmath"]}}
    rows, report, _, _ = curate(tmp_path, source=source)
    entries = {e["name"]: e for row in rows for e in json.loads(row["meta"])["entries"]}
    keys = {"name", "kind", "module", "signature", "summary", "doc", "aliases"}
    assert all(set(entry) == keys for entry in entries.values())
    assert entries["mpmath.sin"]["summary"] == "Computes the sine of `x`, `\\sin(x)`."
    assert {row["domain"] for row in rows} == {"mpmath"}
    assert report["domains"]["mpmath"]["nowhere"]["groups"] >= 1
    assert fingerprint(parse_config(Config, {"source": source}))


def test_redaction_reaches_the_entries(tmp_path, monkeypatch):
    package = tmp_path / "rungmailer"
    package.mkdir()
    lines = [
        f'def f{i}():\n    """Word{i} mail ann{i}@posteo.net {"x" * i} now."""' for i in range(9)
    ]
    (package / "__init__.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    source = {"installed": {"stdlib": False, "packages": ["rungmailer"]}}
    rows = curate(tmp_path, source=source, dedup={"near": False})[0]
    assert rows
    assert not any("posteo" in row["text"] + row["meta"] for row in rows)


@pytest.mark.parametrize(
    "source", [{}, {"folder": "a", "files": ["b"]}, {"installed": {}, "folder": "a"}]
)
def test_exactly_one_source(source):
    with pytest.raises(ConfigError, match="exactly one of installed, folder, files"):
        parse_config(Config, {"source": source})


def test_unknown_key_has_a_suggestion():
    with pytest.raises(ConfigError, match=r"source\.folderr.*did you mean 'folder'"):
        parse_config(Config, {"source": {"folderr": "x"}})


def test_nothing_left_is_an_error_with_counts(tmp_path):
    (tmp_path / "a.txt").write_text("Hi.")
    with pytest.raises(DataError, match=r"no document is left of 1 \(too_short 1\); loosen"):
        curate(tmp_path, source={"files": [str(tmp_path / "a.txt")]})
    (tmp_path / "a.txt").write_bytes(b"\x00\x01" * 50)
    with pytest.raises(DataError, match=r"holds no document \(binary: 1\)"):
        curate(tmp_path, source={"files": [str(tmp_path / "a.txt")]})


def test_the_engine_is_silent_and_does_not_call_home(folder, tmp_path):
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from rung.text import engine\n"
        "from rung.text.curate import Config, run\n"
        "from rung.store.context import StageContext\n"
        "from unittest.mock import MagicMock\n"
        "assert os.environ['DO_NOT_TRACK'] == '1'\n"
        "from daft.scarf_telemetry import opted_out\n"
        "assert opted_out() and 'torch' not in sys.modules\n"
        "out = Path(sys.argv[2])\n"
        "context = StageContext({}, {}, out, out, MagicMock(), {})\n"
        "run(context, Config(source={'folder': sys.argv[1]}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "silent")],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
