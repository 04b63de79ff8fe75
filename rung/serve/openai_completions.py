"""/v1/completions: texts that are gone on with, and texts that are scored."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from rung.engine.service import Piece
from rung.serve.answering import respond
from rung.serve.choices import ShownToken, text_logprobs
from rung.serve.openai_shapes import CompletionRequest, text_choice
from rung.serve.orders import Plan, plan_completions
from rung.serve.reply import Reply
from rung.serve.state import ServerState, state_of

Json = dict[str, Any]
router = APIRouter()
OBJECT = "text_completion"


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Texts gone on with; with echo and logprobs the texts' own log-probabilities."""
    state = state_of(request)
    plan = await state.reading(plan_completions, state, body)
    writer = CompletionWriter(state, plan, body)
    return await respond(request, state, plan, writer, stream=bool(body.stream))


class CompletionWriter:
    """Pieces into a text_completion, or its chunks."""

    def __init__(self, state: ServerState, plan: Plan, body: CompletionRequest) -> None:
        self._plan = plan
        self._reply = Reply(state, plan, endpoint="completions", prefix="cmpl")
        self._streams = bool(body.stream)
        self._wants_logprobs = body.logprobs is not None
        self._offsets = [0] * len(self._reply.choices)
        self._begun = [False] * len(self._reply.choices)
        self._wants_usage = body.wants_usage
        self._wants_ids = bool(body.return_token_ids)

    def begin(self) -> list[Json]:
        return []

    def push(self, order: int, piece: Piece) -> list[Json]:
        number = order * self._plan.orders[0].num_samples + piece.sample
        shown = self._reply.choices[number].push(piece)
        if not self._streams or not (piece.text or shown or piece.finish):
            return []
        chunks = []
        if piece.text or shown:
            logprobs = self._logprobs(shown, offset=self._offsets[number])
            self._offsets[number] += sum(len(token.text) for token in shown)
            chunks.append(self._chunk(number, piece.text, logprobs, None))
        if piece.finish:
            chunks.append(self._chunk(number, "", None, piece.finish))
        return chunks

    def end(self) -> list[Json]:
        return [self._reply.usage_chunk(OBJECT)] if self._wants_usage else []

    def whole(self) -> Json:
        choices = []
        for number, choice in enumerate(self._reply.choices):
            logprobs = self._logprobs(choice.tokens, offset=0)
            told = text_choice(number, choice.text, logprobs=logprobs, finish=choice.finish)
            choices.append({**told, **self._ids(number, first=True)})
        return {**self._reply.head(OBJECT), "choices": choices, "usage": self._reply.usage()}

    def close(self, seconds: float, first_token_seconds: float | None) -> None:
        self._reply.record(seconds, first_token_seconds)

    def _logprobs(self, tokens: list[ShownToken], *, offset: int) -> Json | None:
        if not self._wants_logprobs:
            return None
        return text_logprobs(tokens, self._plan.tokenizer, offset=offset)

    def _ids(self, number: int, *, first: bool) -> Json:
        """What a chunk says of token ids; first: of this answer."""
        if not self._wants_ids:
            return {}
        found: Json = {"token_ids": self._reply.choices[number].fresh_ids()}
        if first:
            order = self._plan.orders[number // self._plan.orders[0].num_samples]
            found["prompt_token_ids"] = order.prompt.tolist()
        return found

    def _chunk(self, number: int, text: str, logprobs: Json | None, finish: str | None) -> Json:
        choice = text_choice(number, text, logprobs=logprobs, finish=finish)
        choice |= self._ids(number, first=not self._begun[number])
        self._begun[number] = True
        chunk = {**self._reply.head(OBJECT), "choices": [choice]}
        return {**chunk, "usage": None} if self._wants_usage else chunk
