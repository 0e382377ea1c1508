"""Artifacts are whole or not there; what is damaged is named; nothing is lost."""

import errno
import os
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_mcp.errors import Busy, CorruptArtifact, ForgeError, NotFound, OutOfSpace
from forge_mcp.interfaces.mcp.resources import recent_artifacts
from forge_mcp.workspace import (
    MIGRATIONS,
    Artifact,
    Workspace,
    hash_inputs,
    require_space,
    slug,
    write_file,
    write_jsonl,
)


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


def test_only_old_leavings_are_swept(workspace: Workspace) -> None:
    with workspace.stage("run", "p") as staged:
        young = staged.path
        old = workspace.home / "staging" / "run-old"
        old.mkdir()
        past = time.time() - 48 * 3600
        os.utime(old, (past, past))
        with workspace.stage("run", "p"):
            assert young.exists()
            assert not old.exists()


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
