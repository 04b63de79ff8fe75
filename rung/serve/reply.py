"""What the answers of chat and completions share: who gave them, what they cost, the log."""

import secrets
import time
from typing import Any

from rung.serve.choices import Choice
from rung.serve.openai_shapes import head, usage
from rung.serve.orders import Plan
from rung.serve.state import ServerState
from rung.serve.traffic import Exchange

Json = dict[str, Any]


class Reply:
    """One id, one time and one model for a whole answer, however many chunks it has."""

    def __init__(self, state: ServerState, plan: Plan, *, endpoint: str, prefix: str) -> None:
        self._state, self._plan, self._endpoint = state, plan, endpoint
        self.id = f"{prefix}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        # in the order of their index: all answers to the first prompt, to the second, ...
        self.choices = [Choice() for order in plan.orders for _ in range(order.num_samples)]

    def head(self, object: str) -> Json:
        model = self._plan.model
        return head(
            object,
            id=self.id,
            created=self._created,
            model=model.name,
            fingerprint=model.artefact_id[:12],
        )

    def usage(self) -> Json:
        return usage(self._plan.prompt_tokens, sum(len(c.ids) for c in self.choices))

    def usage_chunk(self, object: str) -> Json:
        return {**self.head(object), "choices": [], "usage": self.usage()}

    def record(self, seconds: float, first_token_seconds: float | None) -> None:
        """Into the traffic log, where there is one."""
        if self._state.traffic is None:
            return
        model, sampling = self._plan.model, self._plan.orders[0].sampling
        known = ("temperature", "top_p", "top_k", "min_p", "seed", "max_new_tokens")
        exchange = Exchange(
            id=self.id,
            endpoint=self._endpoint,
            model=model.name,
            artefact=model.artefact_id,
            prompt=self._plan.prompt,
            answers=[choice.text for choice in self.choices],
            finishes=[choice.finish for choice in self.choices],
            seconds=seconds,
            first_token_seconds=first_token_seconds,
            usage=self.usage(),
            sampling={name: getattr(sampling, name) for name in known},
        )
        self._state.traffic.record(exchange)
