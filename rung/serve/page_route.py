"""Routes of pages: who asks with a browser is told what is wrong by a page, not by JSON."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from rung.serve.html import render_page


class PageRoute(APIRoute):
    """Use as `APIRouter(route_class=PageRoute)`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_page(request: Request) -> Response:
            try:
                return await handle(request)
            except HTTPException as error:
                problem, status = str(error.detail), error.status_code
                if not _reads_pages(request):
                    raise
            except RequestValidationError as error:
                problem, status = "; ".join(_say(fault) for fault in error.errors()), 422
                if not _reads_pages(request):
                    raise
            html = render_page(
                "problem.html", path=request.url.path, problem=problem, status=status
            )
            return HTMLResponse(html, status_code=status)

        return handle_page


def _reads_pages(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def _say(fault: Any) -> str:
    """run: Field required"""
    return f"{'.'.join(str(part) for part in fault['loc'][1:])}: {fault['msg']}"
