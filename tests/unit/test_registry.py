"""The registry: one chain of activations, whoever writes it, and databases of earlier versions."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_mcp import workspace as workspace_module
from forge_mcp.errors import BadInput, Busy, NotFound, OutOfSpace
from forge_mcp.serving import registry
from forge_mcp.serving.registry import Actor, HalfMade, Origin, Standing
from forge_mcp.workspace import MIGRATIONS, Workspace

ANN = Actor("ann", "studio", "cli", 4711)
ORIGIN = Origin(
    corpus="corpus-p-1",
    dataset="ds-p-1",
    report="report-p-1",
    revision="0" * 40,
    dirty=True,
    sha256="ab" * 32,
    quantization="q4_k_m",
    bytes=123,
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "forge")


def put(
    workspace: Workspace,
    number: int,
    project: str = "p",
    seen: Standing | None = None,
    activate: bool = True,
) -> Standing:
    return registry.register(
        workspace,
        id=f"deploy-{project}-{number}",
        project=project,
        model=f"{project}-{number}",
        target="llamacpp",
        run=f"run-{number}",
        export=f"export-{number}",
        origin=ORIGIN,
        by=ANN,
        seen=seen,
        activate=activate,
        reason="it passed",
    )


def names(standing: Standing) -> tuple[str | None, str | None]:
    return (
        standing.active.model if standing.active else None,
        standing.previous.model if standing.previous else None,
    )


def steps(workspace: Workspace, project: str = "p") -> list[tuple[str, str | None, str | None]]:
    """The history, oldest first."""
    rows = reversed(registry.history(workspace, project))
    return [(one.action, one.from_, one.to) for one in rows]


def assert_chain(workspace: Workspace, project: str = "p") -> None:
    rows = registry.history(workspace, project)[::-1]
    before = None
    for row in rows:
        assert row.from_ == before
        assert row.from_ != row.to
        before = row.to
    standing = registry.standing(workspace, project)
    last = (rows[-1].to, rows[-1].from_) if rows and rows[-1].to else (None, None)
    assert names(standing) == last


def test_deploying_activating_and_rolling_back(workspace: Workspace) -> None:
    with pytest.raises(NotFound, match="deployed"):
        registry.get_active_model(workspace, "p")
    with pytest.raises(NotFound, match="earlier") as nothing:
        registry.rollback(workspace, "p")
    assert "nothing is deployed" in nothing.value.cause
    assert names(put(workspace, 1)) == ("p-1", None)
    with pytest.raises(NotFound, match="earlier") as only:
        registry.rollback(workspace, "p")
    assert "only one model" in only.value.cause
    assert names(put(workspace, 1)) == ("p-1", None)
    assert names(put(workspace, 2)) == ("p-2", "p-1")
    assert names(registry.rollback(workspace, "p", by=ANN, reason="worse")) == ("p-1", "p-2")
    assert names(registry.rollback(workspace, "p")) == ("p-2", "p-1")
    put(workspace, 3)
    assert names(registry.set_active_model(workspace, "p", "p-1")) == ("p-1", "p-3")
    assert names(registry.set_active_model(workspace, "p", "deploy-p-1")) == ("p-1", "p-3")
    assert names(registry.rollback(workspace, "p")) == ("p-3", "p-1"), "what was active before"
    put(workspace, 9, "other")
    assert [d.model for d in registry.deployments(workspace, "p")] == ["p-3", "p-2", "p-1"]
    with pytest.raises(NotFound, match="other-9"):
        registry.find_deployment(workspace, "p", "other-9")
    again = Workspace(workspace.home)
    assert registry.get_active_model(again, "p").model == "p-3"
    assert steps(workspace) == [
        ("deploy", None, "p-1"),
        ("deploy", "p-1", "p-2"),
        ("rollback", "p-2", "p-1"),
        ("rollback", "p-1", "p-2"),
        ("deploy", "p-2", "p-3"),
        ("activate", "p-3", "p-1"),
        ("rollback", "p-1", "p-3"),
    ]
    assert steps(workspace, "other") == [("deploy", None, "other-9")]


def test_a_deployment_knows_what_it_was_made_from_and_who_made_it(workspace: Workspace) -> None:
    put(workspace, 1)
    put(workspace, 2)
    registry.rollback(workspace, "p", by=Actor.here("mcp"), reason="invents functions")
    found = registry.get_active_model(workspace, "p")
    assert (found.origin, found.by) == (ORIGIN, ANN)
    assert found.tried is not None
    newest, *_ = registry.history(workspace, "p", 1)
    assert len(registry.history(workspace, "p", 2)) == 2
    assert (newest.action, newest.reason) == ("rollback", "invents functions")
    assert (newest.by.face, newest.by.process) == ("mcp", os.getpid())
    assert newest.by.user and newest.by.host and newest.time
    assert registry.describe(ANN) == "ann@studio, cli, process 4711"
    assert registry.describe(Actor()) == "unknown"


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("no password entry")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert Actor.here("cli").user == str(os.getuid())


def test_a_deployment_that_is_only_added_is_not_active_and_not_tried(workspace: Workspace) -> None:
    assert names(put(workspace, 1, activate=False)) == (None, None)
    assert registry.find_deployment(workspace, "p", "p-1").tried is None
    assert steps(workspace) == []
    assert names(registry.set_active_model(workspace, "p", "p-1", tried=True)) == ("p-1", None)
    tried = registry.find_deployment(workspace, "p", "p-1").tried
    assert tried is not None
    put(workspace, 1, activate=False)  # once more, as when a bundle is taken in again
    assert registry.find_deployment(workspace, "p", "p-1").tried == tried


def test_an_imported_model_gives_way_to_none(workspace: Workspace) -> None:
    imported = replace(ORIGIN, imported="studio at 2026-11-24T00:00:00+00:00")
    registry.register(
        workspace, id="deploy-p-1", project="p", model="p-1", target="llamacpp",
        run="run-gone", export="export-p-1", origin=imported,
    )  # fmt: skip
    assert names(registry.rollback(workspace, "p", by=ANN)) == (None, None)
    with pytest.raises(NotFound, match="No model"):
        registry.get_active_model(workspace, "p")
    with pytest.raises(NotFound, match="earlier"):
        registry.rollback(workspace, "p")
    assert_chain(workspace)
    assert names(put(workspace, 2)) == ("p-2", None)
    assert names(registry.set_active_model(workspace, "p", "p-1")) == ("p-1", "p-2")
    assert names(registry.rollback(workspace, "p")) == ("p-2", "p-1")
    assert steps(workspace)[1:3] == [("rollback", "p-1", None), ("deploy", None, "p-2")]
    assert_chain(workspace)


def test_a_change_that_fails_changes_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(workspace, 1)
    registry.remember_half_made(workspace, HalfMade("p-2", "http://h", "p"))

    def fail(*_: object) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(registry, "_switch", fail)
    changes: list[Callable[[], object]] = [
        lambda: put(workspace, 2),
        lambda: registry.set_active_model(workspace, "p", "p-1"),
    ]
    for change in changes:
        with pytest.raises(RuntimeError):
            change()
    assert names(registry.standing(workspace, "p")) == ("p-1", None)
    assert [d.model for d in registry.deployments(workspace, "p")] == ["p-1"]
    assert registry.half_made(workspace, "p") == [HalfMade("p-2", "http://h", "p")]


def test_a_full_disk_is_said_and_changes_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(workspace, 1)
    pages = workspace.database.execute("PRAGMA page_count").fetchone()[0]
    workspace.database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OutOfSpace, match="registry"):
        for number in range(2, 200):
            put(workspace, number)
    workspace.database.execute("PRAGMA max_page_count = 100000")
    last = registry.get_active_model(workspace, "p")
    assert_chain(workspace)
    assert names(put(workspace, 300)) == ("p-300", last.model)


def test_a_registry_that_another_process_writes_is_busy(workspace: Workspace) -> None:
    put(workspace, 1)
    other = Workspace(workspace.home).database
    workspace.database.execute("PRAGMA busy_timeout = 50")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Busy):
        put(workspace, 2)
    other.execute("ROLLBACK")
    assert names(put(workspace, 2)) == ("p-2", "p-1")


def test_who_decided_on_an_older_state_changes_nothing(workspace: Workspace) -> None:
    for number in (1, 2, 3):
        put(workspace, number)
    seen = registry.standing(workspace, "p")
    registry.rollback(workspace, "p", by=ANN)
    changes: list[Callable[[], object]] = [
        lambda: put(workspace, 4, seen=seen),
        lambda: registry.set_active_model(workspace, "p", "p-1", seen=seen),
        lambda: registry.rollback(workspace, "p", seen=seen),
    ]
    for change in changes:
        with pytest.raises(Busy, match="changed meanwhile") as busy:
            change()
        assert "p-2 now by rollback (ann@studio, cli, process 4711)" in busy.value.cause
    assert names(registry.standing(workspace, "p")) == ("p-2", "p-3")
    assert [d.model for d in registry.deployments(workspace, "p")] == ["p-3", "p-2", "p-1"]

    # The active one is the same again, but not what a rollback would return to.
    seen = registry.standing(workspace, "p")
    registry.set_active_model(workspace, "p", "p-1")
    registry.set_active_model(workspace, "p", "p-2")
    with pytest.raises(Busy):
        registry.rollback(workspace, "p", seen=seen)
    assert names(registry.set_active_model(workspace, "p", "p-3", seen=seen)) == ("p-3", "p-2")
    empty = registry.standing(workspace, "q")
    put(workspace, 1, "q")
    with pytest.raises(Busy, match="changed meanwhile"):
        put(workspace, 2, "q", seen=empty)


def test_a_rollback_of_a_named_model_is_one_of_the_active_one(workspace: Workspace) -> None:
    with pytest.raises(BadInput, match="p-1 is not the active model") as none:
        registry.require_active(workspace, "p", "p-1")
    assert "active is none" in none.value.cause
    put(workspace, 1)
    put(workspace, 2)
    assert names(registry.require_active(workspace, "p", "p-2")) == ("p-2", "p-1")
    assert names(registry.require_active(workspace, "p", "deploy-p-2")) == ("p-2", "p-1")
    with pytest.raises(BadInput, match="p-1 is not the active model"):
        registry.require_active(workspace, "p", "p-1")


def test_half_made_models_are_remembered_until_they_are_deployed(workspace: Workspace) -> None:
    begun = [HalfMade(f"p-{n}", "http://h", "p") for n in (1, 2, 3)]
    for one in (*begun, begun[0], HalfMade("q-1", "http://h", "q")):
        registry.remember_half_made(workspace, one)
    again = Workspace(workspace.home)
    assert registry.half_made(again, "p") == begun
    put(again, 1)
    registry.forget_half_made(again, begun[1])
    put(again, 3, activate=False)
    assert registry.half_made(again, "p") == []
    assert registry.half_made(again, "q") == [HalfMade("q-1", "http://h", "q")]
    registry.remember_half_made(again, begun[2])
    registry.set_active_model(again, "p", "p-3")
    assert registry.half_made(again, "p") == []


# -- any sequence ----------------------------------------------------------------------------------

CHANGES = st.lists(
    st.tuples(st.sampled_from(("deploy", "activate", "rollback")), st.integers(1, 4)), max_size=25
)


@settings(max_examples=40)
@given(CHANGES)
def test_any_sequence_of_changes_is_a_chain(changes: list[tuple[str, int]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        expected: list[str] = []  # a model of the registry in one line: each change is appended
        for action, number in changes:
            model = f"p-{number}"
            known = {d.model for d in registry.deployments(workspace, "p")}
            if action == "deploy":
                put(workspace, number)
            elif action == "activate" and model in known:
                registry.set_active_model(workspace, "p", model)
            elif action == "rollback" and len(expected) > 1:
                registry.rollback(workspace, "p")
                model = expected[-2]
            else:
                continue
            if expected[-1:] != [model]:
                expected.append(model)
        assert [to for _, _, to in steps(workspace)] == expected
        assert_chain(workspace)
        workspace.database.close()


# -- several processes -----------------------------------------------------------------------------

SEVERAL = """
import random, sys
from pathlib import Path
from forge_mcp.errors import Busy, NotFound
from forge_mcp.serving import registry
from forge_mcp.workspace import Workspace

