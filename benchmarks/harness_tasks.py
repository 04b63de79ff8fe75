"""Three public sets as task files: python benchmarks/harness_tasks.py DATA OUT [--items 200].

DATA holds arc_challenge/train.jsonl, blimp/BLiMP.zip and lambada's development text; OUT gets
arc.jsonl (questions with four choices), blimp.jsonl (pairs of sentences, no question) and
lambada.jsonl (the last word of a passage). Items are evenly spaced over each set.
"""

import argparse
import gzip
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def arc(folder: Path) -> Iterator[Row]:
    with (folder / "arc_challenge" / "train.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            labels, texts = row["choices"]["label"], row["choices"]["text"]
            if len(set(texts)) == len(texts):
                yield {
                    "id": row["id"],
                    "prompt": f"Question: {row['question'].strip()}\nAnswer:",
                    "choices": texts,
                    "answer": labels.index(row["answerKey"]),
                }


def blimp(folder: Path) -> Iterator[Row]:
    with zipfile.ZipFile(folder / "blimp" / "BLiMP.zip") as archive:
        for name in sorted(archive.namelist()):
            if not name.startswith("data/") or not name.endswith(".jsonl"):
                continue  # what the archiver of another system left
            for line in archive.read(name).decode("utf-8").splitlines():
                row = json.loads(line)
                yield {
                    "id": f"{row['UID']}/{row['pairID']}",
                    "choices": [row["sentence_good"], row["sentence_bad"]],
                    "answer": 0,
                }


def lambada(folder: Path) -> Iterator[Row]:
    path = folder / "lambada" / "lambada_development_plain_text.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            before, _, last = line.strip().rpartition(" ")
            yield {"prompt": before, "answer": last}


def spaced(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` rows, evenly spaced."""
    count = min(count, len(rows))
    return [rows[at * len(rows) // count] for at in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--items", type=int, default=200, help="of each task")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for read in (arc, blimp, lambada):
        rows = spaced(list(read(options.data)), options.items)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (options.out / f"{read.__name__}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
