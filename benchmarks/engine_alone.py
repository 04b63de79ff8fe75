"""The engine without a server, for benchmarks/serving.py: requests come as lines of JSON.

`engine_alone.py MODEL`. A line is a list of requests; the answer is a line, too: new tokens,
seconds, and processor seconds. Between two lines the process sleeps.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rung.engine.engine import Engine
from rung.engine.generate import Ready
from rung.engine.request import Request
from rung.engine.sampling import Sampling
from rung.model.load import load_model
from rung.model.precision import pick_dtype
from rung.tokens.tokenizer import load_tokenizer


def request_of(body: dict[str, Any], stop_ids: tuple[int, ...]) -> Request:
    """The body of a completion as the server reads it."""
    sampling = Sampling(
        max_new_tokens=body["max_tokens"],
        temperature=body["temperature"],
        seed=body["seed"],
        stop_ids=stop_ids,
    )
    return Request(np.array(body["prompt"], dtype=np.int32), sampling)


def work(engine: Engine, ready: Ready, requests: Sequence[Request]) -> int:
    """New tokens of all requests, given to the engine at once."""
    made = 0
    for request in requests:
        engine.submit(request)
    with ready:
        while engine.busy:
            made += len(engine.step())
    return made


def main() -> None:
    folder, rows = Path(sys.argv[1]), int(sys.argv[2])
    model = load_model(folder)
    ready = Ready(model, pick_dtype("auto"))
    stop_ids = load_tokenizer(folder).stop_ids
    engine = Engine(model, max_rows=rows)
    print("ready", flush=True)
    for line in sys.stdin:
        requests = [request_of(body, stop_ids) for body in json.loads(line)]
        began, cpu = time.perf_counter(), time.process_time()
        made = work(engine, ready, requests)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        print(json.dumps({"tokens": made, "seconds": seconds, "cpu": cpu}), flush=True)


if __name__ == "__main__":
    main()
