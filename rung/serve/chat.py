"""The chat page and what it needs beside the API: rendering, comparisons, feedback."""

import datetime
import secrets
import threading
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, HTTPException, Request, Response
from fastapi.responses import HTMLResponse

from rung.errors import DataError
from rung.feedback.events import Event, parse_event
from rung.feedback.inbox import Inbox, inbox_path
from rung.serve.arena import SIDES, Arena, Comparison, ComparisonError
from rung.serve.html import render_page
from rung.serve.markdown import render_blocks
from rung.serve.masked import MaskedCompletion

MAX_TEXT = 200_000  # characters that are rendered; longer texts are shown as they are
MAX_TEXTS = 200
MAX_FEEDBACK = 4_000_000  # bytes of one event
CHATTING = ("model", "adapter")  # kinds of a served model that write text

router = APIRouter(prefix="/chat")


class Chat:
    """What the page's endpoints keep between requests: the comparisons and the inbox."""

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox
        self.arena = Arena()


_BEGIN = threading.Lock()


def chat_of(request: Request) -> Chat:
    """Of the application, made at its first use."""
    state = request.app.state
    with _BEGIN:
        if not hasattr(state, "chat"):
            state.chat = Chat(Inbox(inbox_path(state.rung.store.root)))
    chat: Chat = state.chat
    return chat


def same_origin(request: Request) -> None:
    """Refuses what another page could make a browser send: forms, other origins, no JSON."""
    headers = request.headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, f"send JSON with Content-Type application/json, not {kind!r:.60}")
    site = headers.get("sec-fetch-site", "same-origin")
    origin = headers.get("origin")
    # The scheme may differ behind a proxy that speaks TLS; the host may not.
    foreign = origin is not None and origin.partition("://")[2] != headers.get("host")
    if foreign or site not in ("same-origin", "none"):
        raise HTTPException(403, f"requests from other pages are refused (origin {origin!r:.80})")


Posted = [Depends(same_origin)]
Mine = Annotated[Chat, Depends(chat_of)]
Json = Annotated[dict[str, Any], Body()]


@router.get("", response_class=HTMLResponse)
def page(request: Request) -> HTMLResponse:
    """The page itself: it names no model and holds nothing of anybody."""
    collect = bool(request.app.state.rung.settings.collect_feedback)
    return HTMLResponse(
        render_page("chat.html", path=request.url.path, collect=collect, flags=FLAG_NAMES)
    )


FLAG_NAMES = {
    "harmful": "Harmful",
    "misleading": "Misleading",
    "biased": "Biased",
    "private": "Private data",
    "off_topic": "Off-topic",
    "unhelpful": "Unhelpful",
}


def _chatting(request: Request) -> list[Any]:
    models = request.app.state.rung.engine.models()
    return [model for model in models if model.kind in CHATTING]


@router.get("/models")
def models(request: Request) -> dict[str, Any]:
    """Models that can chat, with the artefacts behind their names."""
    return {
        "models": [
            {"name": m.name, "artefact": m.artefact_id, "context": m.context, "kind": m.kind}
            for m in _chatting(request)
        ],
        "collect_feedback": bool(request.app.state.rung.settings.collect_feedback),
    }


@router.post("/render", dependencies=Posted)
def render(body: Json) -> dict[str, Any]:
    """{"texts": [...]} -> {"rendered": [[{"html", "line"}, ...], ...]}, HTML that is safe."""
    texts = body.get("texts")
    if not isinstance(texts, list) or len(texts) > MAX_TEXTS:
        raise HTTPException(400, f"texts is a list of at most {MAX_TEXTS} texts")
    if not all(isinstance(text, str) and len(text) <= MAX_TEXT for text in texts):
        raise HTTPException(413, f"a text to render has at most {MAX_TEXT:,} characters")
    return {"rendered": [[block._asdict() for block in render_blocks(text)] for text in texts]}


