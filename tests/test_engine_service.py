"""Many clients of one service: each gets the text it would get alone, and nobody waits for ever."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exchange_models import make_folder
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rung.engine.generate import generate
from rung.engine.orders import (
    ClosingError,
    Failure,
    Order,
    Piece,
    QueueFullError,
    RequestError,
    ServiceOptions,
    UnknownModelError,
)
from rung.engine.sampling import Sampling
from rung.engine.service import Service
from rung.errors import ArtefactError, DataError
from rung.model.adapter_config import AdapterConfig
from rung.model.adapters import add_adapter, save_trained
from rung.model.load import load_model
from rung.tokens.tokenizer import Tokenizer, load_tokenizer

OPTIONS = ServiceOptions(max_rows=4, max_queue=64, precision="fp32", cached_tokens=512)
TEXTS = ["Once upon", "def add(", "What is the capital? " * 4, "It", "the garden. " * 40, "a b"]


class Client:
    """Hears the pieces of one order."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.failure: Failure | None = None
        self.over = threading.Event()
        self.begun = threading.Event()
        self.left = 1

    def __call__(self, piece: Piece | Failure) -> None:
        self.begun.set()
        if isinstance(piece, Failure):
            self.failure = piece
            self.over.set()
            return
        self.pieces.append(piece)
        self.left -= piece.finish is not None
        if not self.left:
            self.over.set()

    def text(self, sample: int = 0) -> str:
        assert self.over.wait(60)
        assert self.failure is None, self.failure
        return "".join(piece.text for piece in self.pieces if piece.sample == sample)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_folder(tmp_path_factory.mktemp("store") / "one")
    return sharpen(folder, 6.0)


