"""The server around the API: keys, origins, limits, overload, disconnects, promotion, shutdown."""

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from serve_fake import ANSWER, FakeService, running, serving, until, write_fake_tokenizer

from rung.errors import ConfigError
from rung.serve.keys import is_allowed, load_keys
from rung.serve.run import check_binding, open_port
from rung.serve.state import ServerState, Settings
from rung.serve.watch import Watcher
from rung.store.store import Store

CHAT = "/v1/chat/completions"
KEY = "a-long-enough-key"


def chat(text="hello", **more):
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **more}


# 17: keys, host, origin


def test_17_a_key_opens_the_server_in_each_of_its_forms(tmp_path):
    with serving(tmp_path, settings=Settings(api_keys=("other-key-123", KEY))) as (client, _):
        basic = base64.b64encode(f"me:{KEY}".encode()).decode()
        for headers in (
            {"Authorization": f"Bearer {KEY}"},
            {"authorization": f"bearer {KEY}"},
            {"x-api-key": KEY},
            {"Authorization": f"Basic {basic}"},
        ):
            assert client.json("/v1/models", headers=headers)["data"]
        for headers in (
            {},
            {"Authorization": f"Bearer {KEY}x"},
            {"Authorization": f"Bearer {KEY[:-1]}"},
            {"Authorization": "Bearer "},
            {"Authorization": KEY},
            {"Authorization": "Basic !!"},
            {"x-api-key": "\xe9"},
        ):
            for path, body in (("/v1/models", None), (CHAT, chat()), ("/metrics", None)):
                error = client.error(path, body, status=401, headers=headers)
                assert error["type"] == "authentication_error"
                assert error["code"] == "invalid_api_key"
                assert KEY not in error["message"]
        assert client.json("/health") == {"status": "ok"}
        assert client.error("/static/none.css", None, status=404)
        page = client.send("/chat", headers={"Accept": "text/html"})
        assert page.status == 401
        assert page.headers["WWW-Authenticate"].startswith("Basic")  # a browser asks for it
        page.connection.close()


def test_17_keys_are_compared_in_constant_time(monkeypatch):
    import rung.serve.keys

    seen = []

    def compare(a, b):
        seen.append((a, b))
        return a == b

    monkeypatch.setattr(rung.serve.keys.hmac, "compare_digest", compare)
    assert is_allowed({b"x-api-key": b"one"}, ["one", "two"])
    assert seen == [(b"one", b"one"), (b"one", b"two")]  # all of them, also after a match


def test_17_no_other_origin_and_no_other_name(tmp_path):
    with serving(tmp_path) as (client, _):
        own = f"127.0.0.1:{client.port}"
        assert client.json(CHAT, chat(), headers={"Origin": f"http://{own}"})
        for origin in ("https://evil.example", "null", f"http://{own}.evil.example"):
            error = client.error(CHAT, chat(), status=403, headers={"Origin": origin})
            assert (error["type"], error["code"]) == ("permission_error", "cross_origin")
        for host in ("evil.example", f"evil.example:{client.port}", ""):
            error = client.error("/v1/models", None, status=403, headers={"Host": host})
            assert error["code"] == "wrong_host"
        for host in (f"localhost:{client.port}", "LOCALHOST", "[::1]:80"):
            assert client.json("/v1/models", headers={"Host": host})
        response = client.send("/v1/models", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in {k.lower() for k in response.headers}
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        response.connection.close()
        preflight = client.send(CHAT, method="OPTIONS", headers={"Origin": "https://evil.example"})
        assert preflight.status == 405
        preflight.connection.close()


def test_17_keys_come_from_a_file_and_the_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# mine\nfirst-key-1\n\nsecond-key\n")
    assert load_keys(file, environ={"RUNG_API_KEY": KEY}) == ("first-key-1", "second-key", KEY)
    assert load_keys(None, environ={}) == ()
    for content, told in (
        ("# none\n", "no key"),
        ("short\n", "5 characters"),
        ("a\u00e9" * 9, "ASCII"),
    ):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match=told):
            load_keys(file, environ={})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_keys(tmp_path / "none", environ={})