@router.post("/arena", dependencies=Posted)
def start_comparison(request: Request, chat: Mine, body: Json) -> dict[str, str]:
    """{"models": [two names, or none for any two]} -> {"id"}. The sides stay here."""
    wanted = body.get("models") or []
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise HTTPException(400, "models is a list of two names, or empty for any two")
    served = [(model.name, model.artefact_id) for model in _chatting(request)]
    try:
        return {"id": chat.arena.start(served, wanted).id}
    except ComparisonError as error:
        raise HTTPException(400, str(error)) from None


def _comparison(chat: Chat, id: str) -> Comparison:
    try:
        return chat.arena.get(id)
    except ComparisonError as error:
        raise HTTPException(410, str(error)) from None


@router.post("/arena/{id}/{side}/completions", dependencies=Posted)
async def complete(request: Request, chat: Mine, id: str, side: str, body: Json) -> Response:
    """The chat completion of one side; `model` in what comes back is the side."""
    comparison = _comparison(chat, id)
    if side not in SIDES:
        raise HTTPException(404, f"side {side!r:.20} is not left or right")
    index = SIDES.index(side)
    seed = body.get("seed")
    if isinstance(seed, int) and len(set(comparison.models)) == 1:
        body = {**body, "seed": seed + index}  # one model, one seed: the same answer twice
    return MaskedCompletion(request.app, body, model=comparison.models[index], alias=side)


def _names(comparison: Comparison) -> dict[str, Any]:
    return {
        side: {"model": model, "artefact": artefact}
        for side, model, artefact in zip(
            SIDES, comparison.models, comparison.artefacts, strict=True
        )
    }


@router.post("/arena/{id}/names", dependencies=Posted)
def names(chat: Mine, id: str) -> dict[str, Any]:
    """Tells the names without a vote; none can follow."""
    comparison = _comparison(chat, id)
    comparison.shown = True
    return {"names": _names(comparison)}


@router.post("/feedback", dependencies=Posted)
def feedback(request: Request, chat: Mine, body: Json) -> dict[str, Any]:
    """Stores an event of rung/feedback/events.py; it is on disk when this answers."""
    if not request.app.state.rung.settings.collect_feedback:
        raise HTTPException(403, "this server collects no feedback")
    if int(request.headers.get("content-length", 0)) > MAX_FEEDBACK:
        raise HTTPException(413, f"an event has at most {MAX_FEEDBACK:,} bytes")
    try:
        event = _event(body)
        stored = chat.inbox.find(event.key)
        if stored is None:
            if event.kind == "vote":
                retract = event.value == "none"
                comparison = chat.arena.claim(event.subject, event.key, retract=retract)
                event = _blind(event, comparison)
            stored = chat.inbox.add(event)
            _mark(request, stored)
    except DataError as error:
        raise HTTPException(400, str(error)) from None
    except ComparisonError as error:
        raise HTTPException(409, str(error)) from None
    said: dict[str, Any] = {"id": stored.id, "time": stored.time}
    if stored.kind == "vote":
        said["names"] = {
            side: {"model": answer.model, "artefact": answer.artefact}
            for side, answer in zip(SIDES, stored.answers, strict=True)
        }
    return said


def _mark(request: Request, event: Event) -> None:
    """A flagged answer is an edge case of the traffic log, where there is one."""
    traffic, answer = request.app.state.rung.traffic, event.answers[0]
    if event.kind == "flag" and event.value and traffic is not None and answer.completion:
        traffic.flag(answer.completion, ", ".join(event.value), comment=event.comment)


def _event(body: dict[str, Any]) -> Event:
    """The event that a page sent; id and time are ours."""
    own = {"id", "time"} & set(body)
    if own:
        raise DataError(f"feedback: {sorted(own)[0]} is set by the server; leave it out")
    event = parse_event(body, where="feedback")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return replace(event, id=f"chat/{secrets.token_hex(8)}", time=now)


def _blind(event: Event, comparison: Comparison) -> Event:
    """A vote with the models that stood left and right, which the page did not know."""
    answers = [
        replace(answer, model=model, artefact=artefact)
        for answer, model, artefact in zip(
            event.answers, comparison.models, comparison.artefacts, strict=True
        )
    ]
    return replace(event, answers=answers, blind=True)
