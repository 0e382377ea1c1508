"""Artifacts are whole or not there; what is damaged is named; nothing is lost."""

import errno
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_mcp.errors import Busy, Cancelled, CorruptArtifact, ForgeError, NotFound, OutOfSpace
from forge_mcp.interfaces.mcp.resources import recent_artifacts
from forge_mcp.workspace import (
    MIGRATIONS,
    STALE_STAGING_SECONDS,
    Artifact,
    Staged,
    Workspace,
    hash_inputs,
    require_space,
    slug,
    write_file,
    write_jsonl,
)

DIGEST = hash_inputs({"inputs": "of a run"})
RUN = f"run-flask-{DIGEST[:4]}"
WRITER = """
    import sys
    from pathlib import Path
    from forge_mcp.workspace import Workspace
    home, how, digest = sys.argv[1:]
    workspace = Workspace(Path(home))
    folder = workspace.stage("run", "flask") if how == "stage" else workspace.unfinished(
        "run", "flask", digest,
        worth_keeping=lambda path: False, check=lambda: None, waiting=lambda: None,
    )
    with folder as staged:
        (staged.path / "checkpoint").write_text("step 3")
        print(staged.path, flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "forge")


def make(workspace: Workspace, inputs: str = "a", project: str = "flask") -> Artifact:
    digest = hash_inputs({"inputs": inputs})
    with workspace.stage("corpus", project) as staged:
        write_jsonl(staged.path / "blocks.jsonl", [{"id": inputs}, {"id": "ü\n"}])
        (staged.path / "sub").mkdir()
        (staged.path / "sub" / "x.txt").write_text("x")
        return staged.commit(
            id=workspace.new_id("corpus", project, digest), inputs_hash=digest, result={"n": 2}
        )


def test_a_committed_artifact_is_whole_and_found_again(workspace: Workspace) -> None:
    made = make(workspace)
    assert made.id.startswith("corpus-flask-")
    assert set(made.manifest.checksums) == {"blocks.jsonl", "sub/x.txt"}
    assert made.manifest.versions["mlx"]
    assert [row["id"] for row in made.rows("blocks.jsonl")] == ["a", "ü\n"]
    made.verify()
    assert workspace.load(made.id, "corpus") == made
    assert workspace.load(str(made.path)) == made
    assert workspace.find("corpus", "flask", made.manifest.inputs_hash) == made
    assert workspace.find("corpus", "flask", "0" * 64) is None
    assert workspace.artifacts("corpus", "flask") == [made]
    assert workspace.artifacts("corpus", "django") == []
    assert list((workspace.home / "staging").iterdir()) == []


def test_the_same_inputs_give_the_same_id_and_others_never_do(workspace: Workspace) -> None:
    first = make(workspace)
    assert make(workspace).id == first.id
    clash = first.manifest.inputs_hash[:6] + "f" * 58
    assert len(workspace.new_id("corpus", "flask", clash)) > len(first.id)


def test_projects_of_one_slug_never_share_an_artifact(workspace: Workspace) -> None:
    mine = make(workspace, project="My App")
    digest = mine.manifest.inputs_hash
    assert workspace.find("corpus", "my-app", digest) is None
    theirs = make(workspace, project="my-app")
    assert theirs.id != mine.id
    assert theirs.id.startswith(mine.id)
    assert make(workspace, project="my-app").id == theirs.id
    assert workspace.find("corpus", "my-app", digest) == theirs
    assert workspace.find("corpus", "My App", digest) == mine


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failed_or_interrupted_writer_leaves_nothing(
    workspace: Workspace, error: BaseException
) -> None:
    with pytest.raises(type(error)), workspace.stage("run", "flask") as staged:
        (staged.path / "half").write_text("half")
        raise error
    assert list((workspace.home / "staging").iterdir()) == []
    assert workspace.artifacts("run") == []


def test_a_full_disk_is_said_in_words_and_leaves_nothing(workspace: Workspace) -> None:
    with pytest.raises(OutOfSpace, match="no space left"), workspace.stage("run", "f"):
        raise OSError(errno.ENOSPC, "No space left on device", "weights")
    assert list((workspace.home / "staging").iterdir()) == []


def test_space_is_asked_for_before_the_work(tmp_path: Path) -> None:
    require_space(tmp_path, 1, "train")
    with pytest.raises(OutOfSpace, match="train"):
        require_space(tmp_path, 10**18, "train")


def test_a_changed_file_is_named(workspace: Workspace) -> None:
    made = make(workspace)
    (made.path / "sub" / "x.txt").write_text("y")
    made.verify("blocks.jsonl")
    with pytest.raises(CorruptArtifact, match=r"sub/x\.txt"):
        made.verify()
    (made.path / "blocks.jsonl").unlink()
    with pytest.raises(CorruptArtifact, match=r"blocks\.jsonl"):
        list(made.rows("blocks.jsonl"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 99}'])
def test_a_damaged_manifest_is_named(workspace: Workspace, text: str) -> None:
    made = make(workspace)
    (made.path / "manifest.json").write_text(text)
    with pytest.raises(CorruptArtifact, match=made.id):
        workspace.load(made.id)


def test_one_damaged_artifact_does_not_hide_the_others(workspace: Workspace) -> None:
    good, bad = make(workspace), make(workspace, "b")
    (bad.path / "manifest.json").write_text("{")
    (workspace.folder("corpus") / ".DS_Store").write_text("")
    assert workspace.artifacts("corpus") == [good]
    assert list(workspace.damaged("corpus")) == [bad.id]


def test_a_client_is_offered_the_others_and_told_of_the_damaged_one(workspace: Workspace) -> None:
    for inputs in ("a" * 64, "b" * 64):
        with workspace.stage("run", "flask") as staged:
            staged.commit(id=f"run-flask-{inputs[:4]}", inputs_hash=inputs)
    (workspace.folder("run") / "run-flask-bbbb" / "manifest.json").write_text("{")
    listed = {one.name: str(one.description) for one in recent_artifacts(workspace)}
    assert listed["run-flask-aaaa"].startswith("run of flask")
    assert listed["run-flask-bbbb"].startswith("damaged: ")


def test_paths_of_a_result_follow_a_home_that_moved(workspace: Workspace, tmp_path: Path) -> None:
    with workspace.stage("export", "flask") as staged:
        folder = workspace.folder("export") / "export-flask-aaaa"
        paths = {"path": str(folder), "gguf": str(folder / "model.gguf"), "modelfile": None}
        report = str(workspace.folder("report") / "report-flask-aaaa" / "report.md")
        result = paths | {"report": report, "bytes": 1}
        staged.commit(id=folder.name, inputs_hash="a" * 64, result=result)
    assert workspace.load(folder.name).manifest.result == result
    moved = workspace.home.rename(tmp_path / "reports")  # a name that is one of ours, too
    assert Workspace(moved).load(folder.name).manifest.result == {
        "path": str(moved / "exports/export-flask-aaaa"),
        "gguf": str(moved / "exports/export-flask-aaaa/model.gguf"),
        "modelfile": None,
        "report": str(moved / "reports/report-flask-aaaa/report.md"),
        "bytes": 1,
    }


def test_unknown_and_wrong_kinds_are_told_with_what_there_is(workspace: Workspace) -> None:
    made = make(workspace)
    with pytest.raises(NotFound, match=made.id):
        workspace.load("corpus-none-0000", "corpus")
    with pytest.raises(NotFound, match="it is a corpus"):
        workspace.load(made.id, "dataset")
    with pytest.raises(NotFound):
        workspace.load("../../etc/passwd")


def unfinished(
    workspace: Workspace,
    keep: bool = False,
    check: Callable[[], None] = lambda: None,
    waiting: Callable[[], None] = lambda: None,
) -> AbstractContextManager[Staged]:
    return workspace.unfinished(
        "run",
        "flask",
        DIGEST,
        worth_keeping=lambda path: keep and (path / "checkpoint").exists(),
        check=check,
        waiting=waiting,
    )


def leavings(workspace: Workspace, folder: str) -> list[Path]:
    return sorted((workspace.home / folder).iterdir())


def writer(workspace: Workspace, how: str) -> tuple[subprocess.Popen[str], Path]:
    """A process that writes into a folder of the workspace until its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(workspace.home), how, DIGEST],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def make_older(path: Path) -> None:
    past = time.time() - 10 * STALE_STAGING_SECONDS
    os.utime(path, (past, past))


