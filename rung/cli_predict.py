"""The command that labels texts: predict."""

import json as json_module
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rung.cli_output import JsonOption, StoreOption, guarded, print_json

if TYPE_CHECKING:
    from rung.engine.classify import TextClassifier

CHUNK = 256  # texts labelled before their lines are written
SHOWN = 70  # characters of a text in the terminal


def register(app: typer.Typer) -> None:
    """Add the command of this file to `app`."""
    example = 'rung predict classify/classifier "The plot drags."'
    app.command("predict", epilog=f"Example: {example}")(guarded(predict))


def predict(
    name: Annotated[
        str, typer.Argument(help="A classifier: name, entry name, or the first digits of its id.")
    ],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Default: one a line from stdin."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Rows of .jsonl .csv .tsv .parquet .txt; JSON lines come out."),
    ] = None,
    text_key: Annotated[str, typer.Option(help="Key of the text; default: the usual names.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write here instead of the terminal.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Label texts, with a calibrated probability for every label."""
    from rung.engine.classify import TextClassifier
    from rung.errors import ConfigError

    if file is not None and texts:
        raise ConfigError("texts and --file both say what to label; use one of them")
    rows = _rows(file, texts, text_key=text_key)
    classifier = TextClassifier(_classifier_folder(name, store=store))
    labelled = _label(classifier, rows)
    if json and out is None:
        print_json(list(labelled))
    elif file is None and out is None:
        for row in labelled:
            typer.echo(_line(row))
    else:
        with out.open("w", encoding="utf-8") if out else nullcontext(sys.stdout) as target:
            for row in labelled:
                target.write(json_module.dumps(row, ensure_ascii=False) + "\n")
    if classifier.truncated:
        limit = classifier.model.labelling.max_tokens
        typer.echo(
            f"{classifier.truncated} texts are longer than {limit} tokens: their end was not read",
            err=True,
        )


def _rows(
    file: Path | None, texts: list[str] | None, *, text_key: str
) -> list[tuple[dict[str, Any], str]]:
    """(row, text) of what is to be labelled, checked before a model is loaded."""
    from rung.errors import DataError
    from rung.text.labelled import read_texts

    if file is not None:
        if not file.is_file():
            raise DataError(f"{file}: no such file (in {Path.cwd()})")
        return list(read_texts(file, text_key=text_key))
    given = texts or [line.rstrip("\n") for line in sys.stdin]
    return [({"text": text}, text) for text in given if text.strip()]


def _label(
    classifier: "TextClassifier", rows: Sequence[tuple[dict[str, Any], str]]
) -> Iterator[dict[str, Any]]:
    """Each row with `predicted` (a label, or a list of them) and `probabilities` added."""
    several = classifier.model.labelling.multi_label
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        found = classifier.predict([text for _, text in some])
        for (row, _), one in zip(some, found, strict=True):
            shown = {label: round(p, 4) for label, p in one.probabilities.items()}
            predicted = list(one.labels) if several else one.labels[0]
            yield {**row, "predicted": predicted, "probabilities": shown}


def _line(row: dict[str, Any]) -> str:
    """positive 0.93  The plot drags, but ..."""
    predicted = row["predicted"]
    chosen = predicted if isinstance(predicted, list) else [predicted]
    labels = ", ".join(f"{label} {row['probabilities'][label]:.2f}" for label in chosen)
    text = " ".join(row["text"].split())
    text = text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
    return f"{labels or '(no label)'}\t{text}"


def _classifier_folder(name: str, *, store: Path | None) -> Path:
    from rung.errors import ArtefactError
    from rung.model.classifier import backbone_folder
    from rung.store.store import Store

    opened = Store(store)
    artefact = opened.checked(opened.open(name))
    if artefact.kind != "classifier":
        have = [n for n, id in opened.names().items() if opened.get(id).kind == "classifier"]
        raise ArtefactError(
            f"{name} is a {artefact.kind}, not a classifier; classifiers: "
            f"{', '.join(have) or 'none yet, make one with `rung classify`'}"
        )
    base = backbone_folder(artefact.path)
    if base != artefact.path:
        opened.checked(opened.get(base.name))
    return artefact.path
