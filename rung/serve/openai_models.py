"""/v1/models, and the tokenizer of a model: /tokenize, /detokenize, /tokenizer_info."""

from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from rung.engine.service import ServedModel
from rung.errors import DataError
from rung.serve.errors import bad_value
from rung.serve.openai_shapes import (
    DetokenizeRequest,
    Json,
    TokenizeRequest,
    listing,
    model_card,
)
from rung.serve.prompts import chat_prompt, given_ids
from rung.serve.state import ServerState, state_of
from rung.tokens.tokenizer import Tokenizer

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> Json:
    """What is served."""
    return listing([_card(model) for model in state_of(request).engine.models()])


@router.get("/v1/models/{name:path}")
async def show_model(name: str, request: Request) -> Json:
    """One served model."""
    return _card(state_of(request).served(name, generates=False))


def _card(model: ServedModel) -> Json:
    return model_card(
        model.name,
        created=model.created,
        context=model.context,
        kind=model.kind,
        artefact=model.artefact_id,
    )


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> Json:
    """The ids of a text, or of a conversation."""
    state = state_of(request)
    return await state.reading(_tokenize, state, body)


def _tokenize(state: ServerState, body: TokenizeRequest) -> Json:
    model = _first(state, body.model)
    tokenizer = state.engine.tokenizer(model.name)
    if (body.prompt is None) == (body.messages is None):
        raise bad_value("give prompt (a text) or messages (a conversation)", param="prompt")
    if body.messages:
        functions = [tool.get("function", tool) for tool in body.tools or ()]
        opened = body.add_generation_prompt is not False
        told = chat_prompt(tokenizer, body.messages, functions=functions, generation_prompt=opened)
        ids = told.ids.tolist()
    else:
        ids = _text_ids(tokenizer, body.prompt or "", begun=body.add_special_tokens is not False)
    texts = [tokenizer.decode([i], special=True) for i in ids] if body.return_token_strs else None
    return {
        "count": len(ids),
        "max_model_len": model.context,
        "tokens": ids,
        "token_strs": texts,
    }


def _text_ids(tokenizer: Tokenizer, text: str, *, begun: bool) -> list[int]:
    """begun: with the token that begins a text.

    Text never becomes a special token, with one exception: the name of one and nothing else is
    its id. That is how harnesses ask for it.
    """
    special = tokenizer.special_id(text)
    if special is not None and not begun:
        return [special]
    try:
        ids = tokenizer.encode(text).tolist()
    except DataError as error:
        raise bad_value(str(error), param="prompt") from None
    return [tokenizer.bos, *ids] if begun else ids


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> Json:
    """The text of ids, special tokens by their names."""
    state = state_of(request)
    tokenizer = state.engine.tokenizer(_first(state, body.model).name)
    ids = given_ids(tokenizer, body.tokens, param="tokens") if body.tokens else np.array([])
    return {"prompt": await state.reading(tokenizer.decode, ids, special=True)}


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request, model: str | None = None) -> Json:
    """What a client needs to know of a tokenizer that it does not have."""
    state = state_of(request)
    served = _first(state, model)
    tokenizer = state.engine.tokenizer(served.name)
    facts = tokenizer_facts(tokenizer)
    return {**facts, "model_max_length": served.context, "model": served.name}


def tokenizer_facts(tokenizer: Tokenizer) -> Json:
    """Names and ids of the special tokens, and the chat template."""
    named: dict[str, Any] = dict(tokenizer.named_tokens)
    # What texts begin with here, also where the configuration names a token that none begins with.
    named["bos_token"] = tokenizer.decode([tokenizer.bos], special=True)
    named.setdefault("eos_token", tokenizer.decode([tokenizer.stop_ids[0]], special=True))
    named.setdefault("pad_token", tokenizer.decode([tokenizer.pad], special=True))
    return {
        **named,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.stop_ids[0],
        "pad_token_id": tokenizer.pad,
        "stop_token_ids": list(tokenizer.stop_ids),
        "chat_template": tokenizer.chat_template or None,
        "vocab_size": tokenizer.vocab_size,
        "add_bos_token": True,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _first(state: ServerState, name: str | None) -> ServedModel:
    """The model of a request; harnesses that ask for a tokenizer name none: the first."""
    if name is not None:
        return state.served(name, generates=False)
    return state.engine.models()[0]
