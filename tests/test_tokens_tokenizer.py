"""The tokenizer: exact round trips, deterministic bytes, honest report, clear errors."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rung.config import parse_config
from rung.errors import ArtefactError, ConfigError, DataError
from rung.store.artefact import Artefact, FileEntry
from rung.store.context import StageContext
from rung.tokens import tokenizer as stage
from rung.tokens.bpe import train_bpe, write_tokenizer
from rung.tokens.documents import choose_rows, read_rows, text_sizes
from rung.tokens.special import END, ROLES, SPECIAL_TOKENS
from rung.tokens.tokenizer import Config, Tokenizer, load_tokenizer

SENTENCES = [
    f"def function_{i}(value, *, key={i}):\n    Return the {word} of value; see os.path.{word}.\n"
    for i, word in enumerate(
        ["length", "sum", "mean", "product", "join", "split", "strip", "lower", "upper", "title"]
        * 8
    )
]


class Silent:
    """A progress line that only remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, title: str, *, total: float | None = None, unit: str = "") -> None: ...
    def update(self, done: float, **figures: float | str) -> None: ...
    def say(self, line: str) -> None:
        self.lines.append(line)

    def finish(self) -> None: ...


def write_corpus(folder: Path, rows: list[tuple[str, str, str]]) -> Artefact:
    """rows: (text, domain, split)."""
    folder.mkdir(parents=True)
    table = pa.table(
        {
            "id": [f"d{i}" for i in range(len(rows))],
            "text": pa.array([r[0] for r in rows], pa.string()),
            "domain": [r[1] for r in rows],
            "split": pa.array([r[2] for r in rows], pa.string()),
        }
    )
    pq.write_table(table, folder / "documents.parquet", row_group_size=7)
    files = {"documents.parquet": FileEntry(sha256="", size=0)}
    return Artefact("0" * 64, "corpus", folder, "curate", {}, {}, files)


def stage_context(folder: Path, corpora: list[Artefact]) -> tuple[StageContext, Silent]:
    out, run = folder / "out", folder / "run"
    out.mkdir(parents=True)
    run.mkdir()
    silent = Silent()
    return StageContext({}, {"corpora": corpora}, out, run, silent, {}), silent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(train_bpe(SENTENCES, vocab_size=400), path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


ANY_TEXT = st.lists(
    st.one_of(st.text(max_size=20), st.sampled_from([*SPECIAL_TOKENS, " ", "\r\n", "\t", "\0"])),
    max_size=8,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=ANY_TEXT)
def test_any_text_comes_back_and_never_holds_a_special_token(
    tokenizer: Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, special=True) == text
    assert not tokenizer.special_ids & set(ids.tolist())


def test_batch_equals_one_by_one(tokenizer: Tokenizer) -> None:
    texts = [*SENTENCES, "", "<|end|>", "\N{GRINNING FACE} caf\N{LATIN SMALL LETTER E WITH ACUTE}"]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.tolist() == tokenizer.encode(text).tolist()


def test_special_ids_come_first_and_are_apart(tokenizer: Tokenizer) -> None:
    end = tokenizer.special(END)
    ids = [tokenizer.bos, tokenizer.pad, *map(tokenizer.special, ROLES.values()), end]
    assert ids == [0, 1, 2, 3, 4, 5]
    assert tokenizer.stop_ids == (end, tokenizer.bos)
    assert tokenizer.document_end == tokenizer.bos
    assert tokenizer.decode([tokenizer.bos, end]) == ""
    assert tokenizer.decode([end], special=True) == "<|end|>"


def test_half_a_character_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"U\+D83D\) at position 3, after 'ab '"):
        tokenizer.encode("ab \ud83d!")


def test_training_gives_the_same_bytes_in_another_process(folder: Path, tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path\n"
        "from rung.tokens.bpe import train_bpe, write_tokenizer\n"
        "write_tokenizer(train_bpe(json.load(sys.stdin), vocab_size=400), Path(sys.argv[1]))\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        input=json.dumps(SENTENCES),
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
        env={"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "5"},
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_saved_copy_is_the_same_bytes(tokenizer: Tokenizer, folder: Path, tmp_path: Path) -> None:
    tokenizer.encode("used before it is saved <|end|>")
    tokenizer.save_into(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_transformers_reads_the_folder_and_agrees(tokenizer: Tokenizer, folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        tokenizer.bos,
        tokenizer.special(END),
        tokenizer.pad,
    )
    assert len(theirs) == tokenizer.vocab_size
    for text in [*SENTENCES[:5], "  \n\n\t x", "1234567 a_b.c", "It's we'll"]:
        ids = tokenizer.encode(text).tolist()
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs(text)["input_ids"] == [tokenizer.bos, *ids]
        assert theirs.decode(ids) == text


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "cannot be read"),
        (
            lambda f: (f / "tokenizer.json").write_text(
                re.sub(r"<\|(\w+)\|>", r"<<\1>>", (f / "tokenizer.json").read_text())
            ),
            "names no token that ends a text",
        ),
    ],
)
def test_a_folder_that_is_no_tokenizer_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, break_it, message: str
) -> None:
    tokenizer.save_into(tmp_path)
    break_it(tmp_path)
    with pytest.raises(ArtefactError, match=message):
        load_tokenizer(tmp_path)


