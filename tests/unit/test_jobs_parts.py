"""The parts of the jobs room without a worker: folder, estimates, clock, supervision, states."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_mcp import machine
from forge_mcp.errors import (
    BadInput,
    Busy,
    CorruptArtifact,
    ForgeError,
    InvalidSettings,
    NotFound,
    OutOfSpace,
    TrainingFailed,
    Unavailable,
)
from forge_mcp.jobs import database, supervise
from forge_mcp.jobs.estimates import Durations, Estimate
from forge_mcp.jobs.folder import JobFolder, existing_folder
from forge_mcp.jobs.line import Outcome, Record
from forge_mcp.jobs.queue import _state, next_step
from forge_mcp.jobs.stage import StageTask
from forge_mcp.jobs.supervise import Clock, Stage, Stopped, memory_of
from forge_mcp.jobs.workers import newer
from forge_mcp.pipeline.retrain import STAGES
from forge_mcp.schemas.events import Event
from forge_mcp.schemas.jobs import Control, JobProgress, JobSpec, JobStatus
from forge_mcp.settings import JobsSettings, defaults, differences, load_settings, settings_from

SPEC = JobSpec(skill="retrain", request={"repo": "/r"}, project="flask", version="0.1.0")


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    made = JobFolder(tmp_path, "job-retrain-flask-3f9a2c")
    made.create(SPEC)
    return made


def event(kind: Any = "log", **payload: Any) -> Event:
    return Event(time=1.0, stage="train", kind=kind, payload=payload)


# -- the folder ------------------------------------------------------------------------------


def test_a_folder_holds_what_was_written(folder: JobFolder) -> None:
    assert folder.control.want == "run"
    folder.control = Control(want="pause", by="battery")
    assert JobFolder(folder.path.parents[1], folder.job_id).control.by == "battery"
    folder.progress = JobProgress(stage="train", progress=0.5)
    assert folder.progress.progress == 0.5
    assert [path.name for path in folder.path.iterdir() if path.name.startswith(".")] == []


@given(cut=st.integers(0, 10_000))
def test_events_survive_a_cut_at_any_byte(tmp_path_factory: Any, cut: int) -> None:
    folder = JobFolder(tmp_path_factory.mktemp("cut"), "job-a")
    folder.create(SPEC)
    for number in range(20):
        folder.append(event(message="ä" * number, number=number))
    path = folder.path / "events.jsonl"
    whole = path.read_bytes()
    at = cut % (len(whole) + 1)
    path.write_bytes(whole[:at])
    read = [one.payload["number"] for one, _ in folder.events()]
    assert read == list(range(whole[:at].count(b"\n")))
    # A worker that goes on after the crash appends behind the half line.
    folder.append(event(message="next", number=99))
    folder.append(event(message="last", number=100))
    assert [one.payload["number"] for one, _ in folder.events()][-1] == 100


def test_events_are_read_on_from_an_offset(folder: JobFolder) -> None:
    folder.append(event(message="one"))
    [(first, offset)] = list(folder.events())
    folder.append(event(message="two"))
    assert [one.payload["message"] for one, _ in folder.events(offset)] == ["two"]
    assert first.payload["message"] == "one"


@pytest.mark.parametrize("name", ["", "job-nothing", "../forge.db", ".hidden", "a/b"])
def test_a_job_that_is_not_there_is_named(folder: JobFolder, name: str) -> None:
    with pytest.raises(NotFound, match="There is no job") as caught:
        existing_folder(folder.path.parents[1], name)
    assert folder.job_id in caught.value.next_step


def test_a_spec_of_another_version_is_understood() -> None:
    written = SPEC.model_dump() | {"of_the_future": 1}
    assert JobSpec.model_validate(written) == SPEC


# -- settings travel with the job --------------------------------------------------------------


def test_settings_go_round_as_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_TRAINING__RANK", "3")
    settings = load_settings(call={"jobs": {"idle_seconds": 1}})
    changed = differences(settings)
    assert changed["training"] == {"rank": 3} and changed["jobs"] == {"idle_seconds": 1.0}
    monkeypatch.delenv("FORGE_TRAINING__RANK")
    assert settings_from(json.loads(json.dumps(changed))) == settings
    assert differences(load_settings()) == {}


def test_settings_of_another_version() -> None:
    unknown = {"training": {"rank": 3, "of_the_past": 1}, "gone": {"key": 1}}
    assert settings_from(unknown).training.rank == 3
    with pytest.raises(InvalidSettings, match=r"training\.rank"):
        settings_from({"training": {"rank": -1}})
    assert defaults()["training"]["rank"] != 3


# -- states -------------------------------------------------------------------------------------


class Row:
    def __init__(self, status: str, output: Any = None, error: Any = None) -> None:
        self.status, self.output, self.error = status, output, error


@pytest.mark.parametrize(
    ("row", "want", "state"),
    [
        (Row("ENQUEUED"), "run", "queued"),
        (Row("DELAYED"), "run", "queued"),
        (Row("PENDING"), "run", "running"),
        (Row("PENDING"), "cancel", "running"),
        (Row("PENDING"), "pause", "pausing"),
        (Row("CANCELLED"), "pause", "paused"),
        (Row("CANCELLED"), "run", "paused"),  # a resume that broke off half way
        (Row("CANCELLED"), "cancel", "cancelled"),
        (Row("SUCCESS", {"state": "succeeded", "result": {}}), "run", "succeeded"),
        (Row("SUCCESS", {"state": "succeeded", "result": {}}), "cancel", "succeeded"),
        (Row("SUCCESS", {"state": "refused", "result": {}}), "run", "refused"),
        (Row("SUCCESS", {"state": "failed"}), "run", "failed"),
        (Row("ERROR", error=RuntimeError("x")), "run", "failed"),
        (Row("MAX_RECOVERY_ATTEMPTS_EXCEEDED"), "run", "failed"),
    ],
)
def test_states_of_the_contract(row: Row, want: Any, state: str) -> None:
    found, result, error = _state(row, Control(want=want))
    assert found == state
    assert next_step("job-a", "retrain", found, result, error, Control(want=want))
    if row.status in ("ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"):
        assert error is not None and error.message


def test_a_status_has_the_keys_of_the_contract() -> None:
    contract = "job_id skill project state stage progress eta_seconds started_at error result"
    assert {*contract.split(), "dashboard_url"} <= set(JobStatus.model_fields)


# -- estimates ----------------------------------------------------------------------------------


def test_nothing_is_estimated_from_another_project(tmp_path: Path) -> None:
    durations = Durations(tmp_path)
    (tmp_path / "jobs").mkdir()
    assert durations.expected(SPEC, "train") is None
    durations.note(SPEC, "train", 10.0)
    assert durations.expected(SPEC.model_copy(update={"project": "other"}), "train") is None


def test_runs_with_the_same_settings_count_first(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    durations = Durations(tmp_path)
    long = SPEC.model_copy(update={"settings": {"training": {"max_steps": 900}}})
    for seconds in (10.0, 12.0, 11.0):
        durations.note(SPEC, "train", seconds)
    durations.note(long, "train", 500.0)
    assert durations.expected(SPEC, "train") == 11.0
    assert durations.expected(long, "train") == 500.0
    new = SPEC.model_copy(update={"settings": {"training": {"rank": 2}}})
    assert durations.expected(new, "train") == 11.5  # of the project, whatever the settings


def test_progress_rises_through_the_line_and_time_left_falls(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    durations = Durations(tmp_path)
    blind = Estimate(durations, SPEC, STAGES)
    shown = [blind.progress(stage, share) for stage in STAGES for share in (0.0, 0.5, 1.0)]
    assert shown == sorted(shown) and shown[0] == 0.0 and shown[-1] == pytest.approx(1.0)
    assert blind.left("extract", 0.5, None) is None
    for stage in STAGES:
        durations.note(SPEC, stage, 10.0)
    known = Estimate(durations, SPEC, STAGES)
    assert known.left("extract", 0.0, None) == pytest.approx(70.0)
    assert known.left("train", 0.5, None) == pytest.approx(35.0)
    assert known.left("train", 0.5, 100.0) == pytest.approx(130.0)  # what the stage says counts
    assert known.progress("deploy", 1.0) == pytest.approx(1.0)


def test_a_damaged_row_of_durations_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    durations = Durations(tmp_path)
    durations.note(SPEC, "train", 10.0)
    with (tmp_path / "jobs/durations.jsonl").open("a") as file:
        file.write('{"stage": "tra\n')
    durations.note(SPEC, "train", 20.0)
    assert durations.expected(SPEC, "train") == 15.0


def test_the_record_never_goes_backwards(folder: JobFolder) -> None:
    estimate = Estimate(Durations(folder.path.parents[1]), SPEC, STAGES)
    record = Record(folder, estimate, STAGES)
    record.begin()
    record.stage("train")
    record._written = float("-inf")
    record(event("progress", done=5, total=10, message="half"))
    half = folder.progress.progress
    assert folder.progress.stage == "train" and half > estimate.progress("train", 0.0)
    again = Record(folder, estimate, STAGES)  # another worker takes it up
    again.begin()
    again.stage("extract")
    assert folder.progress.progress == half
    again.end("succeeded")
    assert folder.progress.progress == 1.0 and folder.progress.state == "ended"


# -- the clock ----------------------------------------------------------------------------------


class Times:
    """A machine's two clocks, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monotonic, self.wall = 1000.0, 5_000_000.0
        monkeypatch.setattr("forge_mcp.jobs.supervise.time.monotonic", lambda: self.monotonic)
        monkeypatch.setattr("forge_mcp.jobs.supervise.time.time", lambda: self.wall)

    def run(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds


def test_sleep_is_told_and_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(monkeypatch)
    said: list[str] = []
    clock = Clock(said.append)
    times.run(1)
    clock.tick(False)
    times.wall += 3600  # the lid was closed: the monotonic clock stood still
    times.run(1)
    clock.tick(False)
    assert said == ["The machine slept for 60 min; the job goes on."]
    assert clock.silent() == 0.0


def test_a_clock_that_jumps_back_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(monkeypatch)
    said: list[str] = []
    clock = Clock(said.append)
    times.wall -= 86_400
    times.run(1)
    clock.tick(False)
    assert said == [] and clock.silent() == 1.0


def test_silence_grows_until_a_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(monkeypatch)
    clock = Clock(lambda text: None)
    for _ in range(10):
        times.run(5)
        clock.tick(False)
    assert clock.silent() == 50.0
    clock.tick(True)
    assert clock.silent() == 0.0
    times.run(100)  # this process itself was stopped for so long
    clock.tick(False)
    assert clock.silent() == 0.0


# -- one stage in its process ---------------------------------------------------------------------


def limits(**changed: Any) -> JobsSettings:
    return JobsSettings.model_validate(defaults()["jobs"] | {"keep_awake": False} | changed)


def stage(
    folder: JobFolder, script: str, monkeypatch: pytest.MonkeyPatch, **changed: Any
) -> tuple[Stage, list[Event]]:
    """A stage whose process runs a script instead of a skill."""
    task = StageTask(
        home=folder.path.parents[1],
        job_id=folder.job_id,
        stage="extract",
        spec=SPEC,
        request={},
        parent=os.getpid(),
    )
    real = subprocess.Popen

    def other(command: list[str], **options: Any) -> Any:
        return real([sys.executable, "-c", script], **options)

    monkeypatch.setattr("forge_mcp.jobs.supervise.subprocess.Popen", other)
    monkeypatch.setattr(supervise, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(supervise, "OWNER_SECONDS", 0.1)
    events: list[Event] = []
    return Stage(task, folder, events.append, limits(**changed), threading.Event()), events


RESULT = 'print(\'{"kind": "result", "payload": {"seconds": 1.0}}\', flush=True)'
HANG = "import time\nwhile True: time.sleep(0.1)\n"
DEAF = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + HANG
BEAT = 'import time\nwhile True:\n print(\'{"kind": "heartbeat"}\', flush=True); time.sleep(0.1)\n'


def living_children() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
    ]


@pytest.fixture(autouse=True)
def no_process_left() -> Any:
    before = set(living_children())
    yield
    left = set(living_children()) - before
    assert not left, f"processes are left: {left}"


def test_a_result_comes_back(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    told = 'print(\'{"kind": "log", "time": 1, "stage": "s", "payload": {"message": "m"}}\')\n'
    one, events = stage(folder, told + RESULT, monkeypatch)
    assert one.run() == {"seconds": 1.0}
    assert [e.payload for e in events] == [{"message": "m"}]


def test_an_error_comes_back_as_itself(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    error = {"kind": "error", "payload": BadInput("Bad.", cause="c", next_step="n").as_dict()}
    one, _ = stage(folder, f"print({json.dumps(error)!r})", monkeypatch)
    with pytest.raises(BadInput, match=r"Bad\.") as caught:
        one.run()
    assert caught.value.next_step == "n"


def test_a_killed_process_is_told_in_words(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import os, sys; print('half a li', end='', flush=True); "
    script += "sys.stderr.write('last words'); sys.stderr.flush(); os.kill(os.getpid(), 9)"
    one, _ = stage(folder, script, monkeypatch)
    with pytest.raises(
        TrainingFailed, match=r"process of 'extract' was killed \(SIGKILL\)"
    ) as caught:
        one.run()
    assert "last words" in caught.value.cause


@pytest.mark.parametrize("want", ["pause", "cancel"])
def test_what_was_wanted_before_it_began(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch, want: Any
) -> None:
    folder.control = Control(want=want)
    one, _ = stage(folder, RESULT, monkeypatch)
    with pytest.raises(Stopped) as caught:
        one.run()
    assert caught.value.kind == want


@pytest.mark.parametrize("script", [HANG, DEAF], ids=["hears SIGTERM", "deaf"])
def test_a_stop_becomes_firmer(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(supervise, "TERM_SECONDS", 0.5)
    one, _ = stage(folder, script, monkeypatch)
    threading.Timer(0.3, lambda: setattr(folder, "control", Control(want="cancel"))).start()
    started = time.monotonic()
    with pytest.raises(Stopped) as caught:
        one.run()
    assert caught.value.kind == "cancel" and time.monotonic() - started < 60


def test_a_result_that_came_before_the_stop_counts(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = "import time; time.sleep(1.5)\n" + RESULT
    one, _ = stage(folder, slow, monkeypatch)
    threading.Timer(0.3, lambda: setattr(folder, "control", Control(want="pause"))).start()
    assert one.run() == {"seconds": 1.0}


def test_a_worker_that_ends_stops_its_stage(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = stage(folder, HANG, monkeypatch)
    threading.Timer(0.3, one.shutting_down.set).start()
    with pytest.raises(Stopped) as caught:
        one.run()
    assert caught.value.kind == "shutdown"


def test_a_job_that_another_worker_has_is_let_go(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = stage(folder, BEAT, monkeypatch)
    one.still_mine = lambda: False
    with pytest.raises(Stopped) as caught:
        one.run()
    assert caught.value.kind == "lost"


def test_a_process_that_is_silent_is_ended(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "TERM_SECONDS", 0.5)
    one, _ = stage(folder, DEAF, monkeypatch, silent_seconds=1)
    with pytest.raises(ForgeError, match="gave no sign of life"):
        one.run()


def test_a_process_that_takes_too_much_memory_is_ended(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    hungry = "held = bytearray(64 << 20)\n" + BEAT
    share = (32 << 20) / machine.memory_bytes()
    one, _ = stage(folder, hungry, monkeypatch, max_memory_share=share)
    with pytest.raises(TrainingFailed, match="of this machine's memory") as caught:
        one.run()
    assert "batch_size" in caught.value.next_step


def test_memory_counts_what_a_process_has_started() -> None:
    script = "import subprocess, sys, time\n"
    script += "child = subprocess.Popen([sys.executable, '-c', 'x = bytearray(64 << 20); "
    script += "print(1, flush=True); import time; time.sleep(60)'])\ntime.sleep(60)\n"
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 60
        while memory_of(process.pid) < (64 << 20) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert memory_of(process.pid) > (64 << 20)
        assert psutil.Process(process.pid).memory_info().rss < (64 << 20)
    finally:
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.kill()
        process.wait()
    assert memory_of(process.pid) == 0


# -- the database in words -------------------------------------------------------------------------


def operational(text: str) -> Exception:
    return sqlite3.OperationalError(text)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (operational("database is locked"), Busy),
        (operational("database or disk is full"), OutOfSpace),
        (operational("attempt to write a readonly database"), BadInput),
        (operational("unable to open database file"), BadInput),
        (sqlite3.DatabaseError("file is not a database"), CorruptArtifact),
        (sqlite3.DatabaseError("database disk image is malformed"), CorruptArtifact),
    ],
)
def test_errors_of_sqlite(tmp_path: Path, error: Exception, kind: type[ForgeError]) -> None:
    with pytest.raises(kind) as caught, database.in_words(tmp_path):
        raise error
    assert str(tmp_path / "jobs.db") in caught.value.message and caught.value.next_step


def test_errors_of_postgres_show_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGE_DATABASE_URL", "postgresql://me:secret@127.0.0.1:1/forge")
    with pytest.raises(Unavailable) as caught, database.in_words(tmp_path):
        raise operational("connection refused")
    assert "secret" not in str(caught.value) and "127.0.0.1:1/forge" in caught.value.message


def test_an_address_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_DATABASE_URL", "mysql://me:secret@host/db")
    with pytest.raises(InvalidSettings, match="no address of a PostgreSQL database") as caught:
        database.database_url(tmp_path)
    assert "secret" not in str(caught.value)


def test_nothing_is_ever_unpickled() -> None:
    import base64
    import pickle

    from dbos import _serialization

    database.serializer()
    pickled = base64.b64encode(pickle.dumps({"a": 1})).decode()
    with pytest.raises(CorruptArtifact, match="pickled"):
        _serialization.deserialize_value(pickled, "py_pickle", database.serializer())


def test_outcomes_go_through_json() -> None:
    outcome = Outcome(state="failed", error={"code": "failed", "message": "m"}, elapsed=1.5)
    serializer = database.serializer()
    stored = serializer.serialize(outcome.model_dump(mode="json"))
    assert Outcome.model_validate(serializer.deserialize(stored)) == outcome


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("0.2.0", "0.1.9", True),
        ("0.10.0", "0.9.0", True),
        ("0.1.0", "0.1.0", False),
        ("0.1.0.dev1", "0.1.0", False),
        ("strange", "0.1.0", False),
    ],
)
def test_which_version_is_newer(one: str, other: str, expected: bool) -> None:
    assert newer(one, other) is expected
