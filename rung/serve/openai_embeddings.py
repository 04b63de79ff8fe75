"""/v1/embeddings: the mean of a model's last hidden states, of length 1."""

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from rung.engine.service import ServedModel
from rung.errors import DataError
from rung.serve.answering import or_gone
from rung.serve.errors import ApiError, bad_value, unsupported
from rung.serve.openai_shapes import EmbeddingRequest, embedding, listing
from rung.serve.prompts import check_length, given_ids
from rung.serve.state import ServerState, state_of
from rung.tokens.tokenizer import Tokenizer

router = APIRouter()
MAX_INPUTS = 2048  # OpenAI's


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """A vector a text."""
    state = state_of(request)
    model, prompts = await state.reading(read_inputs, state, body)
    work = asyncio.wrap_future(state.engine.embed(model.name, prompts))
    vectors = await or_gone(request, _result(work))
    if vectors is None:
        return Response(status_code=499)
    width = vectors.shape[1]
    if body.dimensions not in (None, width):
        raise unsupported(
            f"dimensions {body.dimensions}: the vectors of {model.name} have {width} and are not "
            "cut; leave dimensions out",
            param="dimensions",
        )
    plain = body.encoding_format != "base64"
    data = [embedding(i, to_floats(v) if plain else to_base64(v)) for i, v in enumerate(vectors)]
    tokens = sum(map(len, prompts))
    cost = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse(listing(data, model=model.name, usage=cost))


async def _result(work: "asyncio.Future[np.ndarray]") -> np.ndarray:
    return await work


def to_floats(vector: np.ndarray) -> list[float]:
    return [float(value) for value in vector]


def to_base64(vector: np.ndarray) -> str:
    """Little-endian float32, as the official client reads it."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def read_inputs(state: ServerState, body: EmbeddingRequest) -> tuple[ServedModel, list[np.ndarray]]:
    """Ids of each input; ApiError for what cannot be embedded."""
    model = state.served(body.model)
    tokenizer = state.engine.tokenizer(model.name)
    found = body.input
    inputs: Sequence[Any] = [found] if isinstance(found, str) else found
    if inputs and isinstance(inputs[0], int):
        inputs = [inputs]
    if not inputs:
        raise bad_value("input is an empty list", param="input")
    if len(inputs) > MAX_INPUTS:
        raise bad_value(f"{len(inputs)} inputs; at most {MAX_INPUTS} are read", param="input")
    prompts = [_ids(tokenizer, one) for one in inputs]
    for ids in prompts:
        check_length(ids, model, param="input")
    return model, prompts


def _ids(tokenizer: Tokenizer, value: str | list[int]) -> np.ndarray:
    if not isinstance(value, str):
        return _own_ids(tokenizer, value)
    if not value:
        raise bad_value("an input is an empty text", param="input")
    try:
        return np.append(np.int32(tokenizer.bos), tokenizer.encode(value))
    except DataError as error:
        raise bad_value(str(error), param="input") from None


def _own_ids(tokenizer: Tokenizer, value: list[int]) -> np.ndarray:
    """Ids as /tokenize gives them.

    LangChain sends those of OpenAI's vocabulary unless told not to. Most of them are ids here,
    too, of other words; the vector would be of another text, and nobody would see it. So ids must
    begin as a text begins here, and spell a text whose ids they are.
    """
    wrong: ApiError | None = None
    try:
        ids = given_ids(tokenizer, value, param="input")
        again = tokenizer.encode(tokenizer.decode(ids[1:]))
        if ids[0] == tokenizer.bos and np.array_equal(again, ids[1:]):
            return ids
    except ApiError as error:
        wrong = error
    raise bad_value(
        "the token ids are not of this model's vocabulary; send texts (LangChain: "
        "OpenAIEmbeddings(check_embedding_ctx_length=False)), or the ids that /tokenize gives",
        param="input",
    ) from wrong