def test_17_a_server_for_others_needs_a_key():
    check_binding("127.0.0.1", ())
    check_binding("0.0.0.0", (KEY,))
    for host in ("0.0.0.0", "::", "192.168.1.5"):
        with pytest.raises(ConfigError, match="--api-key-file"):
            check_binding(host, ())


# limits


def test_15_a_request_that_is_too_large_is_413(tmp_path):
    with serving(tmp_path, settings=Settings(max_body_bytes=2000)) as (client, _):
        error = client.error(CHAT, chat("x" * 3000), status=413)
        assert error["code"] == "request_too_large"
        assert "2,000" in error["message"]
        # without a length, in chunks
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
        body = [b'{"messages": "', b"x" * 3000, b'"}']
        headers = {"Content-Type": "application/json"}
        connection.request("POST", CHAT, iter(body), headers, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()
        assert client.json(CHAT, chat())["choices"][0]["message"]["content"] == ANSWER


def test_16_a_full_queue_is_429_and_says_when_to_come_back(tmp_path):
    with serving(tmp_path, pace=0.02, max_rows=1, max_queue=1) as (client, service):
        running = client.ask(CHAT, chat("LONG", stream=True))
        until(lambda: service.running)
        waiting = client.ask(CHAT, chat("LONG"))
        until(lambda: service.waiting)
        response = client.send(CHAT, chat())
        error = json.loads(response.read())["error"]
        assert (response.status, error["code"]) == (429, "queue_full")
        assert error["type"] == "rate_limit_error"
        assert response.headers["retry-after"] == "2"  # 1.25 s, rounded up
        assert response.headers["retry-after-ms"] == "1250"
        assert response.headers["x-should-retry"] == "true"
        response.connection.close()
        error = client.error("/v1/completions", {"prompt": ["a", "b"]}, status=429)
        assert error["code"] == "queue_full"
        running.close()
        waiting.close()


def test_16_several_prompts_are_taken_all_or_none(tmp_path):
    with serving(tmp_path, pace=0.02, max_rows=1, max_queue=2) as (client, service):
        busy = client.ask(CHAT, chat("LONG"))
        until(lambda: service.running)
        client.error("/v1/completions", {"prompt": ["a", "b", "c"]}, status=429)
        assert all(request.cancelled for request in service.waiting)
        busy.close()


def test_16_while_the_model_is_loaded_clients_are_told_to_wait(tmp_path):
    write_fake_tokenizer(tmp_path / "tokenizer")
    state = ServerState(Store(tmp_path / "store"))
    with running(state) as client:
        assert client.json("/health", status=503) == {"status": "loading"}
        assert client.error(CHAT, chat(), status=503)["code"] == "loading"
        response = client.send("/v1/models")
        assert response.headers["retry-after"] == "2"
        response.connection.close()
        state.service = FakeService(tmp_path / "tokenizer")  # type: ignore[assignment]
        assert client.json("/health") == {"status": "ok"}
        assert client.json(CHAT, chat())["choices"][0]["message"]["content"] == ANSWER
        state.closing = True
        assert client.error(CHAT, chat(), status=503)["code"] == "shutting_down"


# 18: disconnects


@pytest.mark.parametrize("stream", [True, False])
def test_18_a_client_that_goes_away_frees_its_slot(tmp_path, stream):
    with serving(tmp_path, pace=0.02) as (client, service):
        body = json.dumps(chat("LONG", stream=stream)).encode()
        with socket.create_connection(("127.0.0.1", client.port)) as raw:
            raw.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            until(lambda: service.running)
            if stream:
                assert raw.recv(100)
        until(lambda: service.cancelled == 1)
        until(lambda: service.stats().slots_used == 0)
        counted = b'rung_http_requests_total{endpoint="/v1/chat/completions",status='
        status = b'"200"' if stream else b'"499"'

        def is_counted():
            response = client.send("/metrics")
            content = response.read()
            response.connection.close()
            return counted + status in content

        until(is_counted)


def test_18_a_client_that_waits_in_the_queue_and_goes_leaves_it(tmp_path):
    with serving(tmp_path, pace=0.02, max_rows=1) as (client, service):
        first = client.ask(CHAT, chat("LONG"))
        until(lambda: service.running)
        second = client.ask(CHAT, chat(stream=True))
        until(lambda: service.waiting)
        second.close()
        until(lambda: all(request.cancelled for request in service.waiting))
        first.close()


def test_1_a_waiting_stream_is_kept_alive_by_comments(tmp_path):
    with serving(tmp_path, settings=Settings(ping_seconds=0.05), pace=0.4) as (client, _):
        response = client.send(CHAT, chat(stream=True))
        assert response.status == 200
        assert any(response.readline() == b": ping\n" for _ in range(40))
        response.connection.close()


PROGRAM = """
import sys, pathlib
sys.path.insert(0, {tests!r})
from serve_fake import FakeService
from rung.serve.run import open_port, serve
from rung.serve.state import ServerState, Settings
from rung.store.store import Store
listening = open_port("127.0.0.1", 0)
state = ServerState(Store({store!r}), Settings(drain_seconds=30))
serve(state, lambda: FakeService(pathlib.Path({folder!r}), pace=0.02), listening=listening,
      names={{}}, ready=lambda: print(listening.getsockname()[1], flush=True))
print("gone", flush=True)
"""


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_18_a_signal_lets_what_runs_end_and_takes_nothing_new(tmp_path, stop):
    from serve_fake import Client

    write_fake_tokenizer(tmp_path / "tokenizer")
    program = PROGRAM.format(
        tests=str(Path(__file__).parent),
        store=str(tmp_path / "store"),
        folder=str(tmp_path / "tokenizer"),
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            client = Client(int(process.stdout.readline()))
            events = client.events(CHAT, chat())
            found = [next(events), next(events)]
            process.send_signal(stop)

            def refused():
                try:
                    client.error(CHAT, chat(), status=503)
                except OSError:
                    return True
                return False

            until(refused)
            found += list(events)  # to its end
            assert found[-1] == "[DONE]"
            assert found[-2]["choices"][0]["finish_reason"] == "stop"
            said = "".join(c["choices"][0]["delta"].get("content", "") for c in found[:-1])
            assert said == ANSWER
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()  # a failed test leaves no server behind
    assert (process.returncode, out, err) == (0, "gone\n", "")


def test_18_a_model_that_cannot_be_loaded_ends_the_server(tmp_path):
    from rung.errors import ArtefactError
    from rung.serve.run import serve

    def load():
        raise ArtefactError("it is damaged")

    state = ServerState(Store(tmp_path))
    with open_port("127.0.0.1", 0) as listening, pytest.raises(ArtefactError, match="damaged"):
        serve(state, load, listening=listening, names={}, ready=lambda: None)


def test_a_taken_port_is_an_error_with_a_way_out():
    with open_port("127.0.0.1", 0) as taken, pytest.raises(ConfigError, match="another --port"):
        open_port("127.0.0.1", taken.getsockname()[1])


# promotion


def make_model(store: Store, config: int, *, kind: str = "model"):
    work = store.begin(f"key{config}")
    (work.out / "weights").write_text(str(config))
    made = store.commit(work, kind=kind, stage="toy", config={"seed": config}, parents={}, notes={})
    work.release()
    return made


def test_a_promoted_model_is_taken_over_without_a_dropped_request(tmp_path):
    store = Store(tmp_path / "store")
    first, second = make_model(store, 1), make_model(store, 2)
    store.set_name("assistant@live", first)
    said: list[str] = []
    with serving(tmp_path, names={"assistant@live": first.id}, pace=0.005) as (client, service):
        state = ServerState(store, Settings(poll_seconds=0.01), service=service)
        watcher = Watcher(state, {"assistant@live": first.id}, say=said.append)
        watcher.start()
        answers: list[str] = []
        stop = threading.Event()

        def ask():
            while not stop.is_set():
                answer = client.json(CHAT, chat("WHO"))
                answers.append(answer["choices"][0]["message"]["content"])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: len(answers) > 3)
        store.set_name("assistant@live", second)
        until(lambda: answers[-1] == f"I am {second.id}.")
        stop.set()
        for thread in threads:
            thread.join()
        watcher.stop()
        assert set(answers) == {f"I am {first.id}.", f"I am {second.id}."}  # each whole
        assert client.json(CHAT, chat("WHO"))["system_fingerprint"] == second.short_id
        assert said == [f"assistant@live: {first.short_id} -> {second.short_id}"]


def test_what_cannot_be_taken_over_is_said_once_and_the_old_model_stays(tmp_path):
    store = Store(tmp_path / "store")
    first, data = make_model(store, 1), make_model(store, 2, kind="dataset")
    store.set_name("live", first)
    said: list[str] = []
    with serving(tmp_path, names={"live": first.id}) as (_, service):
        watcher = Watcher(ServerState(store, service=service), {"live": first.id}, say=said.append)
        store.set_name("live", data)
        watcher.look()
        watcher.look()
        assert len(said) == 1
        assert "not a model" in said[0]
        assert service.models()[0].artefact_id == first.id
        damaged = make_model(store, 3)
        (damaged.path / "weights").write_text("9")
        store.set_name("live", damaged)
        watcher.look()
        assert "damaged" in said[1]
        third = make_model(store, 4)
        store.set_name("live", third)
        watcher.look()
        assert service.models()[0].artefact_id == third.id


def test_several_models_need_a_name(tmp_path):
    with serving(tmp_path, names={"one": "1" * 64, "two": "2" * 64}) as (client, _):
        error = client.error(CHAT, chat("WHO"), status=400)
        assert error["param"] == "model"
        assert "one, two" in error["message"]
        answer = client.json(CHAT, chat("WHO", model="two"))
        assert answer["choices"][0]["message"]["content"] == f"I am {'2' * 64}."


def test_an_error_of_ours_is_a_500_that_quotes_nothing(tmp_path, capfd):
    def broken(prompt, artefact):
        raise KeyError(f"secret: {prompt}")

    with serving(tmp_path, script=broken) as (client, _):
        error = client.error(CHAT, chat("my secret"), status=500)
        assert error["code"] == "internal_error"
        assert "req_" in error["message"]
    err = capfd.readouterr().err
    assert "KeyError" in err
    assert "in broken" in err
    assert "secret" not in err.replace('f"secret: {prompt}"', "")


# the command


def test_the_command_refuses_before_it_loads(tmp_path):
    from typer.testing import CliRunner

    from rung.cli import app

    store = Store(tmp_path / "store")
    store.set_name("data", make_model(store, 1, kind="dataset"))
    store.set_name("m", make_model(store, 2))
    for words, told in (
        (["none"], "no artefact 'none'"),
        (["data"], "is a dataset"),
        (["m", "--host", "0.0.0.0"], "no API key"),
        (["m", "--reward", "m"], "--log-traffic"),
        (["m", "--log-traffic", "--reward", "m", "--port", "0"], "not a reward-model"),
        (["m", "--api-key-file", str(tmp_path / "none")], "cannot be read"),
    ):
        environ = {"RUNG_STORE": str(store.root), "RUNG_API_KEY": ""}
        result = CliRunner().invoke(app, ["serve", *words], env={**os.environ, **environ})
        assert result.exit_code == 2, result.output
        assert told in result.stderr


def test_the_command_serves_in_the_precision_that_is_asked_for(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    import rung.engine.service
    import rung.serve.run
    from rung.cli import app

    store = Store(tmp_path / "store")
    store.set_name("m", make_model(store, 1))
    asked = []
    monkeypatch.setattr(
        rung.engine.service.Service,
        "open",
        lambda folders, options: asked.append((list(folders), options.precision)),
    )

    def load_only(state, load, *, listening, **rest):
        load()
        listening.close()

    monkeypatch.setattr(rung.serve.run, "serve", load_only)
    for words in ([], ["--precision", "fp32"]):
        words = ["serve", "m", "--port", "0", "--store", str(store.root), *words]
        assert CliRunner().invoke(app, words).exit_code == 0
    assert asked == [(["m"], "auto"), (["m"], "fp32")]
