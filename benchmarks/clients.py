"""Programs that speak OpenAI's API beside `rung serve`, behaviour by behaviour.

    python benchmarks/clients.py [--clients openai-2,curl] [--cache FOLDER]

Each client lives in an environment of its own, made on first use, and is put through a script of
benchmarks/clients/. The model is tiny and random, so behaviours are judged by their form. A cell
is ok, FAIL, or - where the client has no such thing. The last line is JSON; exit code 1 where a
cell fails or no client could be had.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SCRIPTS = HERE / "clients"
sys.path[:0] = [str(SCRIPTS), str(ROOT / "tests")]

from behaviours import BEHAVIOURS  # noqa: E402
from environments import CLIENTS, Client, NotInstalledError, make_environment  # noqa: E402

KEY = "a-key-of-this-benchmark"
MODEL = "tiny"
LIMIT = 900  # seconds of one client; a quiet machine needs under 30


@dataclass
class Column:
    """A client's cells: behaviour -> None where it is as it should be, else the error."""

    version: str = "?"
    cells: dict[str, str | None] = field(default_factory=dict)

    @property
    def errors(self) -> dict[str, str]:
        return {name: error for name, error in self.cells.items() if error is not None}

    def word(self, behaviour: str) -> str:
        if behaviour not in self.cells:
            return "-"
        return "ok" if self.cells[behaviour] is None else "FAIL"


def read_column(lines: Sequence[Mapping[str, Any]], *, end: str) -> Column:
    """What a script told; behaviours that it announced and did not come to fail with `end`, how
    its process ended."""
    if not lines:
        return Column(cells=dict.fromkeys(BEHAVIOURS, f"nothing was checked: {end}"))
    first, *rest = lines
    told = {line["behaviour"]: line["error"] for line in rest}
    missing = f"it was not come to: {end}"
    cells = {name: told.get(name, missing) for name in BEHAVIOURS if name in first["behaviours"]}
    return Column(first["version"], cells)


def check(client: Client, home: Path, *, url: str, scratch: Path) -> Column:
    """One client's script, in the client's environment."""
    begin = make_environment(client, home)
    results = scratch / "results.jsonl"
    results.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            [*begin, str(SCRIPTS / client.script), str(results)],
            cwd=scratch,
            env=environment_of_client(home, url=url, scratch=scratch),
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        tail = " / ".join(done.stderr.strip().splitlines()[-4:])
        end = f"exit code {done.returncode}: {tail}"
    except subprocess.TimeoutExpired:
        end = f"not done in {LIMIT} s"
    written = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    return read_column([json.loads(line) for line in written], end=end)


def environment_of_client(home: Path, *, url: str, scratch: Path) -> dict[str, str]:
    """No network but the server's, no telemetry, nothing of the user's own settings."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return {
        **kept,
        "HOME": str(scratch),
        "CHECK_URL": f"{url}/v1",
        "CHECK_KEY": KEY,
        "CHECK_MODEL": MODEL,
        "CHECK_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LLM_USER_PATH": str(scratch / "llm"),
        "PYDANTIC_AI_DISABLE_TELEMETRY": "1",
    }


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of `rung serve` over a tiny model, in a store under `folder`."""
    from tiny import make_tiny

    make_tiny(folder / MODEL)
    rung = [sys.executable, "-m", "rung"]
    store = ["--store", str(folder / "store")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RUNG_API_KEY": KEY}
    subprocess.run(
        [*rung, "import", str(folder / MODEL), "--as", MODEL, *store, "--json"],
        check=True,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    with subprocess.Popen(
        [*rung, "serve", MODEL, *store, "--port", "0", "--json", "--drain-seconds", "1"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            said = ""
            while line := server.stdout.readline():
                said += line
                if line.rstrip() == "}":  # the JSON that says it is ready
                    break
            else:
                raise SystemExit("the server ended before it was ready; what it said is above")
            yield json.loads(said)["url"]
        finally:
            server.terminate()


def print_table(columns: Mapping[str, Column]) -> None:
    """A row a behaviour, a column a client."""
    widths = {name: max(len(name), len(column.version)) for name, column in columns.items()}
    print(f"\n{'':<30}" + "  ".join(f"{name:<{width}}" for name, width in widths.items()))
    print(f"{'version':<30}" + "  ".join(f"{columns[n].version:<{w}}" for n, w in widths.items()))
    for behaviour, title in BEHAVIOURS.items():
        words = (f"{columns[n].word(behaviour):<{w}}" for n, w in widths.items())
        print(f"{title:<30}" + "  ".join(words))
    for name, column in columns.items():
        for behaviour, error in column.errors.items():
            print(f"\n{name}, {BEHAVIOURS[behaviour]}:\n  {error}")


def summarise(columns: Mapping[str, Column], left_out: Mapping[str, str]) -> dict[str, Any]:
    passed = {name: len(c.cells) - len(c.errors) for name, c in columns.items()}
    return {
        "passed": sum(passed.values()),
        "cells": sum(len(column.cells) for column in columns.values()),
        "clients": {
            name: {
                "version": column.version,
                "passed": passed[name],
                "cells": len(column.cells),
                "errors": column.errors,
            }
            for name, column in columns.items()
        },
        "left_out": dict(left_out),
    }


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", default="", help="comma-separated; all")
    parser.add_argument("--cache", type=Path, default=HERE / ".clients", help="the environments")
    options = parser.parse_args(words)
    options.clients = options.clients.split(",") if options.clients else list(CLIENTS)
    if unknown := [name for name in options.clients if name not in CLIENTS]:
        parser.error(f"no client {unknown[0]!r}; there are {', '.join(CLIENTS)}")
    return options


def main() -> None:
    options = parse_options()
    columns: dict[str, Column] = {}
    left_out: dict[str, str] = {}
    with TemporaryDirectory(prefix="rung-clients-") as name, serving(Path(name)) as url:
        for client in options.clients:
            home = options.cache.resolve() / client
            scratch = Path(name) / "scratch" / client
            scratch.mkdir(parents=True)
            try:
                columns[client] = check(CLIENTS[client], home, url=url, scratch=scratch)
            except NotInstalledError as error:
                left_out[client] = str(error)
                print(f"{client:<12} is left out: {error}", flush=True)
                continue
            column = columns[client]
            good = len(column.cells) - len(column.errors)
            print(f"{client:<12} {column.version:<10} {good} of {len(column.cells)}", flush=True)
    print_table(columns)
    summary = summarise(columns, left_out)
    print(json.dumps(summary))
    if not columns or summary["passed"] < summary["cells"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