workspace, dice, done = Workspace(Path(sys.argv[1])), random.Random(int(sys.argv[2])), 0
print("ready", flush=True)
sys.stdin.readline()
for turn in range(40):
    number = dice.randrange(6)
    seen = registry.standing(workspace, "p") if dice.random() < 0.5 else None
    before = len(registry.history(workspace, "p"))
    try:
        if (action := dice.choice(("deploy", "activate", "rollback"))) == "deploy":
            registry.register(workspace, id=f"deploy-p-{number}", project="p", model=f"p-{number}",
                target="llamacpp", run="r", export="e", by=registry.Actor.here("cli"), seen=seen)
        elif action == "activate":
            registry.set_active_model(workspace, "p", f"p-{number}", seen=seen)
        else:
            registry.rollback(workspace, "p", seen=seen)
        done += 1
    except (Busy, NotFound):
        pass
print(done)
"""


def test_several_processes_at_once_write_one_chain(workspace: Workspace) -> None:
    put(workspace, 0)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SEVERAL, str(workspace.home), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(5)
    ]
    for one in processes:
        assert one.stdout is not None and one.stdout.readline() == "ready\n"
    for one in processes:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    done = [int(one.communicate(timeout=120)[0]) for one in processes]
    assert [one.returncode for one in processes] == [0] * 5
    assert sum(done) > 60
    assert_chain(workspace)
    writers = {one.by.process for one in registry.history(workspace, "p") if one.action == "deploy"}
    assert len(writers) > 3, "they took turns"


# -- databases of earlier versions -----------------------------------------------------------------


def old_database(home: Path, rows: int) -> None:
    """forge.db as version 1 wrote it, with some deployments; the last two are in use."""
    home.mkdir(parents=True)
    with sqlite3.connect(home / "forge.db") as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(MIGRATIONS[0])
        database.execute("PRAGMA user_version = 1")
        database.execute("INSERT INTO projects VALUES ('p', '/repository')")
        for n in range(1, rows + 1):
            database.execute(
                "INSERT INTO deployments VALUES (?, ?, 'p', ?, 'ollama', 'run-p', 'export-p', ?)",
                (f"deploy-p-{n}", n, f"p-{n}", f"2026-11-0{n}T10:00:00+00:00"),
            )
        if rows:
            previous = f"deploy-p-{rows - 1}" if rows > 1 else None
            database.execute(
                "INSERT INTO active VALUES ('p', ?, ?)", (f"deploy-p-{rows}", previous)
            )
    database.close()


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_a_database_of_version_1_goes_on(workspace: Workspace, rows: int) -> None:
    old_database(workspace.home, rows)
    standing = registry.standing(workspace, "p")
    expected = [f"p-{n}" for n in range(1, rows + 1)][-2:]
    assert names(standing) == tuple([*reversed(expected), None, None][:2])
    assert steps(workspace) == [
        ("activate", before, to) for before, to in zip([None, *expected], expected, strict=False)
    ]
    assert_chain(workspace)
    for one in registry.deployments(workspace, "p"):
        assert (one.origin, one.by, one.target) == (Origin(), Actor(), "ollama")
        assert one.tried == one.created
    assert all(one.time is None for one in registry.history(workspace, "p"))
    version = workspace.database.execute("PRAGMA user_version").fetchone()[0]
    assert version == len(MIGRATIONS)

    put(workspace, 9)
    assert_chain(workspace)
    if rows:
        assert names(registry.rollback(workspace, "p")) == (f"p-{rows}", "p-9")


def test_a_migration_that_fails_leaves_the_old_version(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_database(workspace.home, 2)
    broken = (MIGRATIONS[0], MIGRATIONS[1] + "; INSERT INTO nowhere VALUES (1)")
    with monkeypatch.context() as patched:
        patched.setattr(workspace_module, "MIGRATIONS", broken)
        with pytest.raises(Busy):
            _ = Workspace(workspace.home).database
    with sqlite3.connect(workspace.home / "forge.db") as database:
        assert database.execute("PRAGMA user_version").fetchone()[0] == 1
        columns = [row[1] for row in database.execute("PRAGMA table_info(deployments)")]
    assert "tried" not in columns
    assert registry.get_active_model(workspace, "p").model == "p-2"
