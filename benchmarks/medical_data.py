"""medquad as conversations for `dataset`: python benchmarks/medical_data.py MEDQUAD.jsonl.gz OUT.

All answers to one question lie on one side: OUT/train.jsonl and OUT/heldout.jsonl, 90 to 10.
"""

import gzip
import hashlib
import json
import sys
from pathlib import Path

MAX_ANSWER = 3000  # characters; the longest are whole brochures


def main(source: str, out: str) -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    sides = {name: (folder / f"{name}.jsonl").open("w") for name in ("train", "heldout")}
    with gzip.open(source, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            question = " ".join(row["question"].split())
            answer = row["answer"].strip()
            if not answer or len(answer) > MAX_ANSWER:
                continue
            digest = hashlib.sha256(question.lower().encode()).digest()
            side = "heldout" if digest[0] < 26 else "train"
            sides[side].write(json.dumps({"prompt": question, "completion": answer}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
