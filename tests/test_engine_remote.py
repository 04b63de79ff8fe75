"""Another engine behind a url: a real server, what it is sent, and every way it can fail."""

import importlib.util
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from openai_server import Api, error, serving
from train_tiny import tiny_tokenizer

from rung.config import parse_config
from rung.engine.remote import EngineConfig, RemoteEngine, sample_seed
from rung.engine.sampling import Sampling
from rung.engine.transport import retry_after
from rung.engine.vllm_local import VllmEngine
from rung.errors import ConfigError, EngineError, ResourceError
from rung.tokens.chat import render
from rung.tokens.tokenizer import Tokenizer

SAMPLING = Sampling(max_new_tokens=9, temperature=0.5, stop_ids=(5, 0))
QUESTION = [{"role": "user", "content": "what is it?"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def api(tokenizer: Tokenizer) -> Iterator[Api]:
    with serving(Api(tokenizer)) as api:
        yield api


@pytest.fixture
def open_engine(api: Api) -> Iterator:
    """Engines that pause for no time and say how long they would have."""
    made = []

    def open_one(url: str | None = None, **options) -> RemoteEngine:
        engine = RemoteEngine(api.url if url is None else url, wait=pauses.append, **options)
        made.append(engine)
        return engine

    pauses: list[float] = []
    open_one.pauses = pauses  # type: ignore[attr-defined]
    yield open_one
    for engine in made:
        engine.close()


def prompt(tokenizer: Tokenizer) -> np.ndarray:
    return render(tokenizer, QUESTION, generation_prompt=True).ids


def test_ids_go_out_and_come_back(api: Api, open_engine, tokenizer: Tokenizer) -> None:
    engine = open_engine()
    assert engine.connect(tokenizer) == f"tiny at {api.url}: prompts are sent as ids"
    ids = prompt(tokenizer)
    rows = engine.generate([ids, ids], SAMPLING, num_samples=3, keys=[4, 8])
    assert [len(row) for row in rows] == [3, 3]
    seeds = [sample_seed(0, key, sample) for key in (4, 8) for sample in range(3)]
    assert len(set(seeds)) == 6
    for completion, seed in zip([c for row in rows for c in row], seeds, strict=True):
        text = f" answer {seed % 9}"
        assert completion.text == text
        assert completion.stopped
        assert completion.exact
        assert completion.num_tokens == 7
        # the server leaves out the token that ended the answer
        assert completion.ids.tolist() == [*tokenizer.encode(text).tolist(), 5]
        assert completion.ids.dtype == np.int32
    bodies = api.bodies("/v1/completions")[1:]  # the first asks whether ids are taken
    assert sorted(body["seed"] for body in bodies) == sorted(seeds)
    assert all(
        body | {"seed": 0}
        == {
            "model": "tiny",
            "prompt": ids.tolist(),
            "max_tokens": 9,
            "temperature": 0.5,
            "seed": 0,
            "stop_token_ids": [5, 0],
            "add_special_tokens": False,
            "return_token_ids": True,
        }
        for body in bodies
    )


def test_text_is_encoded_again_where_no_ids_come(api: Api, open_engine, tokenizer) -> None:
    api.gives_ids, api.finish = False, "length"
    api.answer = lambda body: "good answer"
    engine = open_engine()
    engine.connect(tokenizer)
    [[one]] = engine.generate([prompt(tokenizer)], SAMPLING)
    assert one.ids.tolist() == tokenizer.encode("good answer").tolist()
    assert not one.stopped
    assert not one.exact


def test_ids_written_into_log_probs_are_read(api: Api, open_engine, tokenizer) -> None:
    names = {"tokens": ["token_id:9", "token_id:5"]}
    told = {"choices": [{"text": "x", "finish_reason": "stop", "logprobs": names}]}
    engine = open_engine()
    engine.connect(tokenizer)
    api.failures = [(200, {}, told)]
    [[one]] = engine.generate([prompt(tokenizer)], SAMPLING)
    assert one.ids.tolist() == [9, 5]
    assert one.exact
    api.failures = [(200, {}, {"choices": [{"text": "x", "token_ids": [99999]}]})]
    with pytest.raises(EngineError, match="99999 is not of this vocabulary of"):
        engine.generate([prompt(tokenizer)], SAMPLING)


def test_a_server_that_takes_no_ids_gets_text(api: Api, open_engine, tokenizer) -> None:
    api.takes_ids = False
    engine = open_engine()
    assert engine.connect(tokenizer).endswith("sent as text: it takes no token ids")
    engine.generate([prompt(tokenizer)], SAMPLING)
    body = api.bodies("/v1/completions")[-1]
    assert body["prompt"] == "<|endoftext|><|user|>what is it?<|end|><|assistant|>"
    assert body["add_special_tokens"] is False


def test_another_vocabulary_gets_messages(
    api: Api, open_engine, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from rung.tokens.bpe import train_bpe, write_tokenizer
    from rung.tokens.tokenizer import load_tokenizer

    write_tokenizer(train_bpe(["Na\u00efve cafes. It's def "] * 9, vocab_size=280), tmp_path)
    api.tokenizer = load_tokenizer(tmp_path)
    engine = open_engine()
    assert "its vocabulary is another" in engine.connect(tokenizer)
    [[one]] = engine.generate([prompt(tokenizer)], SAMPLING, messages=[QUESTION])
    assert api.bodies("/v1/chat/completions")[-1]["messages"] == QUESTION
    assert "stop_token_ids" not in api.bodies("/v1/chat/completions")[-1]
    assert tokenizer.decode(one.ids) == one.text
    assert not one.exact
    with pytest.raises(ConfigError, match="these prompts are no conversations; set send to ids"):
        engine.generate([prompt(tokenizer)], SAMPLING)
    for send in ("ids", "text"):
        with pytest.raises(ConfigError, match=f"cannot be sent {send}; set send to messages"):
            open_engine(send=send).connect(tokenizer)


def test_a_server_that_does_not_tell_its_vocabulary(api: Api, open_engine, tokenizer) -> None:
    api.tokenizer = None
    assert "does not tell its vocabulary" in open_engine().connect(tokenizer)
    assert open_engine(send="ids").connect(tokenizer).endswith("sent as ids")


def test_a_judge_is_asked_without_a_tokenizer(api: Api, open_engine) -> None:
    api.answer = lambda body: "9 of 10"
    engine = open_engine()
    engine.connect()
    [[one]] = engine.chat([QUESTION], SAMPLING)
    assert (one.text, one.stopped, one.num_tokens, len(one.ids)) == ("9 of 10", True, 7, 0)


def test_sampling_is_sent_where_it_is_set(api: Api, open_engine, tokenizer) -> None:
    engine = open_engine()
    engine.connect()
    engine.chat([QUESTION], Sampling(top_k=3, top_p=0.5))
    body = api.bodies("/v1/chat/completions")[-1]
    assert (body["top_k"], body["top_p"], body["max_tokens"]) == (3, 0.5, 128)
    engine.chat([QUESTION], Sampling())
    assert not {"top_k", "top_p"} & set(api.bodies("/v1/chat/completions")[-1])


def test_the_newer_name_of_the_limit_is_learned(api: Api, open_engine) -> None:
    engine = open_engine(concurrency=1)
    engine.connect()
    api.failures = [(400, {}, error("Use 'max_completion_tokens' instead of 'max_tokens'."))]
    engine.chat([QUESTION, QUESTION], SAMPLING)
    bodies = api.bodies("/v1/chat/completions")
    assert ["max_tokens" in body for body in bodies] == [True, False, False]
    assert bodies[-1]["max_completion_tokens"] == 9


def test_requests_run_at_once_and_come_back_in_order(api: Api, open_engine) -> None:
    engine = open_engine(concurrency=4)
    engine.connect()
    api.answer = lambda body: body["messages"][0]["content"]
    barrier = threading.Barrier(4, timeout=20)  # broken unless four are there together
    real = api.reply

    def together(path, headers, body):
        if path.endswith("completions"):
            barrier.wait()
        return real(path, headers, body)

    api.reply = together  # type: ignore[method-assign]
    asked = [[{"role": "user", "content": str(i)}] for i in range(8)]
    rows = engine.chat(asked, SAMPLING, num_samples=2)
    assert [[c.text for c in row] for row in rows] == [[str(i)] * 2 for i in range(8)]
    assert api.most_at_once == 4


BUSY = (429, {"Retry-After": "3"}, error("full"))


def test_a_busy_server_is_asked_again(api: Api, open_engine) -> None:
    engine = open_engine()
    engine.connect()
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    api.failures = [
        BUSY,
        (503, {"retry-after-ms": "1500"}, b"<html>loading</html>"),
        (502, {"Retry-After": date}, None),
        (500, {}, error("oops")),
        (0, {}, None),
    ]
    [[one]] = engine.chat([QUESTION], SAMPLING)
    assert one.text.startswith(" answer")
    told, by_ms, by_date, after_500, after_break = open_engine.pauses
    assert (told, by_ms) == (3.0, 1.5)
    assert 50 < by_date <= 60
    # 0.5 s doubled with each attempt, 25 % more or less: the fourth, the fifth
    assert 0.75 * 4 <= after_500 <= 1.25 * 4
    assert 0.75 * 8 <= after_break <= 1.25 * 8


def test_a_server_that_stays_busy_is_given_up(api: Api, open_engine) -> None:
    engine = open_engine(retries=2)
    engine.connect()
    api.failures = [BUSY] * 9
    with pytest.raises(EngineError, match=r"no answer in 3 attempts, the last time 429: full; "):
        engine.chat([QUESTION], SAMPLING)
    assert len(api.bodies("/v1/chat/completions")) == 3


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((429, {"Retry-After": "3600"}, error("later")), r"come back in 3,600 s, .*start again"),
        ((429, {}, error("pay", "insufficient_quota")), "pay; no further attempt"),
        ((400, {}, error("prompt is too long")), r"refuses POST .*\(400: prompt is too long\)"),
        ((422, {}, {"detail": [{"msg": "bad"}]}), r"422: \[\{\"msg\": \"bad\"\}\]"),
        ((403, {}, {"message": "no"}), r"refuses the request \(403: no\).*api_key_env"),
        ((307, {"Location": "http://else/v1"}, None), r"redirect to http://else/v1, which is not"),
        ((200, {"Content-Type": "text/html"}, b"<html>"), r"\(text/html\).*usually ends in /v1"),
        ((200, {}, {"choices": []}), "not what an OpenAI-compatible API gives"),
    ],
)
def test_what_no_attempt_would_change_is_said_at_once(
    api: Api, open_engine, failure, message: str
) -> None:
    engine = open_engine()
    engine.connect()
    api.failures = [failure]
    with pytest.raises(EngineError, match=message):
        engine.chat([QUESTION], SAMPLING)
    assert len(api.bodies("/v1/chat/completions")) == 1


def test_nothing_listens(open_engine) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EngineError, match=rf":{port}/v1: nothing answers there.*start the server"):
        open_engine(f"http://127.0.0.1:{port}").connect()
    with pytest.raises(EngineError, match=r"host name 'nowhere.invalid' is not known"):
        open_engine("http://nowhere.invalid:8000/v1").connect()
    assert open_engine.pauses == []


