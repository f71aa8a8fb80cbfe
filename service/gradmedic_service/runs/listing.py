"""Lists of runs: pages, counts, and the columns that a list may have."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from gradmedic.protocol.encoding import encode_json
from gradmedic.protocol.run_lists import RunColumn, RunColumns, RunCounts, RunGroup
from gradmedic.protocol.runs import RunList
from gradmedic_service.access.principal import Principal
from gradmedic_service.database.engine import Session
from gradmedic_service.guards import repository as guards
from gradmedic_service.http.errors import InvalidRequest
from gradmedic_service.http.paging import cut_page, position_id, position_of, position_time
from gradmedic_service.runs import list_repository
from gradmedic_service.runs.list_repository import Row
from gradmedic_service.runs.progress import METRIC_PREFIX
from gradmedic_service.runs.run_query import (
    CONFIG_PREFIX,
    INDEXED_SORTS,
    Position,
    RunQuery,
    filter_text,
    flat_names,
    value_of,
)
from gradmedic_service.runs.summaries import to_summary

DEFAULT_SORT = "-created_at"
MAX_GROUPS = 200
"""Largest number of groups in an answer; a reader reads no more headings."""
COLUMN_RUNS = 100
"""Number of runs whose hyperparameters and metrics are offered as columns: the newest ones, which a reader looks at."""
MAX_COLUMNS = 500
MAX_VALUE_LENGTH = 200
"""Largest number of characters of a hyperparameter in a list."""
NEWER_FILTERS = ("learning", "level", "review", "group")
"""Filters that older versions lack. A token of a list without them stays valid."""


def list_page(
    session: Session,
    principal: Principal,
    query: RunQuery,
    config_keys: Sequence[str],
    page_token: str | None,
    max_results: int,
) -> RunList:
    """Return a page of the runs that a principal reaches, with some hyperparameters, and the token of the next page.

    Raises InvalidRequest for a token of another query.
    """
    query = _reachable(query, principal)
    if page_token is not None:
        query = _at_page(query, page_token)
    rows = list_repository.read_page(session, query, max_results + 1)
    page, token = cut_page(rows, max_results, _query_digest(query), lambda row: _position(query, row))
    configs = list_repository.read_configs(session, [run.id for run, _ in page]) if config_keys else {}
    guard_actions = guards.count_all_actions(session, [run.id for run, _ in page])
    items = [
        to_summary(run, guard_actions.get(run.id, 0), _cut_config(configs.get(run.id, {}), config_keys))
        for run, _ in page
    ]
    return RunList(items=items, next_page_token=token)


def count(session: Session, principal: Principal, query: RunQuery, group_by: str | None) -> RunCounts:
    """Return how many of the runs that a principal reaches fit a query, and how many there are of each group."""
    query = _reachable(query, principal)
    counted = list_repository.count_runs(session, query)
    groups = {} if group_by is None else list_repository.count_groups(session, query, group_by)
    largest = sorted(groups.items(), key=lambda group: -group[1].total())[:MAX_GROUPS]
    return RunCounts(
        total=counted.levels.total(),
        levels=dict(counted.levels),
        verdicts=dict(counted.verdicts),
        statuses=dict(counted.statuses),
        groups=[
            _to_group(group_by or "", value, levels)
            for value, levels in sorted(largest, key=lambda group: _order(group[0]))
        ],
        omitted_groups=len(groups) - len(largest),
    )


def list_columns(session: Session, principal: Principal, query: RunQuery) -> RunColumns:
    """Return the hyperparameters and metrics of the newest runs that a principal reaches, those that vary first."""
    rows = list_repository.read_newest_columns(session, _reachable(query, principal), COLUMN_RUNS)
    values: dict[str, set[str]] = {}
    holders: Counter[str] = Counter()
    for config, last_values in rows:
        named = {f"{CONFIG_PREFIX}{name}": str(value) for name, value in flat_names(config)}
        named |= {name: str(value) for name, value in last_values.items() if name.startswith(METRIC_PREFIX)}
        for name, text in named.items():
            values.setdefault(name, set()).add(text)
            holders[name] += 1
    columns = [
        RunColumn(name=name, varies=len(found) > 1 or holders[name] < len(rows)) for name, found in values.items()
    ]
    return RunColumns(items=sorted(columns, key=lambda column: (not column.varies, column.name))[:MAX_COLUMNS])


def _reachable(query: RunQuery, principal: Principal) -> RunQuery:
    return replace(query, reachable_project=principal.project, reachable_run=principal.run_id)


def _to_group(key: str, value: float | str | None, levels: Counter[str]) -> RunGroup:
    text = value if key == "project" else filter_text(value) if key.startswith(CONFIG_PREFIX) else value or ""
    return RunGroup(value=value, total=levels.total(), levels=dict(levels), query={key: str(text)})


def _order(value: float | str | None) -> tuple[int, float, str]:
    """Return the place of a group: numbers, then texts, then the runs without a value."""
    if value is None:
        return 2, 0.0, ""
    return (1, 0.0, value) if isinstance(value, str) else (0, value, "")


def _cut_config(config: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the hyperparameters of these names that a run has; a long value becomes the beginning of its text."""
    found = {name: value for name in names if (value := value_of(config, name)) is not None}
    return {name: _cut_value(value) for name, value in found.items()}


def _cut_value(value: Any) -> Any:
    text = value if isinstance(value, str) else encode_json(value).decode()
    return value if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}…"


def _position(query: RunQuery, row: Row) -> list[str]:
    run, place = row
    if place is not None:
        return [*map(str, place[:2]), repr(place[2]), place[3], run.id.hex]
    value = getattr(run, query.sort_key)
    return [value if query.sort_key == "name" else value.isoformat(), run.id.hex]


def _at_page(query: RunQuery, page_token: str) -> RunQuery:
    if query.sort_key in INDEXED_SORTS:
        value, run_id = position_of(page_token, _query_digest(query), 2)
        position = value if query.sort_key == "name" else position_time(value)
        return replace(query, after=(position, position_id(run_id)))
    *place, run_id = position_of(page_token, _query_digest(query), 5)
    return replace(query, after=(_read_place(place), position_id(run_id)))


def _read_place(parts: Sequence[str]) -> Position:
    """Return the place that the parts of a position hold. Raises InvalidRequest."""
    is_missing, is_text, number, text = parts
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if {is_missing, is_text} - {"0", "1"} or math.isnan(value):
        raise InvalidRequest.at("page_token", "is not a token of this list")
    return int(is_missing), int(is_text), value, text


def _query_digest(query: RunQuery) -> str:
    parent_id = None if query.parent_id is None else query.parent_id.hex
    content = {**asdict(query), "parent_id": parent_id, "after": None}
    del content["skip"]
    for name in NEWER_FILTERS:
        if content[name] is None:
            del content[name]
    if not content["values"]:
        del content["values"]
    return hashlib.blake2b(encode_json(content), digest_size=6).hexdigest()
