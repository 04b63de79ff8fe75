"""/v1/chat/completions"""

import secrets
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from rung.engine.service import Piece
from rung.serve.answering import respond
from rung.serve.assembly import ToolCall, ToolCallReader, read_answer
from rung.serve.choices import ShownToken, chat_logprobs
from rung.serve.openai_shapes import ChatRequest, chat_choice, chat_delta, chat_message, tool_call
from rung.serve.orders import Plan, plan_chat
from rung.serve.reply import Reply
from rung.serve.state import ServerState, state_of

Json = dict[str, Any]
router = APIRouter()
WHOLE, CHUNK = "chat.completion", "chat.completion.chunk"


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """An answer to a conversation."""
    state = state_of(request)
    plan = await state.reading(plan_chat, state, body)
    writer = ChatWriter(state, plan, body)
    return await respond(request, state, plan, writer, stream=bool(body.stream))


class ChatWriter:
    """Pieces into a chat.completion, or its chunks."""

    def __init__(self, state: ServerState, plan: Plan, body: ChatRequest) -> None:
        self._plan = plan
        self._reply = Reply(state, plan, endpoint="chat", prefix="chatcmpl")
        self._readers = [ToolCallReader() for _ in self._reply.choices]
        self._num_calls = [0] * len(self._readers)
        self._unshown: list[list[ShownToken]] = [[] for _ in self._readers]
        self._streams = bool(body.stream)
        self._wants_logprobs = plan.orders[0].top_logprobs is not None
        self._wants_usage = body.wants_usage
        self._wants_ids = bool(body.return_token_ids)

    def begin(self) -> list[Json]:
        first = {"role": "assistant", "content": ""}
        return [
            {**self._chunk(chat_delta(i, first)), **self._prompt_ids()}
            for i in range(len(self._readers))
        ]

    def push(self, order: int, piece: Piece) -> list[Json]:
        number = piece.sample
        self._unshown[number] += self._reply.choices[number].push(piece)
        if not self._streams:
            return []
        parts: list[str | ToolCall] = [piece.text] if piece.text else []
        if self._plan.reads_tools:
            parts = self._readers[number].push(piece.text)
            parts += self._readers[number].finish() if piece.finish else []
        chunks = [self._part(number, part) for part in parts]
        if piece.finish:
            if self._wants_logprobs and self._unshown[number]:  # tokens that no text came with
                chunks.append(self._part(number, ""))
            end = _finish(piece.finish, self._num_calls[number])
            chunks.append(self._chunk(chat_delta(number, {}, finish=end)))
        return chunks

    def _part(self, number: int, part: str | ToolCall) -> Json:
        delta: Json = {"content": part}
        if isinstance(part, ToolCall):
            delta = {"tool_calls": [{"index": self._num_calls[number], **_call(part)}]}
            self._num_calls[number] += 1
        logprobs = self._logprobs(self._unshown[number])
        self._unshown[number] = []
        return self._chunk(chat_delta(number, delta, logprobs=logprobs))

    def end(self) -> list[Json]:
        return [self._reply.usage_chunk(CHUNK)] if self._wants_usage else []

    def whole(self) -> Json:
        choices = []
        for number, choice in enumerate(self._reply.choices):
            content: str | None = choice.text
            calls: list[ToolCall] = []
            if self._plan.reads_tools:
                content, calls = read_answer(choice.text)
            message = chat_message(content, [_call(call) for call in calls])
            finish = _finish(choice.finish or "stop", len(calls))
            logprobs = self._logprobs(choice.tokens)
            told = chat_choice(number, message, logprobs=logprobs, finish=finish)
            choices.append({**told, **self._ids(number)})
        whole = {**self._reply.head(WHOLE), "choices": choices, "usage": self._reply.usage()}
        return {**whole, **self._prompt_ids()}

    def close(self, seconds: float, first_token_seconds: float | None) -> None:
        self._reply.record(seconds, first_token_seconds)

    def _logprobs(self, tokens: list[ShownToken]) -> Json | None:
        return chat_logprobs(tokens, self._plan.tokenizer) if self._wants_logprobs else None

    def _prompt_ids(self) -> Json:
        prompt = self._plan.orders[0].prompt
        return {"prompt_token_ids": prompt.tolist()} if self._wants_ids else {}

    def _ids(self, number: int) -> Json:
        return {"token_ids": self._reply.choices[number].fresh_ids()} if self._wants_ids else {}

    def _chunk(self, choice: Json) -> Json:
        told = {**choice, **self._ids(choice["index"])}
        chunk = {**self._reply.head(CHUNK), "choices": [told]}
        return {**chunk, "usage": None} if self._wants_usage else chunk


def _finish(reason: str, num_calls: int) -> str:
    """An answer that was cut off says so, also where a call before the cut is whole."""
    return "tool_calls" if num_calls and reason == "stop" else reason


def _call(call: ToolCall) -> Json:
    return tool_call(f"call_{secrets.token_hex(12)}", call.name, call.arguments)