def test_a_staging_folder_is_swept_once_its_writer_is_dead(workspace: Workspace) -> None:
    process, path = writer(workspace, "stage")
    make_older(path)
    make(workspace)
    assert (path / "checkpoint").exists(), "its writer lives, however long it takes"
    process.kill()
    process.communicate()
    make(workspace)
    assert leavings(workspace, "staging") == []


def test_a_staging_folder_that_was_only_just_made_is_left_alone(workspace: Workspace) -> None:
    """Its writer may stand between making and locking it."""
    young = workspace.home / "staging" / "run-young"
    young.mkdir(parents=True)
    make(workspace)
    assert leavings(workspace, "staging") == [young]
    make_older(young)
    make(workspace)
    assert leavings(workspace, "staging") == []


@pytest.mark.parametrize("error", [Cancelled("stop"), ValueError("bad"), KeyboardInterrupt()])
@pytest.mark.parametrize("keep", [True, False])
def test_stopped_work_is_kept_where_it_can_go_on(
    workspace: Workspace, error: BaseException, keep: bool
) -> None:
    with pytest.raises(type(error)), unfinished(workspace) as staged:
        raise error
    assert leavings(workspace, "unfinished") == [], "nothing was written"
    with pytest.raises(type(error)), unfinished(workspace, keep) as staged:
        (staged.path / "checkpoint").write_text("step 3")
        raise error
    with unfinished(workspace) as staged:
        left = [(path.name, path.read_text()) for path in staged.path.iterdir()]
    assert left == ([("checkpoint", "step 3")] if keep else [])
    assert leavings(workspace, "unfinished") == [], "left without a word: nothing to go on with"