# The stage.

ROWS = [
    *((text, "code", "train") for text in SENTENCES),
    *((text.upper() * 3, "loud", "heldout") for text in SENTENCES[:10]),
    *((text, "code", "heldout") for text in SENTENCES[:10]),
]


def test_stage_reports_bytes_per_token_by_domain(tmp_path: Path) -> None:
    corpora = [write_corpus(tmp_path / "a", ROWS), write_corpus(tmp_path / "b", ROWS[:80])]
    context, silent = stage_context(tmp_path / "1", corpora)
    notes = stage.run(context, Config(vocab_size=400))
    report = json.loads((context.out / "report.json").read_text())
    tokenizer = load_tokenizer(context.out)
    loud = [text for text, domain, _ in ROWS if domain == "loud"]
    tokens = sum(len(tokenizer.encode(text)) for text in loud)
    num_bytes = sum(len(text) for text in loud)  # ASCII: one byte a character
    assert report["heldout"]["loud"] == {
        "documents": 10,
        "bytes": num_bytes,
        "tokens": tokens,
        "bytes_per_token": round(num_bytes / tokens, 4),
    }
    code, everything = report["heldout"]["code"], report["heldout"]["all"]
    assert everything["bytes"] == num_bytes + code["bytes"]
    assert code["bytes_per_token"] > report["heldout"]["loud"]["bytes_per_token"]
    assert report["train"]["documents"] == 160  # held-out rows are not trained on
    assert report["vocab_size"] == 400 == report["num_merges"] + 262
    assert notes["figures"]["bytes_per_token"] == everything["bytes_per_token"]
    assert "bytes per token" in silent.lines[-1]


def test_stage_run_twice_writes_the_same_bytes_over_rubbish(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", ROWS)
    contents = []
    for name in ("1", "2"):
        context, _ = stage_context(tmp_path / name, [corpus])
        if name == "2":  # what a killed run may have left
            (context.out / "tokenizer.json").write_text('{"half')
        stage.run(context, Config(vocab_size=350, max_bytes=3000, seed=3))
        contents.append({f.name: f.read_bytes() for f in sorted(context.out.iterdir())})
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == ["report.json", "tokenizer.json", "tokenizer_config.json"]


def test_stage_trains_on_the_train_split_only(tmp_path: Path) -> None:
    rows = [*ROWS, *[("zyzzyva zyzzyva zyzzyva", "code", "heldout")] * 50]
    context, _ = stage_context(tmp_path / "1", [write_corpus(tmp_path / "corpus", rows)])
    stage.run(context, Config(vocab_size=400))
    assert "zyz" not in (context.out / "tokenizer.json").read_text()


def test_stage_says_when_the_text_supports_fewer_entries(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [("aa aa aa", "tiny", "train")])
    context, silent = stage_context(tmp_path / "1", [corpus])
    notes = stage.run(context, Config(vocab_size=4096))
    # 256 bytes, 6 special tokens, and the two pairs that occur twice: "aa" and " aa"
    assert notes["figures"] == {"vocab_size": 264, "bytes_per_token": None}
    assert "264 entries instead of 4,096" in silent.lines[0]
    assert "no held-out text" in silent.lines[1]


def test_stage_refuses_a_corpus_without_training_text(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [("text", "d", "heldout")])
    context, _ = stage_context(tmp_path / "1", [corpus])
    with pytest.raises(DataError, match="no training text"):
        stage.run(context, Config())


def test_a_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocab_size = 261"):
        parse_config(Config, {"vocab_size": 261})


def test_unreadable_corpora_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        list(read_rows(tmp_path / "documents.parquet"))
    (tmp_path / "documents.parquet").write_text("text")
    with pytest.raises(DataError, match="not a readable parquet file"):
        list(read_rows(tmp_path / "documents.parquet"))
    pq.write_table(pa.table({"id": ["a"], "split": ["train"]}), tmp_path / "documents.parquet")
    with pytest.raises(DataError, match=r"no column text; it has: id, split"):
        list(read_rows(tmp_path / "documents.parquet", columns=("id", "text")))


def test_sizes_are_bytes_not_characters(tmp_path: Path) -> None:
    e_acute = "\N{LATIN SMALL LETTER E WITH ACUTE}"  # 2 bytes in UTF-8
    corpus = write_corpus(tmp_path / "c", [(e_acute, "d", "train"), ("abc", "d", "train")])
    assert text_sizes(corpus.file("documents.parquet"), split="train").tolist() == [2, 3]


@given(sizes=st.lists(st.integers(1, 100), min_size=1, max_size=50), max_bytes=st.integers(0, 3000))
def test_chosen_rows_fill_the_limit(sizes: list[int], max_bytes: int) -> None:
    array = np.array(sizes)
    chosen = choose_rows(array, max_bytes=max_bytes, seed=1)
    if max_bytes == 0 or sum(sizes) <= max_bytes:
        assert chosen.all()
    else:
        assert array[chosen].sum() <= max_bytes or chosen.sum() == 1
        assert array[chosen].sum() + max(sizes) > max_bytes
