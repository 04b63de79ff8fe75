"""Generation by another engine: any OpenAI-compatible url, with the call of `generate`.

Prompts go out as token ids where the server has the same vocabulary and takes ids: then it reads
exactly what was trained. Otherwise they go out as messages, and the server's own chat template
writes them.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from rung.config import Config, did_you_mean
from rung.engine.sampling import Completion, Sampling
from rung.engine.transport import Reply, Server
from rung.errors import ConfigError, EngineError
from rung.tokens.template import Message
from rung.tokens.tokenizer import Tokenizer

Send = Literal["auto", "ids", "text", "messages"]
_PROBE = "Na\u00efve caf\u00e9s: 1234567 x_y.z\n\n\tdef f(a, b):  # \u4e2d\u6587 \U0001f642 It's"
"""Few vocabularies of one size agree on this text."""
_OPTIONS = {
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "min_new_tokens": "min_tokens",
    "stop": "stop",
}
"""Fields of `Sampling` that are sent where they are set -> their names in the API."""
_ALWAYS = ("max_new_tokens", "temperature", "seed", "stop_ids")


class EngineConfig(Config):
    """Where answers are made, if not in this process."""

    url: str = Field(
        "", description="base of an OpenAI-compatible API, such as http://localhost:8000/v1"
    )
    vllm: bool = Field(
        False, description="instead of a url: vLLM in this process (extra 'vllm'; untested)"
    )
    model: str = Field("", description="the model's name there; empty = the only one it serves")
    send: Send = Field(
        "auto",
        description="what prompts are sent as: ids, text or messages; auto = ids where the "
        "server's vocabulary is the model's, else messages",
    )
    api_key_env: str = Field("", description="environment variable with the API key; empty = none")
    timeout: float = Field(300, gt=0, description="seconds until an answer is given up")
    concurrency: int = Field(16, ge=1, le=1024, description="requests at once")
    retries: int = Field(
        5, ge=0, le=20, description="further attempts when the server is busy or gone for a moment"
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if bool(self.url) == self.vllm:
            raise ValueError("name a url (http://localhost:8000/v1), or set vllm: true, not both")
        return self

    def open(self) -> "RemoteEngine":
        """The engine behind the url, not connected yet."""
        return RemoteEngine(**self.model_dump(exclude={"vllm"}))


@dataclass(frozen=True)
class RemoteCompletion(Completion):
    """A sample of another engine. text: as it came. exact: ids are the server's own; otherwise
    `text` was encoded again, which can cut it at other places. num_tokens: as the server counts."""

    text: str = ""
    exact: bool = False
    num_tokens: int = 0


class RemoteEngine:
    """One model at one url. Call `connect` first; then `generate` or `chat`, and `close`."""

    def __init__(
        self,
        url: str,
        model: str = "",
        *,
        send: Send = "auto",
        api_key_env: str = "",
        timeout: float = 300,
        concurrency: int = 16,
        retries: int = 5,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._server = Server(
            url, api_key_env=api_key_env, timeout=timeout, retries=retries, wait=wait
        )
        self.model = model
        self.send: Send = send
        self._concurrency = concurrency
        self._limit = "max_tokens"
        self._tokenizer: Tokenizer | None = None

    def connect(self, tokenizer: Tokenizer | None = None) -> str:
        """Find the model, and how prompts are sent; a sentence that says so.

        tokenizer: of the prompts' ids; None where only messages are sent. EngineError: no server,
        no such model, a refused key. ConfigError: ids or text of another vocabulary.
        """
        self._tokenizer = tokenizer
        self._find_model()
        if tokenizer is None:
            self.send, why = "messages", ""
        else:
            self.send, why = self._choose(tokenizer)
        return f"{self.model} at {self._server.url}: prompts are sent as {self.send}{why}"

    def generate(
        self,
        prompts: Sequence[np.ndarray],
        sampling: Sampling,
        *,
        messages: Sequence[Sequence[Message]] | None = None,
        num_samples: int = 1,
        keys: Sequence[int] | None = None,
    ) -> list[list[RemoteCompletion]]:
        """`num_samples` completions of every prompt, as `rung.engine.generate.generate`.

        messages: the conversations behind the prompts, for a server that gets messages. Seeds
        follow (seed, key of the prompt, sample); whether equal seeds give equal text is the
        server's affair.
        """
        assert self._tokenizer is not None, "connect(tokenizer) first"
        if self.send == "messages":
            if messages is None:
                raise ConfigError(
                    f"{self._server.url} gets no token ids (send: messages), and these prompts are "
                    "no conversations; set send to ids or text where its model has this vocabulary"
                )
            return self.chat(messages, sampling, num_samples=num_samples, keys=keys)
        bodies = [self._prompt_body(prompt, sampling) for prompt in prompts]
        return self._all("/completions", bodies, sampling, num_samples, keys, prompts)

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        num_samples: int = 1,
        keys: Sequence[int] | None = None,
    ) -> list[list[RemoteCompletion]]:
        """Answers to conversations in the server's own chat template; a judge is asked this way.

        Without a tokenizer the samples have no ids.
        """
        common = self._common_body(sampling)
        bodies = [
            {**common, "messages": [{k: m[k] for k in ("role", "content")} for m in conversation]}
            for conversation in conversations
        ]
        return self._all("/chat/completions", bodies, sampling, num_samples, keys, None)

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def _find_model(self) -> None:
        """Set the model's name, checked against what the server lists, where it lists any."""
        reply = self._server.get("/models")
        if reply.status in (404, 405, 501):  # some serve completions and nothing else
            if not self.model:
                raise ConfigError(f"{self._server.url} does not list its models: set model")
            return
        data = _field(reply, "data", list)
        if reply.status >= 300 or data is None:
            raise self._server.refusal(reply, "GET /models")
        served = [str(entry.get("id")) for entry in data if isinstance(entry, dict)]
        if not self.model:
            if len(served) != 1:
                raise ConfigError(
                    f"{self._server.url} serves {len(served)} models ({', '.join(served[:9])}): "
                    "set model to one of them"
                )
            self.model = served[0]
        elif self.model not in served:
            raise EngineError(
                f"{self._server.url} has no model {self.model!r}{did_you_mean(self.model, served)}"
            )

    def _choose(self, tokenizer: Tokenizer) -> tuple[Send, str]:
        """(what is sent, why) after a look at the server's vocabulary."""
        same = self._same_vocabulary(tokenizer)
        if self.send in ("ids", "text") and same is False:
            raise ConfigError(
                f"{self.model} at {self._server.url} has another vocabulary than the model named "
                f"here, so it cannot be sent {self.send}; set send to messages or auto"
            )
        if self.send != "auto":
            return self.send, ""
        if same is None:
            return "messages", ", in its own chat template: it does not tell its vocabulary"
        if not same:
            return "messages", ", in its own chat template: its vocabulary is another"
        probe = {"model": self.model, "prompt": [tokenizer.bos], "max_tokens": 1}
        if self._server.post("/completions", probe).status >= 300:
            return "text", ": it takes no token ids"
        return "ids", ""

    def _same_vocabulary(self, tokenizer: Tokenizer) -> bool | None:
        """Whether the server cuts a text into the same ids; None where it does not say."""
        body = {
            "model": self.model,
            "prompt": _PROBE,  # vLLM and Rung
            "content": _PROBE,  # llama.cpp
            "add_special_tokens": False,
            "add_special": False,
        }
        reply = self._server.post("/tokenize", body, above=True)
        tokens = _field(reply, "tokens", list)
        if reply.status >= 300 or tokens is None:
            return None
        return tokens == tokenizer.encode(_PROBE).tolist()

    def _common_body(self, sampling: Sampling) -> dict[str, Any]:
        return {
            "model": self.model,
            "temperature": sampling.temperature,
            **option_values(sampling),
        }

    def _prompt_body(self, prompt: np.ndarray, sampling: Sampling) -> dict[str, Any]:
        assert self._tokenizer is not None
        text = self.send == "text"
        return {
            **self._common_body(sampling),
            "prompt": self._tokenizer.decode(prompt, special=True) if text else prompt.tolist(),
            "add_special_tokens": False,  # the begin token is in the prompt already
            "stop_token_ids": list(sampling.stop_ids),
            "return_token_ids": True,
        }

    def _all(
        self,
        path: str,
        bodies: Sequence[dict[str, Any]],
        sampling: Sampling,
        num_samples: int,
        keys: Sequence[int] | None,
        prompts: Sequence[np.ndarray] | None,
    ) -> list[list[RemoteCompletion]]:
        """One request a sample, so that each has its seed and its retries. A failure ends all."""
        names = range(len(bodies)) if keys is None else keys
        assert len(names) == len(bodies)
        if not bodies:
            return []

        def one(index: int, sample: int) -> RemoteCompletion:
            seed = sample_seed(sampling.seed, names[index], sample)
            before = None if prompts is None else prompts[index]
            return self._one(path, {**bodies[index], "seed": seed}, sampling, before)

        count = len(bodies) * num_samples
        with ThreadPoolExecutor(min(self._concurrency, count), "rung-remote") as pool:
            tasks = [pool.submit(one, i, s) for i in range(len(bodies)) for s in range(num_samples)]
            try:
                done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
                failed = next((task for task in tasks if task in done and task.exception()), None)
                if failed is not None:
                    failed.result()
            except BaseException:  # Ctrl-C, too: nobody waits for answers that nobody reads
                pool.shutdown(wait=False, cancel_futures=True)
                self._server.stop()
                raise
        results = [task.result() for task in tasks]
        return [results[at : at + num_samples] for at in range(0, count, num_samples)]

    def _one(
        self, path: str, body: dict[str, Any], sampling: Sampling, prompt: np.ndarray | None
    ) -> RemoteCompletion:
        limit = {self._limit: sampling.max_new_tokens}
        reply = self._server.post(path, body | limit)
        if reply.status == 400 and "max_completion_tokens" in reply.message:
            # newer models of OpenAI know the limit by this name alone
            self._limit = "max_completion_tokens"
            reply = self._server.post(path, body | {self._limit: sampling.max_new_tokens})
        choices = _field(reply, "choices", list)
        if reply.status >= 300 or not choices or not isinstance(choices[0], dict):
            raise self._server.refusal(reply, f"POST {path}")
        choice = choices[0]
        said = choice.get("message") if "message" in choice else choice
        text = said.get("content" if "message" in choice else "text") if said else ""
        usage = _field(reply, "usage", dict) or {}
        stopped = choice.get("finish_reason") == "stop"
        ids, exact = self._ids(choice, str(text or ""), sampling, prompt, stopped)
        counted = usage.get("completion_tokens")
        num = counted if isinstance(counted, int) else len(ids)
        return RemoteCompletion(ids, stopped, text=str(text or ""), exact=exact, num_tokens=num)

    def _ids(
        self,
        choice: Mapping[str, Any],
        text: str,
        sampling: Sampling,
        prompt: np.ndarray | None,
        stopped: bool,
    ) -> tuple[np.ndarray, bool]:
        """(ids of a sample, whether they are the server's own)."""
        if self._tokenizer is None:
            return np.zeros(0, dtype=np.int32), False
        ids = _told_ids(choice) if prompt is not None else None
        exact = ids is not None
        if ids is None:
            last = "" if prompt is None else self._special_at_end(prompt)
            ids = self._tokenizer.encode_parts([(last, text)])[0].tolist()
        elif any(i >= self._tokenizer.vocab_size for i in ids):
            raise EngineError(
                f"{self._server.url}: token id {max(ids)} is not of this vocabulary of "
                f"{self._tokenizer.vocab_size}; set send to messages"
            )
        ends = sampling.stop_ids or self._tokenizer.stop_ids
        if stopped and (not ids or ids[-1] not in ends):
            ids = [*ids, ends[0]]
        return np.array(ids, dtype=np.int32), exact

    def _special_at_end(self, prompt: np.ndarray) -> str:
        """The special token that an answer follows, "" where it follows text."""
        assert self._tokenizer is not None
        last = int(prompt[-1])
        known = last in self._tokenizer.special_ids
        return self._tokenizer.decode([last], special=True) if known else ""