def test_a_slow_server_times_out(api: Api, open_engine) -> None:
    engine = open_engine()
    engine.connect()
    hold, real = threading.Event(), api.reply
    api.reply = lambda *asked: (hold.wait(60), real(*asked))[1]  # type: ignore[method-assign]
    engine._server.close()
    engine._server._timeout = 0.2  # from here on: finding the model may take longer
    try:
        with pytest.raises(EngineError, match=r"no answer within 0.2 s \(timeout\); raise timeout"):
            engine.chat([QUESTION], SAMPLING)
    finally:
        hold.set()


def test_the_first_failure_ends_all_requests(api: Api, open_engine) -> None:
    """The other threads are woken, not waited for: here they would wait for ten minutes."""
    engine = open_engine(concurrency=4, timeout=600)
    engine.connect()
    hold, real = threading.Event(), api.reply

    def stuck(path, headers, body):
        if path.endswith("completions") and body["messages"][0]["content"] != "0":
            hold.wait(60)
        elif path.endswith("completions"):
            return 400, {}, error("no")
        return real(path, headers, body)

    api.reply = stuck  # type: ignore[method-assign]
    asked = [[{"role": "user", "content": str(i)}] for i in range(9)]
    try:
        with pytest.raises(EngineError, match=r"400: no"):
            engine.chat(asked, SAMPLING)
        assert not hold.is_set()
    finally:
        hold.set()


