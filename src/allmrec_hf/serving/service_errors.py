"""Errors of the service: a status of HTTP, a kind for programs and a message for people."""

from __future__ import annotations

from typing import Any

from ..errors import ALLMRecError, UnknownItemsError

MAX_FIELDS = 20  # problems that a response lists
_KINDS = ("str", "int", "float", "bool")


class ServiceError(Exception):
    """A request that is not served.

    Args:
        status: The status of HTTP.
        kind: A word for programs, such as `unknown_items`.
        message: What is wrong and what to do.
        fields: By field of the request, what is wrong with it.
        items: Unknown or refused items, all of them.
        retry_after: Seconds after which to try again.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        fields: dict[str, str] | None = None,
        items: list[str] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.fields = fields or {}
        self.items = items
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """Return what the response says of it."""
        told: dict[str, Any] = {"type": self.kind, "message": str(self)}
        if self.fields:
            told["fields"] = [{"field": name, "message": message} for name, message in self.fields.items()]
        if self.items is not None:
            told["items"] = self.items
        return told


def invalid(field: str, message: str) -> ServiceError:
    """Return the error of a field of a request."""
    return ServiceError(422, "invalid_request", f"{field}: {message}", fields={field: message})


def of_validation(errors: list[Any]) -> ServiceError:
    """Return the error of a request that does not fit its schema, by pydantic's errors; values are not repeated."""
    fields: dict[str, str] = {}
    for error in errors:
        place = [str(part) for part in error["loc"] if part not in ("body", "path", "query")]
        if error["type"] == "json_invalid":
            place = []
        elif place and (place[-1] in _KINDS or place[-1].startswith("constrained-")):  # one of several kinds
            place.pop()
        own = (error.get("ctx") or {}).get("field")
        name = ".".join([*place, own] if own else place) or "body"
        if len(fields) < MAX_FIELDS or name in fields:
            fields.setdefault(name, error["msg"])
    first, message = next(iter(fields.items()))
    return ServiceError(422, "invalid_request", f"{first}: {message}", fields=fields)


def of_request(error: ALLMRecError) -> ServiceError:
    """Return the error of a request that a model refuses."""
    if isinstance(error, UnknownItemsError):
        return ServiceError(
            422, "unknown_items", str(error), fields={error.field: "names unknown items"}, items=error.items
        )
    return ServiceError(422, "invalid_request", str(error))
