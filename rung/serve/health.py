"""/health and /metrics, and a user's flag on an answer."""

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from rung.serve.errors import ApiError
from rung.serve.openai_shapes import FlagRequest, Json
from rung.serve.state import state_of

router = APIRouter()


@router.get("/health")
@router.get("/v1/health")
async def health(request: Request) -> Response:
    """200 {"status": "ok"}, or 503 with "loading" or "closing"."""
    state = state_of(request)
    status = "closing" if state.closing else "ok" if state.service is not None else "loading"
    return JSONResponse({"status": status}, status_code=200 if status == "ok" else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    content = generate_latest(state_of(request).metrics.registry)
    return Response(content, headers={"content-type": CONTENT_TYPE_LATEST})


@router.post("/v1/flags")
async def flag(body: FlagRequest, request: Request) -> Json:
    """Note in the traffic log that a user found an answer wrong; id: of the answer."""
    traffic = state_of(request).traffic
    if traffic is None:
        raise ApiError(
            400,
            "the traffic log is off, so a flag would be lost; start with --log-traffic",
            code="unsupported",
        )
    traffic.flag(body.id, body.reason, comment=body.comment)
    return {"id": body.id, "object": "flag", "noted": True}
