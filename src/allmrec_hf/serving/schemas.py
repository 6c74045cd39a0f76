"""The requests and responses of the service: one shape for HTTP, MCP, Inference Endpoints and the pipeline."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ..errors import DataError
from ..values import id_text, is_missing

MAX_HISTORY = 10_000
MAX_CANDIDATES = 1_000
MAX_ITEMS = 1_000  # of one addition, and events of one call
MAX_TITLE = 1_000
MAX_DESCRIPTION = 20_000
MAX_FURTHER = 50
LATEST = 253_402_300_799  # the last second of the year 9999

_Text = Annotated[StrictStr, Field(min_length=1, max_length=512)]
_Int = Annotated[StrictInt, Field(ge=-(2**63), le=2**63 - 1)]
_IdInt = Annotated[StrictInt, Field(ge=-(2**64), le=2**64)]
_IdFloat = Annotated[StrictFloat, Field(ge=-(2**53), le=2**53)]  # beyond, neighbouring ids are one float
ItemId = Annotated[_Text | _IdInt | _IdFloat, Field(description='Text or a number; 7, 7.0 and "7" are one id.')]
Title = Annotated[StrictStr, Field(min_length=1, max_length=MAX_TITLE)]
UserId = Annotated[StrictStr, Field(min_length=1, max_length=256)]
_Ids = Annotated[list[ItemId], Field(min_length=1, max_length=MAX_HISTORY, fail_fast=True)]
_Titles = Annotated[list[Title], Field(min_length=1, max_length=MAX_HISTORY, fail_fast=True)]
_CandidateIds = Annotated[list[ItemId], Field(min_length=1, max_length=MAX_CANDIDATES, fail_fast=True)]
_CandidateTitles = Annotated[list[Title], Field(min_length=1, max_length=MAX_CANDIDATES, fail_fast=True)]
_Count = Annotated[StrictInt, Field(ge=1, le=MAX_CANDIDATES)]
_Model = Annotated[StrictStr, Field(min_length=1, max_length=64, description="One of /v1/models; the first if none.")]
_Ranker = Annotated[StrictStr, Field(min_length=1, max_length=64)]


class _Body(BaseModel):
    """What all requests share: unknown fields and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    def require_one(self, *names: str) -> None:
        """Check that exactly one of some fields is given.

        Raises:
            PydanticCustomError: when none or several are; it names the first of them as the field.
        """
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) == 1:
            return
        told = f"give {' or '.join(names)}" + (f", not {' and '.join(given)} together" if given else "")
        raise PydanticCustomError("one_of", "{told}", {"told": told, "field": given[-1] if given else names[0]})


class _OfUser(_Body):
    """A request about a user: by the history, or by an id of which the service has stored events."""

    model: _Model | None = None
    history: _Ids | None = Field(None, description="Item ids, oldest first.")
    titles: _Titles | None = Field(None, description="The history by title, in place of ids.")
    user_id: UserId | None = Field(
        None,
        description="Repeated in the response; without history and titles the stored history of this user is read.",
    )
    candidates: _CandidateIds | None = Field(None, description="Item ids to rank; retrieved where not given.")
    candidate_titles: _CandidateTitles | None = Field(None, description="The candidates by title.")

    @model_validator(mode="after")
    def _check_user(self) -> Any:
        if self.history is not None or self.titles is not None:
            self.require_one("history", "titles")
        else:
            self.require_one("history", "titles", "user_id")
        if self.candidates is not None:
            self.require_one("candidates", "candidate_titles")
        return self


class RecommendRequest(_OfUser):
    """A request of the pipeline with its options beside it."""

    top_k: _Count | None = Field(None, description="Items to return; 10 if not given, of /v1/rank all.")
    ranker: _Ranker | None = Field(None, description="One that the model has; its own choice if not given.")
    num_candidates: _Count | None = Field(None, description="Items to retrieve where no candidates are given.")
    num_permutations: Annotated[StrictInt, Field(ge=1, le=8)] | None = Field(
        None, description="Orders of the candidate list whose scores are averaged."
    )

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"history": ["M0001", "M0002", "M0003"], "top_k": 3, "ranker": "cf"}]}
    )

    def pipeline_request(self) -> dict[str, Any]:
        """Return the request as the pipeline takes it."""
        return self.model_dump(exclude_none=True, exclude={"model"})