def test_a_full_disk_is_said_in_words_and_keeps_the_work(workspace: Workspace) -> None:
    with (
        pytest.raises(OutOfSpace, match="no space left"),
        unfinished(workspace, keep=True) as staged,
    ):
        (staged.path / "checkpoint").write_text("step 3")
        raise OSError(errno.ENOSPC, "No space left on device", "weights")
    assert (staged.path / "checkpoint").read_text() == "step 3"


def test_the_work_of_a_killed_writer_goes_on(workspace: Workspace) -> None:
    process, path = writer(workspace, "unfinished")
    process.kill()
    process.communicate()
    make_older(path)
    make(workspace)  # which sweeps staging only
    with unfinished(workspace) as staged:
        assert staged.path == path
        assert (path / "checkpoint").read_text() == "step 3"
        made = staged.commit(id=RUN, inputs_hash=DIGEST)
    assert made.file("checkpoint").read_text() == "step 3"
    assert leavings(workspace, "unfinished") == []


def test_others_of_the_same_work_wait_for_the_process_that_has_it(workspace: Workspace) -> None:
    process, path = writer(workspace, "unfinished")

    def give_up() -> None:
        raise Cancelled("stop")

    with pytest.raises(Cancelled), unfinished(workspace, check=give_up):
        pass
    assert (path / "checkpoint").exists(), "who waits in vain takes nothing away"
    with unfinished(workspace, waiting=process.kill) as staged:
        assert process.wait(60) != 0, "the other one had it until it died"
        assert staged.path == path
    process.communicate()


def test_who_waited_finds_the_artifact_and_a_fresh_folder(workspace: Workspace) -> None:
    waits, seen = threading.Event(), []

    def second() -> None:
        with unfinished(workspace, waiting=waits.set) as staged:
            seen.extend([workspace.find("run", "flask", DIGEST), list(staged.path.iterdir())])

    with unfinished(workspace) as staged:
        other = threading.Thread(target=second)
        other.start()
        assert waits.wait(60)
        (staged.path / "adapters").write_text("weights")
        made = staged.commit(id=RUN, inputs_hash=DIGEST)
    other.join(60)
    assert seen == [made, []]
    made.verify()
    assert leavings(workspace, "unfinished") == []


def test_an_error_after_the_commit_does_not_touch_the_next_one(workspace: Workspace) -> None:
    """The name is free from the rename on, and somebody else may work under it."""
    with pytest.raises(KeyboardInterrupt), unfinished(workspace) as staged:
        staged.commit(id=RUN, inputs_hash=DIGEST)
        staged.path.mkdir()
        (staged.path / "checkpoint").write_text("of the next one")
        raise KeyboardInterrupt
    assert (staged.path / "checkpoint").exists()
    workspace.load(RUN).verify()


def test_a_writer_that_was_killed_while_it_committed(workspace: Workspace) -> None:
    """Between its manifest and the rename; the work goes on and is committed anew."""
    with pytest.raises(ValueError, match="killed"), unfinished(workspace, keep=True) as staged:
        (staged.path / "checkpoint").write_text("step 3")
        (staged.path / "manifest.json").write_text("{}")
        (staged.path / ".manifest.json.x7f3").write_text("{")
        raise ValueError("killed")
    with unfinished(workspace) as staged:
        made = staged.commit(id=RUN, inputs_hash=DIGEST)
    made.verify()
    assert sorted(path.name for path in made.path.iterdir()) == ["checkpoint", "manifest.json"]
    assert set(made.manifest.checksums) == {"checkpoint"}


def test_a_single_file_is_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write_file(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@given(st.text())
def test_slugs_are_safe_in_file_names(text: str) -> None:
    assert slug(text)
    assert set(slug(text)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert len(slug(text)) <= 32


def test_the_registry_is_migrated_once_and_projects_are_remembered(
    workspace: Workspace, tmp_path: Path
) -> None:
    workspace.remember_project("flask", tmp_path)
    again = Workspace(workspace.home)
    assert again.project_root("flask") == tmp_path
    assert again.database.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
    with pytest.raises(NotFound, match="flask"):
        again.project_root("django")
    workspace.remember_project("flask", tmp_path / "gone")
    with pytest.raises(NotFound, match="gone"):
        again.project_root("flask")


def test_a_damaged_registry_is_named(workspace: Workspace) -> None:
    workspace.home.mkdir(parents=True)
    (workspace.home / "forge.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(CorruptArtifact, match=r"forge\.db"):
        _ = workspace.database


def test_a_newer_registry_is_not_touched(workspace: Workspace) -> None:
    workspace.home.mkdir(parents=True)
    with sqlite3.connect(workspace.home / "forge.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(CorruptArtifact, match="newer"):
        _ = workspace.database


def test_an_unwritable_home_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ForgeError, match="workspace folder"):
        Workspace(tmp_path / "file" / "forge").folder("run")
    with pytest.raises((ForgeError, Busy)):
        _ = Workspace(tmp_path / "file").database
