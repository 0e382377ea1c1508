"""The state of a repository and what changed in it: by git, which runs nothing of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from files_in_git import CODE, git, listed, repository
from files_in_git import no_settings_of_the_user as no_settings_of_the_user  # a fixture
from mining_helpers import write

from forge_mcp.errors import BadInput, Unavailable
from forge_mcp.mining.git import changed_since, git_files, repository_state


def test_the_state_of_a_repository(tmp_path: Path) -> None:
    folder = write(tmp_path / "plain", {"a.py": CODE, ".git": "no repository"})
    assert repository_state(folder).revision is None
    assert listed(folder)[0] == ["a.py"]
    root = write(tmp_path / "repo", {"a.py": CODE})
    git(root, "init")
    assert (repository_state(root).revision, repository_state(root).dirty) == (None, True)
    repository(root, {})
    state = repository_state(root)
    assert (state.revision, state.dirty) == (git(root, "rev-parse", "HEAD"), False)
    write(root, {"b.py": CODE})
    assert repository_state(root).dirty


def test_a_repository_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository(tmp_path, {"a.py": CODE})
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own, for its tests
    for ask in (lambda: listed(tmp_path), lambda: repository_state(tmp_path)):
        with pytest.raises(BadInput, match="another user") as caught:
            ask()
        assert "safe.directory" in caught.value.next_step


@pytest.mark.parametrize("from_a_hook", [False, True])
def test_a_repository_without_git_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_a_hook: bool
) -> None:
    root = repository(tmp_path / "repo", {"a.py": CODE})
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "env").symlink_to("/usr/bin/env")
    monkeypatch.setenv("PATH", str(programs))
    if from_a_hook:
        monkeypatch.setenv("GIT_DIR", ".git")
    with pytest.raises(Unavailable, match="git is not installed"):
        listed(root)


def test_a_hook_of_another_repository_may_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = repository(tmp_path / "repo", {"a.py": CODE})
    other = repository(tmp_path / "other", {"other.py": CODE})
    revision = git(root, "rev-parse", "HEAD")
    git(other, "commit", "--allow-empty", "-m", "second")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    assert git_files(root) == ["a.py"]
    state = repository_state(root)
    assert (state.revision, state.dirty) == (revision, False)


def test_a_repository_runs_nothing_of_its_own(tmp_path: Path) -> None:
    root, trace = tmp_path / "repo", tmp_path / "trace"
    repository(root, {"a.py": CODE, ".gitattributes": "* filter=own diff=own\n"})
    git(root, "config", "filter.own.clean", f"sh -c 'touch {trace}; cat'")
    git(root, "config", "filter.own.required", "true")
    git(root, "config", "diff.own.command", f"touch {trace};")
    git(root, "config", "diff.own.textconv", f"touch {trace};")
    git(root, "config", "core.fsmonitor", f"touch {trace};")
    hook = root / ".git" / "hooks" / "post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {trace}\n")
    hook.chmod(0o755)
    (root / "a.py").write_text("def f():\n    return 2\n")
    assert repository_state(root).dirty
    assert changed_since(root, "HEAD") == {"a.py"}
    assert listed(root)[0] == ["a.py"]
    assert not trace.exists()


def test_filters_of_the_user_do_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, trace, own = tmp_path / "repo", tmp_path / "trace", tmp_path / "gitconfig"
    repository(root, {"a.py": CODE, ".gitattributes": "* filter=users\n"})
    git(root, "config", "--file", str(own), "filter.users.clean", f"sh -c 'touch {trace}; cat'")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(own))
    (root / "a.py").write_text(CODE.upper())
    assert repository_state(root).dirty
    assert trace.exists()


def test_the_remote_of_a_partial_clone_runs_nothing(tmp_path: Path) -> None:
    source, clone, trace = tmp_path / "source", tmp_path / "clone", tmp_path / "trace"
    repository(source, {"d/a.py": CODE})
    git(source, "config", "uploadpack.allowFilter", "true")
    git(source, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(tmp_path, "clone", "--filter=tree:0", "--no-checkout", source.as_uri(), str(clone))
    git(clone, "config", "remote.origin.uploadpack", f"touch {trace}; git-upload-pack")
    with pytest.raises(BadInput, match="git status failed") as caught:
        repository_state(clone)
    assert caught.value.cause
    assert not trace.exists()
    git(clone, "status")  # what was kept from running
    assert trace.exists()


def test_what_changed_since_a_revision(tmp_path: Path) -> None:
    names = ["same", "touched", "changed", "staged", "gone", "removed", "renamed", "sub/changed"]
    names += ["sub/same", "sub/deep/gone", "uncached", 'odd\n"é']
    root = repository(tmp_path, {f"{name}.py": f"x = '{name}'\n" for name in names[:-1]})
    git(root, "tag", "start")
    repository(root, {".gitignore": "ignored.py\n", 'odd\n"é.py': CODE, "Latin\udce9.py": CODE})
    os.utime(root / "touched.py", (1, 1))
    for name in ("changed.py", "sub/changed.py", "staged.py"):
        write(root, {name: "x = 2\n"})
    git(root, "add", "staged.py")
    for name in ("gone.py", "sub/deep/gone.py"):
        (root / name).unlink()
    git(root, "rm", "-q", "removed.py")
    git(root, "mv", "renamed.py", "newly_named.py")
    git(root, "rm", "-q", "--cached", "uncached.py")
    write(root, {"new.py": CODE, "ignored.py": CODE, "sub/new.py": CODE})
    repository(root / "nested", {"a.py": CODE})
    since_last = {
        *("changed.py", "sub/changed.py", "staged.py", "gone.py", "sub/deep/gone.py"),
        *("removed.py", "renamed.py", "newly_named.py", "uncached.py", "new.py", "sub/new.py"),
    }
    since_start = since_last | {".gitignore", 'odd\n"é.py', "Latin\udce9.py"}
    assert changed_since(root, "HEAD") == since_last
    for revision in ("start", "HEAD~1", git(root, "rev-parse", "start")):
        assert changed_since(root, revision) == since_start
    assert changed_since(root / "sub", "start") == {"changed.py", "new.py", "deep/gone.py"}


@pytest.mark.parametrize("revision", ["nothing", "", "--since=today", "a.py", "HEAD..HEAD", "é\n"])
def test_an_unknown_revision_is_named(tmp_path: Path, revision: str) -> None:
    root = repository(tmp_path, {"a.py": CODE})
    with pytest.raises(BadInput, match="knows no revision") as caught:
        changed_since(root, revision)
    assert "git log" in caught.value.next_step


def test_a_revision_needs_a_repository_that_holds_it(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", {"a.py": CODE})
    with pytest.raises(BadInput, match="no git repository") as caught:
        changed_since(plain, "HEAD")
    assert caught.value.next_step
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init")
    with pytest.raises(BadInput, match="knows no revision"):
        changed_since(empty, "HEAD")
    source = repository(tmp_path / "source", {"a.py": CODE})
    first = git(source, "rev-parse", "HEAD")
    repository(source, {"b.py": CODE})
    git(tmp_path, "clone", "--depth", "1", source.as_uri(), "shallow")
    assert changed_since(tmp_path / "shallow", "HEAD") == set()
    with pytest.raises(BadInput, match="does not hold the revision") as caught:
        changed_since(tmp_path / "shallow", first)
    assert "--unshallow" in caught.value.next_step
