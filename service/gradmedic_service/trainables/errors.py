"""The errors of trainables."""

from __future__ import annotations

from gradmedic_service.http.errors import ServiceError


class TrainableUnknown(ServiceError):
    """No worker offers the run's trainable."""

    status = 409
    error_code = "trainable_unknown"
    title = "No worker offers this trainable"


class TrainableTaken(ServiceError):
    """The trainable's name belongs to another API key of the project, which registered it first."""

    status = 409
    error_code = "trainable_taken"
    title = "The trainable's name is taken"