def sharpen(folder: Path, factor: float) -> Path:
    """Peaked logits: another weight, another greedy token."""
    path = folder / "model.safetensors"
    weights = {k: v * factor if v.ndim > 1 else v for k, v in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    return folder


@pytest.fixture
def service(folder: Path) -> Iterator[Service]:
    service = Service.open({"m": folder}, options=OPTIONS)
    yield service
    service.close(drain_seconds=30)


def order(tokenizer: Tokenizer, text: str, **options: Any) -> Order:
    own = {name: options.pop(name) for name in list(options) if name in Order.__annotations__}
    sampling = Sampling(**{"max_new_tokens": 16, "stop_ids": tokenizer.stop_ids, **options})
    return Order(tokenizer.encode(text), sampling, **own)


def ask(service: Service, text: str, name: str = "m", **options: Any) -> Client:
    client = Client()
    made = order(service.tokenizer(name), text, **options)
    client.left = made.num_samples
    service.submit(name, made, client)
    return client


def alone(folder: Path, text: str, **options: Any) -> str:
    tokenizer = load_tokenizer(folder)
    made = order(tokenizer, text, **options)
    (completion,) = generate(load_model(folder), [made.prompt], made.sampling)[0]
    return tokenizer.decode(completion.ids)


def test_clients_together_get_what_each_gets_alone(service: Service, folder: Path) -> None:
    settings = [{"temperature": 0.0}, {"seed": 3}, {"seed": 4, "top_p": 0.7}]
    cases = [(text, setting) for text in TEXTS for setting in settings]
    clients = [ask(service, text, **setting) for text, setting in cases]
    said = [client.text() for client in clients]
    assert said == [alone(folder, text, **setting) for text, setting in cases]
    assert all(sum(len(p.ids) for p in client.pieces) <= 16 for client in clients)
    stats = service.stats()
    assert (stats.running, stats.waiting, stats.kv_tokens_used) == (0, 0, 0)
    before = stats.prefix_hits_total
    assert ask(service, TEXTS[4], temperature=0.0).text() == said[12]
    assert service.stats().prefix_hits_total > before


def test_a_stop_text_ends_a_sample_wherever_tokens_are_cut(service: Service) -> None:
    whole = ask(service, "Once", temperature=0.0, max_new_tokens=40).text()
    stop = whole[7:12]
    client = ask(service, "Once", temperature=0.0, max_new_tokens=40, stop=(stop,))
    assert client.text() == whole[: whole.index(stop)]
    assert (client.pieces[-1].finish, client.pieces[-1].stop) == ("stop", stop)
    assert service.stats().kv_tokens_used == 0


def test_limits_are_called_length(service: Service) -> None:
    client = ask(service, "Once", temperature=0.0, max_new_tokens=3, stop_ids=())
    client.text()
    assert client.pieces[-1].finish == "length"
    assert sum(len(piece.ids) for piece in client.pieces) == 3


def test_log_probabilities_spell_the_text(service: Service, folder: Path) -> None:
    client = ask(service, "Once", seed=1, top_logprobs=2, max_new_tokens=30, stop_ids=())
    said = client.text()
    tokens = [token for piece in client.pieces for token in piece.tokens]
    assert b"".join(token.raw for token in tokens).decode(errors="replace") == said
    assert len(tokens) == 30
    assert all(len(t.top) == 2 and t.logprob is not None and t.logprob <= 0 for t in tokens)


def test_a_stop_token_has_a_log_probability_and_no_text(service: Service) -> None:
    tokenizer = service.tokenizer("m")
    bias = tuple((token, 100.0) for token in tokenizer.stop_ids)
    client = ask(service, "Once", top_logprobs=0, logit_bias=bias)
    assert client.text() == ""
    (piece,) = client.pieces
    assert [(t.id, t.raw) for t in piece.tokens] == [(tokenizer.stop_ids[0], b"")]


def test_echo_scores_a_text_and_says_nothing_new(service: Service, folder: Path) -> None:
    text = "What is the capital?"
    client = ask(service, text, echo=True, top_logprobs=1, max_new_tokens=0)
    assert client.text() == text
    (piece,) = client.pieces
    assert (piece.finish, piece.ids) == ("length", ())
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.from_numpy(load_tokenizer(folder).encode(text).astype(np.int64))
    with torch.no_grad():
        logps = torch.log_softmax(model(ids[None]).logits[0], -1)
    expected = logps[:-1].gather(1, ids[1:, None])[:, 0].tolist()
    assert piece.tokens[0].logprob is None
    assert [token.logprob for token in piece.tokens[1:]] == pytest.approx(expected, abs=1e-4)


def test_a_text_as_long_as_the_context_can_be_scored(service: Service) -> None:
    ids = np.resize(service.tokenizer("m").encode(TEXTS[4]), 256)
    client = Client()
    scoring = Order(ids, Sampling(max_new_tokens=1), top_logprobs=0, echo=True)
    service.submit("m", scoring, client)
    client.text()
    assert len(client.pieces[0].tokens) == 256
    with pytest.raises(RequestError, match="context is 256"):
        service.submit("m", Order(ids, Sampling(max_new_tokens=1)), client)


def test_the_best_of_several_is_the_likeliest(service: Service) -> None:
    options = {"seed": 5, "top_logprobs": 0, "stop_ids": (), "max_new_tokens": 8}
    all_of_them = ask(service, "Once", num_samples=5, **options)
    all_of_them.over.wait(60)

    def merit(client: Client, sample: int) -> float:
        tokens = [t for p in client.pieces if p.sample == sample for t in p.tokens]
        return sum(t.logprob or 0.0 for t in tokens) / len(tokens)

    merits = sorted((merit(all_of_them, n) for n in range(5)), reverse=True)
    best = ask(service, "Once", num_samples=2, best_of=5, **options)
    best.over.wait(60)
    assert [merit(best, n) for n in range(2)] == pytest.approx(merits[:2])


def test_a_client_that_leaves_frees_its_slots(service: Service) -> None:
    client = Client()
    tokenizer = service.tokenizer("m")
    long = order(tokenizer, "Once", num_samples=3, max_new_tokens=200, stop_ids=())
    ticket = service.submit("m", long, client)
    assert client.begun.wait(60)
    ticket.cancel()
    ask(service, "It", temperature=0.0).text()
    assert service.stats().kv_tokens_used == 0
    heard = len(client.pieces)
    ask(service, "It", temperature=0.0).text()
    assert len(client.pieces) == heard


def test_others_go_on_when_clients_leave(service: Service, folder: Path) -> None:
    """The one that leaves has the first row, and the others move up."""
    long = order(service.tokenizer("m"), "Once", max_new_tokens=200, stop_ids=())
    first = Client()
    ticket = service.submit("m", long, first)
    assert first.begun.wait(60)
    others = [ask(service, text, temperature=0.0, max_new_tokens=60) for text in ("It", "a b")]
    assert all(client.begun.wait(60) for client in others)
    ticket.cancel()
    for client, text in zip(others, ("It", "a b"), strict=True):
        assert client.text() == alone(folder, text, temperature=0.0, max_new_tokens=60)


def test_a_defect_between_steps_silences_nobody(service: Service) -> None:
    running = ask(service, "Once", max_new_tokens=200, stop_ids=())
    assert running.begun.wait(60)
    service._post(lambda: {}["a defect"])
    assert running.over.wait(60)
    assert running.failure is not None
    assert "KeyError" in str(running.failure.error)
    assert ask(service, "It", temperature=0.0).text()


def test_what_cannot_be_done_is_said_at_once(service: Service) -> None:
    tokenizer = service.tokenizer("m")
    with pytest.raises(UnknownModelError, match=r"no model 'other'.*: m"):
        service.submit("other", order(tokenizer, "a"), Client())
    with pytest.raises(RequestError, match="context is 256"):
        service.submit("m", order(tokenizer, "Once upon a time " * 200), Client())
    with pytest.raises(RequestError, match="empty"):
        service.submit("m", order(tokenizer, ""), Client())


def test_a_full_queue_says_when_to_come_again(folder: Path) -> None:
    options = ServiceOptions(max_rows=1, max_queue=2, precision="fp32")
    service = Service.open({"m": folder}, options=options)
    clients = [ask(service, "Once", max_new_tokens=200, stop_ids=()) for _ in range(3)]
    with pytest.raises(QueueFullError) as raised:
        clients += [ask(service, "Once") for _ in range(3)]
    assert raised.value.retry_after >= 1
    service.close(drain_seconds=60)
    assert all(len(client.text()) > 0 for client in clients)


def test_closing_finishes_what_runs_and_takes_nothing_new(folder: Path) -> None:
    service = Service.open({"m": folder}, options=OPTIONS)
    client = ask(service, "Once", max_new_tokens=100, stop_ids=())
    service.close(drain_seconds=60)
    client.text()
    assert sum(len(piece.ids) for piece in client.pieces) == 100
    with pytest.raises(ClosingError):
        ask(service, "Once")


def test_without_time_what_runs_is_ended_and_told(folder: Path) -> None:
    service = Service.open({"m": folder}, options=OPTIONS)
    clients = [ask(service, "Once", max_new_tokens=230, stop_ids=()) for _ in range(40)]
    service.close(drain_seconds=0)
    assert all(client.over.wait(10) for client in clients)
    told = [client.failure for client in clients if client.failure is not None]
    assert told
    assert "shut down" in str(told[0].error)


def test_a_new_model_takes_over_without_a_dropped_request(
    service: Service, folder: Path, tmp_path: Path
) -> None:
    other = sharpen(shutil.copytree(folder, tmp_path / "two"), 0.5)
    options = {"temperature": 0.0, "max_new_tokens": 60, "stop_ids": ()}
    before = ask(service, "Once", **options)
    assert before.begun.wait(60)
    service.swap("m", other)
    after = ask(service, "Once", **options)
    assert before.text() == alone(folder, "Once", **options)
    assert after.text() == alone(other, "Once", **options)
    assert before.text() != after.text()
    assert [model.artefact_id for model in service.models()] == ["two"]
    ask(service, "It").text()
    stats = service.stats()
    assert stats.slots == OPTIONS.max_rows, "the old model is gone"
    assert stats.new_tokens_total >= 120, "what it did still counts"


def adapters_over(folder: Path, store: Path, *, count: int) -> Path:
    """A store with `base` and adapters a0, a1, ... over it."""
    base = shutil.copytree(folder, store / "base")
    for seed in range(count):
        model = load_model(base)
        add_adapter(model, AdapterConfig(adapter="dora", lora_r=2), dtype=torch.float32, seed=seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(seed)).mul_(0.5)
        save_trained(model, store / f"a{seed}", base="base")
        load_tokenizer(base).save_into(store / f"a{seed}")
    return store


def test_adapters_share_their_base_and_join_while_it_runs(folder: Path, tmp_path: Path) -> None:
    store = adapters_over(folder, tmp_path / "store", count=3)
    names = {"plain": store / "base", "first": store / "a0", "second": store / "a1"}
    service = Service.open(names, options=OPTIONS)
    assert len(service._hosts) <= 1
    clients = {name: ask(service, "Once", name, temperature=0.0) for name in names}
    said = {name: client.text() for name, client in clients.items()}
    expected = {name: alone(path, "Once", temperature=0.0) for name, path in names.items()}
    assert said == expected
    assert len(set(said.values())) == 3
    assert [m.kind for m in service.models()] == ["model", "adapter", "adapter"]
    service.swap("first", store / "a2")
    assert ask(service, "Once", "first", temperature=0.0).text() == alone(
        store / "a2", "Once", temperature=0.0
    )
    assert len(service._hosts) == 1
    service.close(drain_seconds=10)


def held(service: Service) -> set[str]:
    """Adapters in memory: whose tensors are among the parameters of the one model."""
    (host,) = service._hosts
    parts = {part for name, _ in host.model.named_parameters() for part in name.split(".")}
    return parts & {"a0", "a1", "a2"}


def test_an_adapter_that_was_replaced_goes_with_its_last_request(
    folder: Path, tmp_path: Path
) -> None:
    store = adapters_over(folder, tmp_path / "store", count=3)
    names = {"plain": store / "base", "first": store / "a0", "second": store / "a0"}
    service = Service.open(names, options=OPTIONS)
    options = {"temperature": 0.0, "max_new_tokens": 120, "stop_ids": ()}
    before = ask(service, "Once", "first", **options)
    assert before.begun.wait(60)
    service.swap("first", store / "a1")
    ask(service, "It", "first").text()
    assert held(service) == {"a0", "a1"}, "the other name still speaks with a0"
    service.swap("second", store / "a2")
    assert before.text() == alone(store / "a0", "Once", **options), "it ended as it began"
    service._call(lambda: None).result()  # what waited for its end has run
    service._call(lambda: None).result()
    assert held(service) == {"a1", "a2"}
    service.swap("second", store / "a0")  # and comes back whole
    assert held(service) == {"a0", "a1"}
    again = ask(service, "Once", "second", **options)
    assert again.text() == before.text()
    service.close(drain_seconds=10)


def test_an_adapter_that_cannot_be_loaded_leaves_the_old_one(folder: Path, tmp_path: Path) -> None:
    store = adapters_over(folder, tmp_path / "store", count=2)
    weights = store / "a1" / "adapter_model.safetensors"
    moved = weights.rename(tmp_path / "moved")
    names = {"plain": store / "base", "first": store / "a0"}
    service = Service.open(names, options=OPTIONS)
    said = ask(service, "Once", "first", temperature=0.0).text()
    with pytest.raises(ArtefactError, match="has no adapter_model"):
        service.swap("first", store / "a1")
    assert held(service) == {"a0"}
    assert ask(service, "Once", "first", temperature=0.0).text() == said
    moved.rename(weights)
    service.swap("first", store / "a1")
    expected = alone(store / "a1", "Once", temperature=0.0)
    assert ask(service, "Once", "first", temperature=0.0).text() == expected != said
    service.close(drain_seconds=10)


class GivesUp:
    """Allows one token and then knows nothing to allow."""

    done = False

    def __init__(self) -> None:
        self.said = 0

    def mask(self) -> np.ndarray:
        if self.said:
            raise DataError("the grammar has no way on")
        return np.ones(100, dtype=bool)

    def accept(self, token: int) -> None:
        self.said += 1

    def clone(self) -> "GivesUp":
        return GivesUp()


def test_a_constraint_that_gives_up_fails_its_own_request(service: Service, folder: Path) -> None:
    other = ask(service, "Once", temperature=0.0)
    client = ask(service, "Once", num_samples=2, constraint=GivesUp())
    assert client.over.wait(60)
    assert "no way on" in str(client.failure)
    assert other.text() == alone(folder, "Once", temperature=0.0)
    assert service.stats().kv_tokens_used == 0


def test_embeddings_are_means_of_last_states(service: Service, folder: Path) -> None:
    tokenizer = service.tokenizer("m")
    prompts = [tokenizer.encode(text) for text in TEXTS]
    found = service.embed("m", prompts).result(60)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for prompt, vector in zip(prompts, found, strict=True):
        with torch.no_grad():
            states = model.model(torch.from_numpy(prompt.astype(np.int64))[None]).last_hidden_state
        mean = states[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)


def test_damaged_weights_fail_their_requests_and_not_the_server(
    service: Service, folder: Path, tmp_path: Path
) -> None:
    damaged = sharpen(shutil.copytree(folder, tmp_path / "damaged"), float("nan"))
    service.swap("m", damaged)
    client = ask(service, "Once")
    assert client.over.wait(60)
    assert "not finite" in str(client.failure)
    service.swap("m", folder)
    assert ask(service, "Once", temperature=0.0).text() == alone(folder, "Once", temperature=0.0)
