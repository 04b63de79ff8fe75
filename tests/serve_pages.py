"""The pages as an application of their own, for tests and for a look: no model, no API.

python tests/serve_pages.py STORE [PORT]
"""

import sys
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles

from rung.serve import artefacts, lineage, reports, runs
from rung.serve.html import STATIC
from rung.store.store import Store

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; font-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)


def pages_app(store: Store, service: Any = None) -> FastAPI:
    """Routers, static files and the policy that the server puts on every page."""
    app = FastAPI()
    app.state.rung = SimpleNamespace(store=store, service=service)
    for room in (runs, lineage, artefacts, reports):
        app.include_router(room.router)
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.middleware("http")
    async def policy(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers.setdefault("Content-Security-Policy", CSP)
        return response

    return app


if __name__ == "__main__":
    import uvicorn

    port = int(sys.argv[2]) if len(sys.argv) > 2 else 8013
    uvicorn.run(pages_app(Store(sys.argv[1])), host="127.0.0.1", port=port, log_level="warning")