def option_values(sampling: Sampling) -> dict[str, Any]:
    """What is not at its default, by the names of the API and of vLLM; ConfigError where another
    engine has no such option."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(sampling):
        value = getattr(sampling, field.name)
        if field.name in _ALWAYS or value == field.default:
            continue
        if field.name not in _OPTIONS:
            raise ConfigError(
                f"{field.name} = {value!r}: another engine does not take it; leave it out"
            )
        found[_OPTIONS[field.name]] = list(value) if isinstance(value, tuple) else value
    return found


def sample_seed(seed: int, key: int, sample: int) -> int:
    """31 bits, as some servers take no more: of one sample of one prompt."""
    digest = hashlib.sha256(f"{seed}/{key}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def _field(reply: Reply, name: str, kind: type) -> Any:
    """A field of the reply's object, None where it is not there or of another type."""
    value = reply.body.get(name) if isinstance(reply.body, dict) else None
    return value if isinstance(value, kind) else None


def _told_ids(choice: Mapping[str, Any]) -> list[int] | None:
    """The ids that a server gives with a text: vLLM's and Rung's `token_ids`, or log-probs whose
    tokens are written as token_id:7."""
    ids = choice.get("token_ids")
    if ids is None:
        tokens = (choice.get("logprobs") or {}).get("tokens") or []
        parts = [str(token).removeprefix("token_id:") for token in tokens]
        known = tokens and all(str(t).startswith("token_id:") for t in tokens)
        ids = [int(p) for p in parts] if known and all(p.isdecimal() for p in parts) else None
    valid = isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids)
    return ids if valid else None
