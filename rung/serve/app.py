"""The web application: every endpoint and page behind one guard."""

import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

import rung
from rung.errors import RungError
from rung.serve import (
    artefacts,
    chat,
    health,
    lineage,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_models,
    reports,
    runs,
)
from rung.serve.errors import ApiError, as_api_error, bad_value
from rung.serve.guard import Guard
from rung.serve.html import STATIC
from rung.serve.state import ServerState

ROOMS: Sequence[Any] = (
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_models,
    health,
    chat,
    runs,
    lineage,
    artefacts,
    reports,
)
"""Modules with a router: the API, and the pages."""


def create_app(state: ServerState) -> FastAPI:
    """The application over `state`, which pages find as request.app.state.rung."""
    app = FastAPI(
        title="Rung",
        version=rung.__version__,
        docs_url=None,  # these two pages would load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.rung = state
    for room in ROOMS:
        app.include_router(room.router)
    app.mount("/static", StaticFiles(directory=STATIC, check_dir=False), name="static")
    app.add_api_route("/", _home, include_in_schema=False)
    app.add_exception_handler(RungError, _rung_error)
    app.add_exception_handler(RequestValidationError, _wrong_body)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Guard, state=state)
    return app


async def _home(request: Request) -> RedirectResponse:
    """Where a person begins: at the chat, or at the runs where no model is served."""
    return RedirectResponse("/chat" if request.app.state.rung.expects_models else "/runs")


async def _rung_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RungError)
    return _answer(as_api_error(error))


async def _wrong_body(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _answer(describe(error.errors(), content_type=request.headers.get("content-type", "")))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
    message = str(error.detail)
    if error.status_code in (404, 405):
        message = (
            f"{request.method} {request.url.path}: {message}; /openapi.json lists what is there"
        )
    return _answer(ApiError(error.status_code, message, code=codes.get(error.status_code)))


def _answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


def describe(details: Sequence[Any], *, content_type: str) -> ApiError:
    """What is wrong with a body, by pydantic's words on it; the first fault is enough."""
    first = details[0]
    path = [part for part in first["loc"] if part not in ("body", "query", "path")]
    if first["type"] == "json_invalid":
        why = first.get("ctx", {}).get("error", "")
        return bad_value(f"the body is not JSON: {why}", param=None, code="invalid_json")
    if not path and "json" not in content_type.lower():
        found = content_type or "none"
        return bad_value(
            f"send Content-Type: application/json with a JSON body; found {found}",
            param=None,
            code="invalid_content_type",
        )
    param = _spell(path)
    if first["type"] == "missing":
        return bad_value(f"{param} is missing", param=param, code="missing")
    # A value that fits none of several types has a fault for each of them: the last name is a type.
    wants = dict.fromkeys(d["msg"] for d in details if _spell(d["loc"][1:]) == param)
    shown = repr(first.get("input"))
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return bad_value(
        f"{param or 'the body'} = {shown}: {'; or: '.join(wants)}", param=param or None
    )


_TYPE_NAME = re.compile(r"(str|int|float|bool|none|(list|dict|tuple|set)\[.*|[A-Z].*|.*-.*)")


def _spell(path: Sequence[Any]) -> str:
    """("messages", 0, "content", "str") -> "messages[0].content": no names of types."""
    spelt = ""
    for part in path:
        if isinstance(part, int):
            spelt += f"[{part}]"
        elif not _TYPE_NAME.fullmatch(str(part)):
            spelt += f".{part}" if spelt else str(part)
    return spelt
