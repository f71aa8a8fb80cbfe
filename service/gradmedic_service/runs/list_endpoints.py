"""Routes of many runs at once: lists, counts, columns, and changes of many runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Query, Request

from gradmedic.protocol.ids import SHORT_ID
from gradmedic.protocol.reviews import NO_REVIEW, REVIEW_ANSWERS
from gradmedic.protocol.run_lists import (
    MAX_CHANGED_RUNS,
    RunColumns,
    RunCounts,
    RunsChange,
    RunsDeletion,
    RunTagsChange,
)
from gradmedic.protocol.runs import STATUSES, RunList, Status
from gradmedic.protocol.service import Limits
from gradmedic.protocol.verdicts import LEARNING_STATES, LEVELS, VERDICTS, Learning, Level, Verdict
from gradmedic_service.access.authorization import MayAdminister, MayIngest, MayRead
from gradmedic_service.http.dependencies import DatabaseDependency, LimitsDependency, check_max_results
from gradmedic_service.http.errors import BODY_ERRORS, InvalidRequest, documented
from gradmedic_service.http.json_bodies import json_body
from gradmedic_service.http.routers import api_router
from gradmedic_service.runs import bulk, listing
from gradmedic_service.runs.run_query import (
    CONFIG_PREFIX,
    GROUP_KEYS,
    MAX_SKIP,
    SORT_KEYS,
    VALUE_PREFIXES,
    RunQuery,
    ValueFilterError,
    is_group_key,
    is_sort_key,
    parse_value_filters,
    value_key_error,
)
from gradmedic_service.runs.validation import check_filters, check_tags_change

router = api_router("/runs", tags=["runs"])

MAX_CONFIG_KEYS = 20
SORTS = ", ".join((*SORT_KEYS, "config.NAME", "metric.NAME"))


class RunFilters:
    """The filters of a list of runs, from the parameters of a query."""

    query_prefixes = VALUE_PREFIXES
    """Beginnings of further parameters, which the route table allows."""

    async def __call__(
        self,
        request: Request,
        limits: LimitsDependency,
        project: Annotated[str | None, Query(description="Name of the project.")] = None,
        verdict: Annotated[Verdict | None, Query(description=f"Verdict of the runs: {', '.join(VERDICTS)}.")] = None,
        learning: Annotated[
            Learning | None, Query(description=f"Course of the loss of the runs: {', '.join(LEARNING_STATES)}.")
        ] = None,
        level: Annotated[Level | None, Query(description=f"Level of the runs: {', '.join(LEVELS)}.")] = None,
        status: Annotated[Status | None, Query(description=f"Status of the runs: {', '.join(STATUSES)}.")] = None,
        review: Annotated[
            str | None,
            Query(description=f"Answer of the runs' reviews: {', '.join((*REVIEW_ANSWERS, NO_REVIEW))} (no review)."),
        ] = None,
        tag: Annotated[str | None, Query(description="Tag that the runs have.")] = None,
        group: Annotated[
            str | None, Query(description="Name of the group, which is empty for runs without one.")
        ] = None,
        parent_id: Annotated[
            UUID | None,
            Query(description="Id of the run whose trials' runs are listed. By default, runs of trials are left out."),
        ] = None,
        q: Annotated[
            str | None,
            Query(
                description="Text in the name, the group or the notes, in any case. At least "
                f"{SHORT_ID} characters with which the id begins or ends find the run too."
            ),
        ] = None,
        loss: Annotated[list[str] | None, Query(description="Condition on the last loss, for example `<0.5`.")] = None,  # noqa: ARG002 (read with the other conditions on values)
    ) -> RunQuery:
        """Return the query without its order. Raises InvalidRequest."""
        check_filters(
            limits,
            project=project,
            verdict=verdict,
            learning=learning,
            level=level,
            status=status,
            review=review,
            tag=tag,
            group=group or None,
            q=q,
        )
        try:
            values = parse_value_filters(request.query_params.multi_items())
        except ValueFilterError as error:
            raise InvalidRequest(error.errors) from None
        return RunQuery(
            project=project,
            verdict=verdict,
            learning=learning,
            level=level,
            status=status,
            review=review,
            tag=tag,
            group=group,
            parent_id=parent_id,
            text=q,
            values=values,
        )


Filters = Annotated[RunQuery, Depends(RunFilters())]

TAGS_EXAMPLES: dict[str, Any] = {
    "tag": {
        "summary": "Tag two runs",
        "value": {
            "ids": ["0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50", "0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f51"],
            "add": ["baseline"],
        },
    },
}
DELETION_EXAMPLES: dict[str, Any] = {
    "delete": {"summary": "Delete a run", "value": {"ids": ["0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50"]}},
}


def ids_count_error(count: int, _limits: Limits) -> str | None:
    """Return why a request must not name so many runs, None if it may."""
    if count == 0:
        return "names no run"
    return f"names {count} runs; at most {MAX_CHANGED_RUNS} are allowed" if count > MAX_CHANGED_RUNS else None


TAGS_BODY = json_body(RunTagsChange, TAGS_EXAMPLES, counts={"ids": ids_count_error}, check=check_tags_change)
DELETION_BODY = json_body(RunsDeletion, DELETION_EXAMPLES, counts={"ids": ids_count_error})


@router.get("", operation_id="runs.list", response_model=RunList, responses=documented(InvalidRequest))
def list_runs(
    principal: MayRead,
    database: DatabaseDependency,
    limits: LimitsDependency,
    filters: Filters,
    sort: Annotated[str, Query(description=f"Order of the runs, descending with a minus: {SORTS}.")] = (
        listing.DEFAULT_SORT
    ),
    config_keys: Annotated[
        list[str] | None, Query(description="Names of hyperparameters that each run is answered with, at most 20.")
    ] = None,
    max_results: Annotated[int, Query(description="Largest number of runs, at most `max_results` of `/limits`.")] = 100,
    page_token: Annotated[str | None, Query(description="The `next_page_token` of the previous page.")] = None,
    skip: Annotated[
        int, Query(description="Number of runs to pass over, from the token's place or from the beginning.")
    ] = 0,
) -> RunList:
    """List the runs that the API key reaches, newest first by default.

    The parameters `config.NAME` and `metric.NAME` filter by a hyperparameter and by the last value of a metric, `loss`
    by the last loss: `config.lr=0.1`, `config.optimizer=adam`, `metric.accuracy=>0.9`, `loss=<=0.5`, `config.seed=!=1`,
    `config.dropout=null` (without it). The same parameter again adds a condition. `config.optimizer.lr` is the value
    `lr` in `optimizer`. A text that looks like a number is written in quotation marks.
    """
    sort_key = sort.removeprefix("-")
    if not is_sort_key(sort_key):
        raise InvalidRequest.at("sort", f"{sort[:100]!r} is not one of {SORTS}, with or without a minus")
    keys = config_keys or []
    if len(keys) > MAX_CONFIG_KEYS:
        raise InvalidRequest.at("config_keys", f"has {len(keys)} names; at most {MAX_CONFIG_KEYS} are allowed")
    for index, key in enumerate(keys):
        if (message := value_key_error(f"{CONFIG_PREFIX}{key}")) is not None:
            raise InvalidRequest.at(f"config_keys[{index}]", message)
    check_max_results(max_results, limits)
    if not 0 <= skip <= MAX_SKIP:
        raise InvalidRequest.at("skip", f"must be from 0 to {MAX_SKIP}")
    query = replace(filters, sort_key=sort_key, is_descending=sort.startswith("-"), skip=skip)
    with database.reading() as session:
        return listing.list_page(session, principal, query, keys, page_token, max_results)


@router.get("/counts", operation_id="runs.count", response_model=RunCounts, responses=documented(InvalidRequest))
def count_runs(
    principal: MayRead,
    database: DatabaseDependency,
    filters: Filters,
    group_by: Annotated[
        str | None, Query(description=f"Key by which the runs are grouped: {', '.join(GROUP_KEYS)}, config.NAME.")
    ] = None,
) -> RunCounts:
    """Count the runs that the API key reaches by level, verdict and status, and by a group or a hyperparameter."""
    if group_by is not None and not is_group_key(group_by):
        message = f"{group_by[:100]!r} is not one of {', '.join(GROUP_KEYS)}, config.NAME"
        raise InvalidRequest.at("group_by", message)
    with database.reading() as session:
        return listing.count(session, principal, filters, group_by)


@router.get(
    "/columns", operation_id="runs.list_columns", response_model=RunColumns, responses=documented(InvalidRequest)
)
def list_columns(principal: MayRead, database: DatabaseDependency, filters: Filters) -> RunColumns:
    """List the hyperparameters and metrics of the newest hundred runs, for `sort`, filters and `config_keys`."""
    with database.reading() as session:
        return listing.list_columns(session, principal, filters)


@router.post("/tags", operation_id="runs.change_tags", response_model=RunsChange, responses=documented(*BODY_ERRORS))
def change_tags(
    principal: MayIngest,
    body: Annotated[RunTagsChange, TAGS_BODY],
    database: DatabaseDependency,
    limits: LimitsDependency,
) -> RunsChange:
    """Add tags to runs and remove tags from them. The answer lists the changed runs, the unchanged and the refused."""
    with database.writing() as session:
        return bulk.change_tags(session, principal, body, limits)


@router.post("/delete", operation_id="runs.delete_many", response_model=RunsChange, responses=documented(*BODY_ERRORS))
def delete_runs(
    principal: MayAdminister, body: Annotated[RunsDeletion, DELETION_BODY], database: DatabaseDependency
) -> RunsChange:
    """Delete runs with their steps. The answer lists the runs that were deleted and those that were not."""
    with database.writing() as session:
        return bulk.delete(session, principal, body.ids)