def test_a_kept_connection_that_died_is_opened_anew(api: Api, open_engine) -> None:
    engine = open_engine(retries=0, concurrency=1)
    engine.connect()
    asked, real = [], api.reply

    def closing(path, headers, body):
        asked.append(path)
        return (0, {}, None) if len(asked) == 2 else real(path, headers, body)

    api.reply = closing  # type: ignore[method-assign]
    engine._server.get("/models")
    assert engine._server.get("/models").status == 200
    assert len(asked) == 3


def test_the_key_is_sent_and_never_shown(api: Api, open_engine, monkeypatch) -> None:
    api.key = "sk-secret"
    with pytest.raises(EngineError, match=r"401: Incorrect.*put the key into an environment"):
        open_engine().connect()
    monkeypatch.setenv("RUNG_TEST_KEY", "sk-wrong")
    with pytest.raises(EngineError, match="environment variable RUNG_TEST_KEY") as failed:
        open_engine(api_key_env="RUNG_TEST_KEY").connect()
    assert "sk-wrong" not in str(failed.value)
    monkeypatch.setenv("RUNG_TEST_KEY", " sk-secret\n")
    engine = open_engine(api_key_env="RUNG_TEST_KEY")
    engine.connect()
    engine.chat([QUESTION], SAMPLING)
    monkeypatch.delenv("RUNG_TEST_KEY")
    with pytest.raises(ConfigError, match="environment variable is not set"):
        open_engine(api_key_env="RUNG_TEST_KEY")


