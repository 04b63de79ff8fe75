"""Words counted, and logistic regression on the counts: what a classifier has to beat.

Run by the peers' Python, with scikit-learn in it, on a `labels` artefact:
python peers_tfidf.py FOLDER prints one JSON object. The strength of regularisation is chosen by
cross-validation on the training texts; the held-out texts are only measured on.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

STRENGTHS = (1.0, 4.0, 16.0, 64.0)


def read_side(path: Path) -> tuple[list[str], list[str]]:
    """(texts, their labels) of one side of a single-label artefact."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["text"] for row in rows], [row["labels"][0] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="a labels artefact: train.jsonl, heldout.jsonl")
    folder = parser.parse_args().folder
    began = time.perf_counter()
    texts, labels = read_side(folder / "train.jsonl")
    heldout, truth = read_side(folder / "heldout.jsonl")
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+"),
        LogisticRegression(max_iter=2000),
    )
    search = GridSearchCV(model, {"logisticregression__C": STRENGTHS}, cv=5)
    search.fit(texts, labels)
    given = search.predict(heldout)
    right = sum(a == b for a, b in zip(given, truth, strict=True))
    found = {
        "accuracy": right / len(truth),
        "right": right,
        "n": len(truth),
        "n_train": len(texts),
        "macro_f1": float(f1_score(truth, given, average="macro")),
        "C": search.best_params_["logisticregression__C"],
        "seconds": round(time.perf_counter() - began, 2),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
