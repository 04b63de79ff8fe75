"""The arithmetic of benchmarks/serving.py, and its malformed requests against the server."""

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from serve_fake import serving

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gaps  # noqa: E402
import light_client  # noqa: E402
import load_requests  # noqa: E402
import overhead  # noqa: E402
import overload  # noqa: E402
import served  # noqa: E402
import soak  # noqa: E402

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data):
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(value):
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def answered(*parts, times=None, ended=1.0, aborted=False):
    return light_client.Answer(0.0, ended, aborted, list(parts), times or [0.0] * len(parts))


def test_a_stream_is_read_when_it_is_there():
    usage = {"choices": [], "usage": {"completion_tokens": 7}}
    answer = answered(
        HEAD % b"text/event-stream; charset=utf-8" + chunk(event({"n": 1})),
        chunk(event({"n": "two\n\nlines"}) + event(usage)) + chunk(b"data: [DONE]\n\n"),
        b"0\r\n\r\n",
    )
    assert answer.status == 200
    assert answer.events == [{"n": 1}, {"n": "two\n\nlines"}, usage, "[DONE]"]
    assert answer.new_tokens == 7
    cut = answered(HEAD % b"text/event-stream" + chunk(event({"n": 1})) + b"ff\r\nda")
    assert cut.new_tokens == 0
    assert answered().status == 0  # the connection ended without an answer


def test_events_have_the_time_of_the_part_that_ends_them():
    parts = [b"head\r\n\r\n", b"data: a\n\ndata: b\n", b"\ndata: c\n\n", b"data: d"]
    assert light_client.times_of_events(parts, [1.0, 2.0, 3.0, 4.0]) == [2.0, 3.0, 3.0]


def test_gaps_are_those_that_touch_a_window():
    # gaps 0-1, 1-2, 2-5 and 5-6; the window 1.5 to 3 touches the second and the third
    found = gaps.gaps_within([[0.0, 1.0, 2.0, 5.0, 6.0], [2.5]], [(1.5, 3.0)])
    assert found.tolist() == [1.0, 3.0]


def test_gap_ratio_is_the_worst_while_it_arrives_over_the_usual():
    # 20 ms a token for 100 tokens; then 40 ms for 100 tokens, in which a prompt arrives
    times = np.cumsum([0.02] * 100 + [0.04] * 100)
    edge = float(times[99])
    windows = gaps.Windows([(0.0, edge)], [(edge, 9.0)], [times.tolist()], [4.0])
    found = gaps.figures(windows)
    assert found["ratio"] == 2.0
    assert found["ratio_same"] == found["ratio_quiet"] == 1.0
    assert found["quiet"] == {"gaps": 99, "median_ms": 20.0, "p99_ms": 20.0, "max_ms": 20.0}
    assert found["arriving"]["gaps"] == 100


def test_overhead_ratio_is_taken_within_a_round():
    engine = {"tokens": 400, "seconds": 1.0, "cpu": 2.0}
    server = {"tokens": 400, "seconds": 1.25, "cpu": 2.4, "client_cpu": 0.25}
    slow = [{**side, "seconds": 2 * side["seconds"]} for side in (engine, server)]
    found = overhead.overhead_figures([(engine, server), (slow[0], slow[1])], cores=2)
    assert found["ratio"] == {"min": 0.8, "median": 0.8, "max": 0.8}
    assert found["rate"]["engine"] == {"min": 200.0, "median": 300.0, "max": 400.0}
    assert found["cpu_ms_per_token"]["server"]["median"] == 6.0  # 2.4 s / 400
    assert found["client_share_of_cpu"]["max"] == 0.1  # 0.25 s of 2 x 1.25 s


def test_goodput_counts_what_ends_well_within_the_phase():
    body = json.dumps({"usage": {"completion_tokens": 10}}).encode()
    fine = HEAD % b"application/json" + chunk(body) + b"0\r\n\r\n"
    busy = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 2\r\n\r\n{}"
    phase = overload.Phase(begin=2.0, end=6.0)
    for answer in (
        answered(fine, ended=1.0),  # too early
        answered(fine, ended=3.0),
        answered(fine, ended=4.0, aborted=True),
        answered(busy, ended=5.0),
        answered(fine, ended=5.0),
        answered(fine, ended=7.0),  # too late
    ):
        phase.add(answer)
    assert phase.goodput == 5.0  # 20 tokens in 4 s
    assert phase.finished == 0.5
    assert phase.statuses == {200: 2, 429: 1}
    assert phase.with_retry_after == 1


def test_memory_is_flat_or_not():
    # the first quarter fills up, then 2 MB a minute: medians 1,030 of minutes 10-20, 1,070 of 30-40
    samples = [(60.0 * m, 500.0 if m < 10 else 1000.0 + 2 * m) for m in range(40)]
    found = soak.memory_figures(samples)
    assert found["rss_mb_second_quarter"] == pytest.approx(1029.0)
    assert found["rss_mb_last_quarter"] == pytest.approx(1069.0)
    assert found["mb_per_minute"] == 2.0
    assert found["flat"]  # 3.9 % more
    assert not soak.memory_figures([(m, 1000.0 + 10 * m) for m in range(40)])["flat"]


def test_metrics_are_read_by_name():
    text = '# HELP rung_running x\nrung_running 3.0\nrung_http_requests_total{status="200"} 5.0\n'
    found = served.parse_metrics(text)
    assert found == {"rung_running": 3.0, 'rung_http_requests_total{status="200"}': 5.0}


def test_made_up_words_repeat():
    words = served.made_up_words(3000)
    assert len(set(words)) == 3000
    assert words == served.made_up_words(3000)


def test_the_mix_has_every_kind_and_repeats():
    draws = [load_requests.Mix(seed).draw() for seed in range(300)]
    assert draws == [load_requests.Mix(seed).draw() for seed in range(300)]
    kinds = {wanted.kind for wanted in draws}
    assert {"chat", "completion", "n > 1", "logprobs", "scored", "schema", "embeddings"} <= kinds
    bodies = [json.loads(wanted.body) for wanted in draws]
    assert {body.get("stream") for body in bodies} == {True, None}


def test_faults_are_found():
    wanted = load_requests.Wanted("n > 1", "/v1/chat/completions", b"", choices=2)
    ends = [{"choices": [{"index": i, "finish_reason": "stop"}]} for i in range(2)]
    usage = {"choices": [], "usage": {"completion_tokens": 7}}

    def told(*values, end=b"data: [DONE]\n\n"):
        body = b"".join(map(event, values)) + end
        return load_requests.fault(
            wanted, answered(HEAD % b"text/event-stream" + chunk(body) + b"0\r\n\r\n")
        )

    assert told(*ends, usage) == ""
    assert "broke off" in told(*ends, usage, end=b"")
    assert "of choices [0]" in told(ends[0], usage)
    assert "no usage" in told(*ends)
    assert "an error" in told(ends[0], {"error": {"message": "it failed"}})
    assert "status 0" in load_requests.fault(wanted, answered())
    assert load_requests.fault(wanted, answered(aborted=True)) == ""


def test_malformed_requests_are_refused_in_openais_shape(tmp_path):
    async def send(address):
        found = []
        for wanted in load_requests.MALFORMED:
            request = light_client.post(wanted.path, wanted.body, address)
            answer = await light_client.ask(address, request)
            found.append(load_requests.fault(wanted, answer))
        return found

    names = {served.NAME: "a" * 64}
    with serving(tmp_path, names=names, context=served.CONTEXT) as (client, _):
        faults = asyncio.run(send(("127.0.0.1", client.port)))
        assert [told for told in faults if told] == []