class RankRequest(RecommendRequest):
    """A request with the candidates to put in order."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"history": ["M0001", "M0002"], "candidates": ["M0007", "M0008", "M0009"]}]}
    )

    @model_validator(mode="after")
    def _check_candidates(self) -> Any:
        self.require_one("candidates", "candidate_titles")
        return self

    def pipeline_request(self) -> dict[str, Any]:
        """Return the request as the pipeline takes it: all candidates come back where it does not say how many."""
        return {"top_k": len(self.candidates or self.candidate_titles or ()), **super().pipeline_request()}


class SimilarRequest(_Body):
    """An item whose nearest items are asked for."""

    model: _Model | None = None
    item: ItemId | None = None
    item_title: Title | None = None
    top_k: _Count = 10
    by: Literal["joint", "cf", "text"] = Field(
        "joint", description="Cosine of the joint embeddings, of the backbone's, or of the text's."
    )

    model_config = ConfigDict(json_schema_extra={"examples": [{"item": "M0001", "top_k": 3}]})

    @model_validator(mode="after")
    def _check_item(self) -> Any:
        self.require_one("item", "item_title")
        return self


class ExplainRequest(_OfUser):
    """A recommendation to explain, as `allmrec explain` takes it."""

    item: ItemId | None = None
    item_title: Title | None = None
    contrast: StrictBool = Field(False, description="Explain the score minus the candidates' mean.")
    removal: Literal["neutral", "delete"] = Field("neutral", description="How an item leaves the prompt.")
    top_tokens: Annotated[StrictInt, Field(ge=1, le=20)] = 5
    gradient_steps: Annotated[StrictInt, Field(ge=1, le=64)] = 8

    model_config = ConfigDict(json_schema_extra={"examples": [{"history": ["M0001", "M0002"], "item": "M0007"}]})

    @model_validator(mode="after")
    def _check_item(self) -> Any:
        self.require_one("item", "item_title")
        return self


def _checked_item_id(value: Any) -> Any:
    """Return the id of an item that can be stored.

    Raises:
        PydanticCustomError: when it stands for a missing value, such as a blank, or is no id of any catalogue.
    """
    try:
        found = id_text(value)
    except DataError as error:
        raise PydanticCustomError("item_id", "{told}", {"told": str(error)}) from error
    return _checked_text(value if found is None else found)


def _checked_text(value: Any) -> Any:
    """Return a text that does not stand for a missing value.

    Raises:
        PydanticCustomError: when it does.
    """
    if is_missing(value):
        told = f"{value!r} counts as missing; give a text that says something"
        raise PydanticCustomError("missing_text", "{told}", {"told": told})
    return value


StoredId = Annotated[ItemId, AfterValidator(_checked_item_id)]
StoredTitle = Annotated[Title, AfterValidator(_checked_text)]


Further = Annotated[StrictStr, Field(max_length=MAX_DESCRIPTION)] | _Int | StrictFloat | StrictBool | None


class NewItem(BaseModel):
    """An item by its text; further fields become columns of the catalogue."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())
    __pydantic_extra__: dict[str, Further] = Field(init=False)

    item_id: StoredId
    title: StoredTitle
    description: Annotated[StrictStr, Field(max_length=MAX_DESCRIPTION)] | None = None

    @model_validator(mode="after")
    def _check_further(self) -> Any:
        extra = self.__pydantic_extra__ or {}
        wrong = next((name for name in extra if not name.strip() or len(name) > 64), None)
        if len(extra) > MAX_FURTHER or wrong is not None:
            told = f"an item has at most {MAX_FURTHER} further fields, with names of 1 to 64 characters"
            raise PydanticCustomError("further_fields", "{told}", {"told": told})
        return self


class AddItemsRequest(_Body):
    """Items to add."""

    model: _Model | None = None
    items: Annotated[list[NewItem], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"items": [{"item_id": "NEW1", "title": "The Lost Harbor", "description": "A crime film."}]}]
        }
    )


class Event(_Body):
    """An interaction of a user with an item."""

    user_id: UserId
    item_id: StoredId
    timestamp: Annotated[StrictInt | StrictFloat, Field(ge=0, le=LATEST)] | None = Field(
        None, description="Seconds since 1970; where not given, now, and never before the user's last event."
    )


class EventsRequest(_Body):
    """Events to store, in their order."""

    events: Annotated[list[Event], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"events": [{"user_id": "u17", "item_id": "M0001", "timestamp": 1700000000}]}]}
    )


class Recommendation(BaseModel):
    """One item of a response."""

    item_id: str
    title: str
    score: float | None
    rank: int
    parts: dict[str, float | None] = {}


class RecommendResponse(BaseModel):
    """Recommended or ranked items, best first."""

    model: str
    ranker: str
    user_id: str | None = None
    recommendations: list[Recommendation]
    unknown_history: list[str] | None = None
    notes: list[str] | None = None


class SimilarItem(BaseModel):
    """An item and its cosine with the item asked for."""

    item_id: str
    title: str
    score: float | None
    rank: int


class SimilarResponse(BaseModel):
    """The nearest items, nearest first."""

    model: str
    item: str
    by: str
    similar: list[SimilarItem]


class ExplainResponse(BaseModel):
    """An explanation, as `allmrec explain --json` prints it."""

    model_config = ConfigDict(extra="allow")

    model: str


class AddItemsResponse(BaseModel):
    """What was added, and what was there with the same text already."""

    model: str
    added: list[str]
    unchanged: list[str]
    items: int = Field(description="Items of the catalogue now.")


class ItemResponse(BaseModel):
    """An item of the catalogue."""

    model: str
    item_id: str
    title: str
    description: str | None
    interactions: int = Field(description="How often it was a target in training; 0 for an added item.")
    further: dict[str, Any] = {}


class EventsResponse(BaseModel):
    """How many events were stored, and which of their items no model knows."""

    stored: int
    unknown_items: list[str] = []


class HistoryResponse(BaseModel):
    """The stored history of a user, oldest first."""

    user_id: str
    history: list[str]


class ModelInfo(BaseModel):
    """A served model."""

    name: str
    source: str
    items: int
    added_items: int
    rankers: list[str]
    ranker: str
    loaded: str = Field(description="When, as ISO 8601 in UTC.")
    changed_on_disk: bool = Field(description="Whether its folder is another one than was loaded: reload it.")
    takes_items: bool


class ModelsResponse(BaseModel):
    """The served models; requests without a model go to the first."""

    models: list[ModelInfo]


class FieldProblem(BaseModel):
    """What is wrong with a field of a request."""

    field: str
    message: str


class Problem(BaseModel):
    """An error: its kind for programs, its message for people."""

    type: str
    message: str
    fields: list[FieldProblem] | None = None
    items: list[str] | None = None


class ErrorResponse(BaseModel):
    """The body of every response that is no success."""

    error: Problem
    request_id: str | None = None
