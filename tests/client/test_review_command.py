"""`gradmedic review` and the reviews of the client."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest
from tests.client.runs import explode

import gradmedic
from gradmedic.cli.main import main
from gradmedic.exceptions import InvalidRequestError


@pytest.fixture(scope="module")
def exploding(service_url: str) -> gradmedic.Run:
    """A run that exploded."""
    run = gradmedic.init(f"cli-{uuid4()}", base_url=service_url, silent=True)
    explode(run)
    run.finish()
    return run


@pytest.fixture(autouse=True)
def service_of_the_command(service_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command finds the service by the environment."""
    monkeypatch.setenv("GRADMEDIC_BASE_URL", service_url)


def test_a_verdict_is_reviewed_and_taken_back(exploding: gradmedic.Run, capsys: pytest.CaptureFixture[str]) -> None:
    """`review` stores an answer, prints the stored one without an answer, and `--clear` takes it back."""
    run = str(exploding.id)
    answer = ["wrong", "--verdict", "healthy", "--level", "attention", "--note", "It was meant."]
    assert main(["review", run, *answer]) == 0
    printed = capsys.readouterr().out
    for part in ("verdict exploding (level critical) at step", "is wrong", "true verdict: healthy", "It was meant."):
        assert part in printed
    assert main(["review", run]) == 0
    assert capsys.readouterr().out == printed
    assert main(["review", run, "right", "--json"]) == 0
    review = json.loads(capsys.readouterr().out)
    assert (review["answer"], review["verdict"], review["judged_verdict"]) == ("right", None, "exploding")
    assert main(["runs", "--project", exploding.project, "--review", "right"]) == 0
    assert run[-8:] in capsys.readouterr().out
    assert main(["review", run, "--clear"]) == 0
    assert capsys.readouterr().out == "no review\n"
    assert main(["review", run, "--json"]) == 0
    assert capsys.readouterr().out == "null\n"


def test_arguments_that_contradict_each_other(exploding: gradmedic.Run, capsys: pytest.CaptureFixture[str]) -> None:
    """An answer with --clear, an option without an answer, and what the service refuses are errors in one line."""
    run = str(exploding.id)
    for arguments, message in (
        (["right", "--clear"], "give either an answer or --clear"),
        (["--note", "x"], "--note belongs to an answer"),
        (["right", "--verdict", "healthy"], "verdict: belongs to the answer `wrong`"),
        (["right", "--step", "100000"], "step: must be from 0 to"),
    ):
        assert main(["review", run, *arguments]) == 2
        assert message in capsys.readouterr().err


def test_the_client_reviews(exploding: gradmedic.Run, client: gradmedic.Client) -> None:
    """The client stores a review, lists by it and takes it back; a refusal names the field."""
    review = client.runs.review(exploding.id, "wrong", verdict="vanishing", note="n", step=0)
    assert client.runs.get(exploding.id).review == review
    assert [run.id for run in client.runs.list(project=exploding.project, review="wrong")] == [exploding.id]
    with pytest.raises(InvalidRequestError, match="answer"):
        client.runs.review(exploding.id, "perhaps")
    client.runs.take_back_review(exploding.id)
    assert client.runs.get(exploding.id).review is None
