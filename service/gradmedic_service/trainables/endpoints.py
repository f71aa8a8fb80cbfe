"""Routes of trainables."""

from __future__ import annotations

from typing import Annotated, Any

from gradmedic.protocol.trainables import Trainables, TrainablesOffer
from gradmedic_service.access.authorization import MayFollowRerun, MayWork
from gradmedic_service.http.dependencies import DatabaseDependency, LimitsDependency
from gradmedic_service.http.errors import BODY_ERRORS, documented
from gradmedic_service.http.json_bodies import json_body
from gradmedic_service.http.routers import api_router
from gradmedic_service.trainables import service
from gradmedic_service.trainables.errors import TrainableTaken

router = api_router(prefix="/trainables", tags=["workers"])

OFFER_EXAMPLES: dict[str, Any] = {
    "one": {
        "summary": "One script whose learning rate may be set",
        "value": {
            "items": [
                {
                    "name": "train",
                    "parameters": [{"name": "lr", "type": "float", "minimum": 1e-6, "maximum": 10.0}],
                    "gpus": 1,
                    "timeout": 3600,
                }
            ],
            "worker": "gpu-7",
        },
    }
}


@router.get("", operation_id="trainables.list", response_model=Trainables)
def list_trainables(principal: MayFollowRerun, database: DatabaseDependency) -> Trainables:
    """List the trainables that runs may name."""
    with database.reading() as session:
        return service.list_trainables(session, principal)


@router.put(
    "",
    operation_id="trainables.register",
    response_model=Trainables,
    responses=documented(TrainableTaken, *BODY_ERRORS),
)
def register_trainables(
    principal: MayWork,
    body: Annotated[TrainablesOffer, json_body(TrainablesOffer, OFFER_EXAMPLES)],
    database: DatabaseDependency,
    limits: LimitsDependency,
) -> Trainables:
    """Offer trainables, with the parameters that a rerun may set.

    In its project a name belongs to the key that registered it. Other projects may use the same name. The runs of a
    project mean the project's own trainable, otherwise one of a key for all projects.

    A worker repeats its offer every ten seconds. A trainable that it leaves out is withdrawn, unless another offer of
    it arrived within a minute. Reruns of a withdrawn trainable end with that reason.
    """
    with database.writing() as session:
        return service.register(session, principal, body, limits)
