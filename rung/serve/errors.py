"""What goes wrong in a request, in the shape that OpenAI's clients read."""

import math
from typing import Any

from rung.engine.service import ClosingError, QueueFullError, RequestError, UnknownModelError
from rung.errors import ConfigError, DataError, RungError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


class ApiError(RungError):
    """A status and OpenAI's four words about it.

    param: the wrong parameter, such as "messages[0].content". code: for programs to tell errors
    apart, such as "model_not_found". retry_after: seconds, where trying again can help.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """{"error": {"message": "...", "type": "...", "param": None, "code": None}}"""
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, default),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """OpenAI's clients wait as long as they are told, and say so to who asks."""
        if self.retry_after is None:
            return {}
        wait = max(self.retry_after, 0.001)
        return {
            "retry-after": str(math.ceil(wait)),
            "retry-after-ms": str(math.ceil(wait * 1000)),
            "x-should-retry": "true",
        }


def unsupported(message: str, *, param: str) -> ApiError:
    """Something OpenAI's API has and this model or server has not: said, never passed over."""
    return ApiError(400, message, code="unsupported", param=param)


def bad_value(message: str, *, param: str | None, code: str | None = "invalid_value") -> ApiError:
    return ApiError(400, message, code=code, param=param)


def as_api_error(error: RungError, *, param: str | None = None) -> ApiError:
    """`error` with its status; param: what is to blame where the error itself does not say."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UnknownModelError):
        return ApiError(404, str(error), code="model_not_found", param="model")
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", retry_after=error.retry_after)
    if isinstance(error, ClosingError):
        return ApiError(503, str(error), code="shutting_down", retry_after=2.0)
    if isinstance(error, RequestError):
        return ApiError(400, str(error), code="invalid_value", param=error.param or param)
    if isinstance(error, ConfigError | DataError):
        return ApiError(400, str(error), code="invalid_value", param=param)
    return ApiError(500, str(error), code="internal_error")
