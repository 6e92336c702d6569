"""What can go wrong, with gRPC's codes.

Every failure is a `RelayError` whose `code` is the gRPC status code; there is a subclass for each
code, and where Python has an exception of that meaning the subclass is one too, so that
`except LookupError` and `except relay.NotFound` both catch a prompt that does not exist.
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """gRPC's status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RelayError(Exception):
    """A call failed. `code`: the gRPC status code; `message`: the server's or the library's text."""

    code: Code = Code.UNKNOWN

    def __init__(self, message: str, code: Code | None = None):
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class Cancelled(RelayError):
    """The caller stopped it."""

    code = Code.CANCELLED


class Unknown(RelayError):
    code = Code.UNKNOWN


class InvalidArgument(RelayError, ValueError):
    """An argument that no state of the server would make right."""

    code = Code.INVALID_ARGUMENT


class DeadlineExceeded(RelayError, TimeoutError):
    code = Code.DEADLINE_EXCEEDED


class NotFound(RelayError, LookupError):
    """No such prompt, request or session."""

    code = Code.NOT_FOUND


class AlreadyExists(RelayError):
    """The prompt is there with other contents."""

    code = Code.ALREADY_EXISTS


class PermissionDenied(RelayError, PermissionError):
    code = Code.PERMISSION_DENIED


class ResourceExhausted(RelayError):
    """Out of memory, quota or places."""

    code = Code.RESOURCE_EXHAUSTED


class FailedPrecondition(RelayError):
    """The state is not one for this call: a gap, another model, a server that has restarted."""

    code = Code.FAILED_PRECONDITION


class Aborted(RelayError):
    """Something newer took its place: a step, a generation, a stream."""

    code = Code.ABORTED


class OutOfRange(RelayError, IndexError):
    code = Code.OUT_OF_RANGE


class Unimplemented(RelayError, NotImplementedError):
    """Never here: the server or this version cannot do it."""

    code = Code.UNIMPLEMENTED


class Internal(RelayError):
    code = Code.INTERNAL


class Unavailable(RelayError, ConnectionError):
    """No server, or it is going away. Trying again later may work."""

    code = Code.UNAVAILABLE


class DataLoss(RelayError):
    """Bytes changed on the way."""

    code = Code.DATA_LOSS


class Unauthenticated(RelayError):
    code = Code.UNAUTHENTICATED


_CLASSES: dict[Code, type[RelayError]] = {
    cls.code: cls for cls in RelayError.__subclasses__() if cls.code is not Code.UNKNOWN
}
_CLASSES[Code.UNKNOWN] = Unknown


def error_for(code: int, message: str) -> RelayError:
    """The exception of a code."""
    try:
        known = Code(code)
    except ValueError:
        return Unknown(f"code {code}: {message}")
    return _CLASSES.get(known, RelayError)(message)
