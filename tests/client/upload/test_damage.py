"""What a damaged journal costs: the damaged records, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.runs import log_losses, losses
from tests.client.upload.outboxes import RUN, begin, step, steps_of
from tests.support.patience import PATIENCE

import gradmedic
from gradmedic.cli import main
from gradmedic.protocol.ids import new_id
from gradmedic.recording.step import Entry, Rewind, Step, pack_step
from gradmedic.upload.journal import Journal
from gradmedic.upload.records import Record, RecordKind, decode_record, encode_record, read_records

OLD_JOURNALS = Path(__file__).parents[2] / "upgrade" / "0.1.0" / "journal"
ENTRIES: list[Entry] = [step(i) for i in range(40)]
ENTRIES[25:25] = [Rewind(9)]
ENTRIES[26:41] = [step(i, 2.0) for i in range(10, 25)]


@pytest.fixture(scope="module")
def session() -> Iterator[Path]:
    """A session of several segments, of which the first five entries are acknowledged. Its run was not finished."""
    with tempfile.TemporaryDirectory() as folder:
        outbox = begin(Path(folder), new_id(), memory=2**20, segment=900)
        for entry in ENTRIES:
            outbox.append(entry, RUN)
        outbox.acknowledge(outbox.read_oldest(5)[-1][0])
        outbox.close()
        (session,) = Path(folder).glob("*/session")
        assert len(list(session.glob("*.journal"))) > 3
        yield session


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The folder in which the runs of a test keep what they did not send."""
    return tmp_path / "unsent"


def flip(data: bytes, at: int, size: int) -> bytes:
    """Return data with one byte changed."""
    return data[:at] + bytes([data[at] ^ (1 + size % 255)]) + data[at + 1 :]


def zero(data: bytes, at: int, size: int) -> bytes:
    """Return data with a range of zeros."""
    return data[:at] + bytes(len(data[at : at + size])) + data[at + size :]


def truncate(data: bytes, at: int, size: int) -> bytes:
    """Return the first bytes."""
    return data[:at]


def duplicate_tail(data: bytes, at: int, size: int) -> bytes:
    """Return data with its end twice."""
    return data + data[at:]


def insert(data: bytes, at: int, size: int) -> bytes:
    """Return data with foreign bytes in it."""
    return data[:at] + b"\x01\x02" * size + data[at:]


def is_same(found: Entry, expected: Entry) -> bool:
    """Return whether two entries are the same to the bit."""
    if isinstance(found, Step) and isinstance(expected, Step):
        return pack_step(found) == pack_step(expected)
    return found == expected


