"""Lists of runs, and changes of many runs at once; a part of `gradmedic.Client`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.run_lists import (
    MAX_CHANGED_RUNS,
    RunColumn,
    RunColumns,
    RunCounts,
    RunsChange,
    RunsDeletion,
    RunTagsChange,
)
from gradmedic.protocol.runs import RunList, RunSummary

if TYPE_CHECKING:
    from gradmedic.api import Client

PAGE_SIZE = 100


class RunLists:
    """The methods of `client.runs` that are about many runs."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(
        self,
        *,
        project: str | None = None,
        verdict: str | None = None,
        learning: str | None = None,
        level: str | None = None,
        status: str | None = None,
        review: str | None = None,
        tag: str | None = None,
        group: str | None = None,
        text: str | None = None,
        parent_id: UUID | str | None = None,
        where: Mapping[str, str | Sequence[str]] | None = None,
        config_keys: Sequence[str] = (),
        sort: str | None = None,
        page_size: int = PAGE_SIZE,
    ) -> Iterator[RunSummary]:
        """Iterate over the runs that match every argument given; pages of `page_size` are fetched as needed.

        The runs of trials are left out, unless `parent_id` is the id of a suspect run.

        Args:
            project: name of the project.
            verdict: verdict of the runs.
            learning: what their loss does.
            level: their level.
            status: their status.
            review: answer of their reviews, or `none`.
            tag: a tag that they have.
            group: name of their group; empty for runs without one.
            text: text in the name, the group or the notes, or 8 or more characters with which the id begins or ends.
            parent_id: id of the suspect run.
            where: conditions on values, such as `{"config.lr": "<0.1", "metric.accuracy": ">0.9", "loss": "<=2"}`.
            config_keys: names of hyperparameters that each run is answered with, in `config`.
            sort: `created_at`, `name`, `loss`, `duration`, `config.lr`, ...; with a minus before it, descending.
            page_size: number of runs that one request fetches.
        """
        query: dict[str, Any] = {
            "project": project,
            "verdict": verdict,
            "learning": learning,
            "level": level,
            "status": status,
            "review": review,
            "tag": tag,
            "group": group,
            "q": text,
            "parent_id": parent_id,
            **(where or {}),
            "config_keys": list(config_keys),
            "sort": sort,
            "max_results": page_size,
        }
        while True:
            page = self._client._request(RunList, "GET", "/runs", query=query)
            yield from page.items
            if page.next_page_token is None:
                return
            query["page_token"] = page.next_page_token

    def counts(self, *, group_by: str | None = None, **filters: Any) -> RunCounts:
        """Count runs by level, verdict, status and group.

        Args:
            group_by: `group`, `project` or `config.NAME`.
            filters: filters of `GET /runs`, for example `project="p"`.
        """
        return self._client._request(RunCounts, "GET", "/runs/counts", query={"group_by": group_by, **filters})

    def columns(self, **filters: Any) -> Sequence[RunColumn]:
        """Return the hyperparameters and metrics of the newest runs that fit filters of `GET /runs`."""
        return self._client._request(RunColumns, "GET", "/runs/columns", query=filters).items

    def change_tags(
        self, ids: Iterable[UUID | str], *, add: Sequence[str] = (), remove: Sequence[str] = ()
    ) -> RunsChange:
        """Add tags to runs and remove tags from them; 500 runs a request. The answer lists what was not done."""
        return self._change("/runs/tags", ids, lambda part: RunTagsChange(ids=part, add=list(add), remove=list(remove)))

    def delete_many(self, ids: Iterable[UUID | str]) -> RunsChange:
        """Delete runs with all their steps; 500 runs a request. The answer lists what was not done."""
        return self._change("/runs/delete", ids, lambda part: RunsDeletion(ids=part))

    def _change(self, path: str, ids: Iterable[UUID | str], body_of: Any) -> RunsChange:
        run_ids = [UUID(str(id)) for id in ids]
        done = RunsChange(changed=[], unchanged=[], failed=[])
        for start in range(0, len(run_ids), MAX_CHANGED_RUNS):
            body = to_json(body_of(run_ids[start : start + MAX_CHANGED_RUNS]))
            part = self._client._request(RunsChange, "POST", path, body=body)
            done.changed.extend(part.changed)
            done.unchanged.extend(part.unchanged)
            done.failed.extend(part.failed)
        return done
