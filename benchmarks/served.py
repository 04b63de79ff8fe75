"""A random model behind `rung serve`, in a process of its own, and what can be seen of it outside.

The model is a Llama of random weights. Its tokenizer is a byte-level BPE over made-up words, the
same on every machine: it spells JSON and any text, and has the whole vocabulary of the shape.
"""

import gc
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from kills import processor_seconds
from workload import Shape, build_weights

ROOT = Path(__file__).resolve().parents[1]
NAME = "load"
CONTEXT = 4096
STOP_SECONDS = 20.0
_SYLLABLES = [a + b for a in "bdfghjklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "or")]


def made_up_words(num: int, *, seed: int = 0) -> list[str]:
    """Words of two to four syllables, each of them once, the same for the same seed."""
    rng = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < num:
        for parts in rng.integers(0, len(_SYLLABLES), (num, 4)):
            found["".join(_SYLLABLES[i] for i in parts[: 2 + parts[0] % 3])] = None
    return list(found)[:num]


def build_served_model(folder: Path, shape: Shape, *, seed: int = 0) -> None:
    """A Hugging Face folder that `rung import` takes."""
    from rung.tokens.bpe import train_bpe, write_tokenizer
    from rung.tokens.special import END, PAD, SPECIAL_TOKENS

    words = made_up_words(shape.vocab + 1000, seed=seed)
    # twice each: the trainer passes over pairs that it saw once
    lines = [" ".join(words[at : at + 50]) for at in range(0, len(words), 50)] * 2
    bpe = train_bpe(lines, vocab_size=shape.vocab)
    assert bpe.get_vocab_size() == shape.vocab, bpe.get_vocab_size()
    pad, end = SPECIAL_TOKENS.index(PAD), SPECIAL_TOKENS.index(END)
    build_weights(folder, shape, seed=seed, context=CONTEXT, pad=pad, end=end)
    write_tokenizer(bpe, folder)


def import_model(folder: Path, shape: Shape) -> Path:
    """Build a model in `folder`, put it into a store there as NAME; the artefact's folder."""
    build_served_model(folder / "source", shape)
    words = ["import", str(folder / "source"), "--as", NAME, "--store", str(folder / "store")]
    done = subprocess.run(
        [sys.executable, "-m", "rung", *words, "--json"],
        env=environment(threads=os.cpu_count() or 1),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"the model could not be imported:\n{done.stderr[-2000:]}")
    from rung.store.store import Store

    # The clients are this process: what was imported to build the model stays, and their
    # collector need not look through it again and again.
    gc.collect()
    gc.freeze()
    return Store(folder / "store").open(NAME).path


def environment(*, threads: int) -> dict[str, str]:
    """The same for the server and the engine alone: threads, no network, this checkout."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }


class Server:
    """A running `rung serve`. address: (host, port). log: what it wrote to stderr."""

    def __init__(self, process: "subprocess.Popen[str]", url: str, log: Path) -> None:
        self._process = process
        parts = urlsplit(url)
        self.address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.log = log

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def cpu_seconds(self) -> float:
        """Processor time of all its threads so far."""
        return processor_seconds(self._process.pid)

    def rss_mb(self) -> float:
        status = Path("/proc", str(self._process.pid), "status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) * 1024 / 1e6 if found else 0.0

    def get(self, path: str) -> tuple[int, str]:
        """(status, body)"""
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """Samples of /metrics by name, labels included."""
        return parse_metrics(self.get("/metrics")[1])

    def at_work(self) -> tuple[int, int]:
        """(samples at work, samples that wait)"""
        found = self.metrics()
        return int(found["rung_running"]), int(found["rung_waiting"])

    def wait_until_idle(self, *, seconds: float = 30.0) -> int:
        """Samples that are still at work or waiting after so long: 0 where no slot leaked."""
        until = time.monotonic() + seconds
        while (left := sum(self.at_work())) and time.monotonic() < until:
            time.sleep(0.2)
        return left


def parse_metrics(text: str) -> dict[str, float]:
    """Prometheus' text format: name{labels} -> value."""
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#"]
    return {name: float(value) for name, value in lines}


@contextmanager
def serving(folder: Path, *, rows: int, queue: int, threads: int) -> Iterator[Server]:
    """The model of `import_model` behind `rung serve`; the process ends with the block."""
    words = ["serve", NAME, "--port", "0", "--max-rows", str(rows), "--max-queue", str(queue)]
    log = folder / "server.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "rung", *words, "--store", str(folder / "store"), "--json"],
            env=environment(threads=threads),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    try:
        yield Server(process, _url_of(process, log), log)
    finally:
        _stop(process)


def _url_of(process: "subprocess.Popen[str]", log: Path) -> str:
    """Waits until the models are loaded: then the server prints one JSON value."""
    assert process.stdout is not None
    text = ""
    while line := process.stdout.readline():
        text += line
        try:
            said: dict[str, Any] = json.loads(text)
            return str(said["url"])
        except json.JSONDecodeError:
            continue
    raise SystemExit(f"`rung serve` did not start:\n{log.read_text()[-2000:]}")


def _stop(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # the second one does not wait for what runs
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.stdout is not None:
        process.stdout.close()