@settings(max_examples=100, deadline=None)
@given(
    harm=st.sampled_from([flip, zero, truncate, duplicate_tail, insert]),
    which=st.integers(0, 2**16),
    at=st.integers(0, 2**16),
    size=st.integers(1, 1200),
)
def test_every_whole_record_is_read_and_every_missing_one_is_counted(
    session: Path, harm: Callable[[bytes, int, int], bytes], which: int, at: int, size: int
) -> None:
    """However one file is damaged, entries whose bytes are whole are read to the bit, and the others are counted."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(session, Path(folder) / "session"))
        files = sorted(copy.iterdir())
        file = files[which % len(files)]
        data = file.read_bytes() or b"\0"
        at %= len(data)
        damaged = harm(data, at, size)
        file.write_bytes(damaged)
        whole = {
            record.number
            for path in copy.glob("*.journal")
            for record in _records_before(session / path.name)
            if path != file or path.read_bytes().count(_bytes_of(session / path.name, record))
        }
        journal = Journal.open(copy, 2**30)
        assert journal is not None
        acknowledged = journal.position.acknowledged
        assert acknowledged in (0, 5)
        read = journal.read(acknowledged, 1000)
        expected = {number: entry for number, entry in enumerate(ENTRIES, start=1) if number in whole}
        found = dict(read)
        assert sorted(found) == [number for number, _ in read]
        for number, entry in expected.items():
            if number > acknowledged:
                assert is_same(found[number], entry)
        missing = {number for number in range(acknowledged + 1, len(ENTRIES) + 1) if number not in expected}
        is_last_segment = file.name == max(path.name for path in copy.glob("*.journal"))
        if harm is truncate and is_last_segment:
            journal.close()
            return  # without these bytes, the process just ended earlier
        assert bool(journal.damage) >= bool(missing)
        if not is_last_segment:  # otherwise nothing may follow that shows how many are missing
            assert journal.damage.steps == len(missing)
        content = journal.description()
        assert content == RUN.content
        for number, entry in found.items():
            if number not in expected:  # only the rewind can be inferred, exactly if the step behind it can be read
                assert isinstance(entry, Rewind)
                assert entry.step == 9 if number + 1 in whole and ENTRIES[number - 1] == Rewind(9) else entry.step > 9
        journal.delete()
        assert bool(list(copy.glob("*.damaged"))) == bool(journal.damage)


def _records_before(path: Path) -> list[Record]:
    return [record for record in read_records(path) if record.is_entry]


def _bytes_of(path: Path, record: Record) -> bytes:
    return path.read_bytes()[record.begin : record.end]


@given(st.integers(0, 3), st.binary(max_size=60))
def test_a_record_is_found_behind_any_bytes(tail: int, noise: bytes) -> None:
    """Foreign bytes before a record, and a part of one behind it, do not hide it."""
    record = encode_record(RecordKind.STEP, 7, b"payload")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(noise + record + record[:tail])
        found = [each for each in read_records(path) if each.kind is not None]
        assert [(each.number, each.payload) for each in found] == [(7, b"payload")]
        assert decode_record(record[:-1]) is None


@pytest.mark.parametrize("at", [0.3, 0.6, 0.95])
def test_a_journal_of_version_0_1_0_is_read_on_behind_a_damaged_record(tmp_path: Path, at: float) -> None:
    """One flipped byte in a file that version 0.1.0 wrote costs one entry."""
    (old,) = OLD_JOURNALS.glob("*c9/*")
    copy = Path(shutil.copytree(old, tmp_path / "run" / "session"))
    (file,) = copy.glob("*.journal")
    before = Journal.open(Path(shutil.copytree(old, tmp_path / "before")), 2**30)
    assert before is not None
    before.close()
    data = file.read_bytes()
    file.write_bytes(flip(data, int(len(data) * at), 1))
    journal = Journal.open(copy, 2**30)
    assert journal is not None
    assert journal.unsent_steps == before.unsent_steps - 1
    assert (journal.damage.steps, journal.final_status) == (1, "finished")
    assert journal.description() == before.description()
    journal.close()


def test_a_payload_that_is_no_step_counts_as_damage(tmp_path: Path) -> None:
    """A record with a right checksum and a wrong payload costs itself."""
    outbox = begin(tmp_path, new_id(), memory=2**20, segment=10**6)
    for i in range(3):
        outbox.append(step(i), RUN)
    outbox.close()
    (file,) = tmp_path.rglob("*.journal")
    with file.open("ab") as journal_file:
        journal_file.write(encode_record(RecordKind.STEP, 4, b"\xc0"))
        journal_file.write(encode_record(RecordKind.STEP, 5, pack_step(step(4))))
    journal = Journal.open(file.parent, 2**30)
    assert journal is not None
    assert steps_of(journal.read(0, 10)) == [0, 1, 2, 4]
    assert journal.damage.steps == 1
    journal.close()


def test_a_live_run_reads_on_behind_a_damaged_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A process that cannot read a part of its own journal sends the rest, counts the steps and keeps the file."""
    outbox = begin(tmp_path, new_id(), memory=0, segment=1500)
    for i in range(30):
        outbox.append(step(i), RUN)
    (session,) = tmp_path.glob("*/session")
    first = min(session.glob("*.journal"))
    data = first.read_bytes()
    first.write_bytes(flip(data, len(data) // 2, 1))
    sent: list[int] = []
    while entries := outbox.read_oldest(10):
        sent += steps_of(entries)
        outbox.acknowledge(entries[-1][0])
    assert len(sent) == 29
    assert outbox.dropped == 1
    assert "cannot read some steps" in caplog.text
    assert outbox.journal is not None
    outbox.journal.delete()
    assert [path.read_bytes() for path in session.glob("*.damaged")] == [first_bytes(data)]


def first_bytes(data: bytes) -> bytes:
    """Return the damaged bytes of the test above."""
    return flip(data, len(data) // 2, 1)


# --- sync ---------------------------------------------------------------------------------------------------------


def record_offline(steps: int, **arguments: Any) -> gradmedic.Run:
    """Record an offline run."""
    with gradmedic.init("damaged", mode="offline", **arguments) as run:
        log_losses(run, 0, steps // 2)
        run.flush()  # so that the description before the later layers is a record of its own
        log_losses(run, steps // 2, steps)
    return run


def journal_of(directory: Path, run: gradmedic.Run) -> Path:
    """Return the only segment of a run."""
    (file,) = (directory / str(run.id)).rglob("*.journal")
    return file


def sync(directory: Path, url: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Return the exit code of `gradmedic sync`, its results by run, and its messages."""
    code = main(["sync", str(directory), "--base-url", url, "--json"])
    out, err = capsys.readouterr()
    results = [json.loads(line) for line in out.splitlines()]
    return code, {result["run_id"]: result for result in results}, err


def test_sync_sends_what_can_be_read_and_reports_the_rest(
    service_url: str, client: gradmedic.Client, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One damaged byte of 300 steps costs one step, which is counted and kept; the exit code is not 0."""
    run = record_offline(300)
    file = journal_of(directory, run)
    data = file.read_bytes()
    file.write_bytes(flip(data, len(data) // 3, 1))
    code, results, err = sync(directory, service_url, capsys)
    stored = losses(client, run)
    assert code == 2
    assert len(stored) == 299
    assert all(stored[i] == float(i) for i in stored)
    assert client.runs.get(run.id).status == "finished"
    result = results[str(run.id)]
    assert (result["steps"], result["unreadable_steps"]) == (299, 1)
    assert 0 < result["unreadable_bytes"] < 1000
    (kept,) = result["damaged_files"]
    assert Path(kept).read_bytes() == flip(data, len(data) // 3, 1)
    assert f"1 steps of run {run.id} ({result['unreadable_bytes']} bytes) cannot be read" in err
    assert kept in err
    assert sync(directory, service_url, capsys) == (0, {}, "")
    assert Path(kept).exists()


@pytest.mark.parametrize("what", ["segment", "position", "lock", "session"])
def test_a_session_that_cannot_be_opened_does_not_keep_the_others(
    what: str, service_url: str, client: gradmedic.Client, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other runs are sent. The session stays as it is, is named, and is sent once it can be opened."""
    first, second, third = (record_offline(20) for _ in range(3))
    segment = journal_of(directory, second)
    place = {"segment": segment, "session": segment.parent}.get(what, segment.parent / what)
    aside = directory.parent / "aside"
    if place.exists():
        place.rename(aside)
    if what == "session":  # a folder whose name cannot be listed
        place.symlink_to(place)
    else:
        place.mkdir()
    code, results, err = sync(directory, service_url, capsys)
    for run in (first, third):
        assert losses(client, run) == {i: float(i) for i in range(20)}
        assert results[str(run.id)]["steps"] == 20
    if what in ("segment", "lock"):
        assert code == 2
        assert results[str(second.id)]["error"] in err
        assert str(second.id) in err
    if what == "session":
        place.unlink()
    elif what != "position":
        place.rmdir()
    if aside.exists() and what != "position":
        aside.rename(place)
    assert sync(directory, service_url, capsys)[0] == 0
    assert losses(client, second) == {i: float(i) for i in range(20)}


def test_a_rewind_that_cannot_be_read_is_inferred(
    service_url: str, client: gradmedic.Client, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The steps behind a damaged rewind replace the older ones, though the service would ignore them without it."""
    with gradmedic.init("damaged", mode="offline") as run:
        log_losses(run, 0, 60)
        run.rewind(19)
        for i in range(20, 40):
            run.log(-float(i))
    file = journal_of(directory, run)
    (rewind,) = [record for record in read_records(file) if record.kind is RecordKind.REWIND]
    file.write_bytes(flip(file.read_bytes(), rewind.end - 1, 1))
    code, results, _ = sync(directory, service_url, capsys)
    assert code == 2
    assert results[str(run.id)]["steps"] == 80
    assert losses(client, run) == {i: float(i) for i in range(20)} | {i: -float(i) for i in range(20, 40)}


def test_the_description_survives_in_its_copy(
    service_url: str, client: gradmedic.Client, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run whose descriptions among the steps are damaged is sent with its layers, from the copy beside them."""
    run = record_offline(80, config={"lr": 0.5})
    file = journal_of(directory, run)
    data = file.read_bytes()
    for record in read_records(file):
        if record.kind is RecordKind.DESCRIPTION:
            data = zero(data, record.begin, record.end - record.begin)
    file.write_bytes(data)
    assert sync(directory, service_url, capsys)[0] == 2
    stored = client.runs.get(run.id)
    assert ([layer.name for layer in stored.layers], stored.config) == (["w", "late"], {"lr": 0.5})
    assert losses(client, run) == {i: float(i) for i in range(80)}


def test_an_older_description_costs_the_statistics_of_newer_layers(
    service_url: str,
    client: gradmedic.Client,
    directory: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without the newest description and its copy, steps are sent without the statistics of layers that only it has."""
    run = record_offline(80)
    file = journal_of(directory, run)
    (file.parent / "description").unlink()
    newest = [record for record in read_records(file) if record.kind is RecordKind.DESCRIPTION][-1]
    file.write_bytes(flip(file.read_bytes(), newest.end - 2, 1))
    assert sync(directory, service_url, capsys)[0] == 2
    assert losses(client, run) == {i: float(i) for i in range(80)}
    assert [layer.name for layer in client.runs.get(run.id).layers] == ["w"]
    assert "the service does not have these layers" in caplog.text


def test_without_any_description_everything_is_kept(
    service_url: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps of which nothing else is known cannot be sent; they are counted and kept."""
    run = record_offline(10)
    file = journal_of(directory, run)
    (file.parent / "description").unlink()
    data = file.read_bytes()
    for record in read_records(file):
        if record.kind is RecordKind.DESCRIPTION:
            data = flip(data, record.end - 2, 1)
    file.write_bytes(data)
    code, results, _ = sync(directory, service_url, capsys)
    assert code == 2
    assert results[str(run.id)]["steps"] == 0
    assert results[str(run.id)]["unreadable_steps"] == 10
    (kept,) = results[str(run.id)]["damaged_files"]
    assert Path(kept).read_bytes() == data


def test_a_job_that_goes_on_sends_what_can_be_read_of_its_earlier_process(
    service_url: str, client: gradmedic.Client, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second process of a run sends the readable steps of the first one, warns, and goes on."""
    first = record_offline(20)
    file = journal_of(directory, first)
    data = file.read_bytes()
    file.write_bytes(flip(data, len(data) // 2, 1))
    unreadable = file.parent.with_name("ffff")
    (unreadable / "00000001.journal").mkdir(parents=True)
    with gradmedic.init("damaged", id=first.id, base_url=service_url) as run:
        run.rewind(19)
        run.log(20.0)
    assert len(losses(client, run)) == 20
    assert "1 steps of run" in caplog.text
    assert f"{unreadable} of run {run.id} cannot be read" in caplog.text
    assert list(file.parent.glob("*.damaged"))


def test_a_disk_that_is_full_leaves_a_journal_that_can_be_read(
    service_url: str, client: gradmedic.Client, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was written before the disk was full is sent without damage, and what was dropped is counted and said."""
    script = (
        "import resource, gradmedic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "run = gradmedic.init('full', mode='offline')\n"
        "print(run.id, flush=True)\n"
        "for i in range(1000): run.log(float(i))\n"
        "run.finish()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.strip()
    code, results, _ = sync(directory, service_url, capsys)
    assert code == 0
    stored = client.runs.steps(run_id, "loss", max_points=2000).series[0].mean
    assert stored == [float(i) for i in range(len(stored))]
    assert results[run_id]["steps"] == len(stored) > 100
    assert f"dropped {1000 - len(stored)} steps" in done.stderr