def test_models_are_found_by_name(api: Api, open_engine) -> None:
    with pytest.raises(EngineError, match=r"no model 'tinny'; did you mean 'tiny'"):
        open_engine(model="tinny").connect()
    api.models = ["tiny", "other"]
    with pytest.raises(ConfigError, match=r"serves 2 models \(tiny, other\): set model"):
        open_engine().connect()
    api.models = None
    with pytest.raises(ConfigError, match="does not list its models: set model"):
        open_engine().connect()
    assert open_engine(model="any").connect().startswith("any at ")


def test_the_url_is_taken_as_other_clients_take_it(api: Api, open_engine) -> None:
    for url in (api.url, api.url + "/", api.url.removesuffix("/v1")):
        assert open_engine(url).connect().startswith(f"tiny at {api.url}")
    for url in ("localhost:8000", "http://user:pw@host/v1", "http://host/v1?key=3", "file:///x"):
        with pytest.raises(ConfigError, match="must be like http://localhost:8000/v1"):
            open_engine(url)


def test_no_proxy_of_the_environment_is_used(api: Api, open_engine, monkeypatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    open_engine().connect()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers, seconds) -> None:
    assert retry_after(headers) == seconds


def test_the_config_opens_an_engine(api: Api) -> None:
    config = parse_config(EngineConfig, {"url": api.url, "concurrency": 2})
    engine = config.open()
    assert engine.connect().startswith("tiny at")
    engine.close()
    with pytest.raises(ConfigError, match="unknown key 'modell'; did you mean 'model'"):
        parse_config(EngineConfig, {"url": api.url, "modell": "x"})
    for values in ({}, {"url": api.url, "vllm": True}):
        with pytest.raises(ConfigError, match=r"name a url .*, or set vllm: true, not both"):
            parse_config(EngineConfig, values)


def test_without_vllm_the_extra_is_named(tmp_path: Path) -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vllm is installed here")
    with pytest.raises(ResourceError, match=r"pip install 'rung\[vllm\]'"):
        VllmEngine(tmp_path)
