"""All that runs git: which files it knows, a repository's state, what changed since a revision.

What a repository names is not run: no hook, no file-system monitor, no content filter of its own
configuration (those of the user's, such as Git LFS, do run). Nothing is fetched either: the remote
of a partial clone may name a program too. The repository is left as it is.
"""

from __future__ import annotations

import os
from pathlib import Path

from forge_mcp.errors import BadInput, Unavailable
from forge_mcp.schemas.manifests import RepositoryState

HARMLESS = (
    "--no-optional-locks",
    *("-c", "core.fsmonitor=false"),
    *("-c", f"core.hooksPath={os.devnull}"),
)
# A git hook that calls us has set these for its own repository, which need not be the one asked.
FOREIGN_VARIABLES = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_COMMON_DIR",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_SHALLOW_FILE",
    "GIT_GRAFT_FILE",
    "GIT_PREFIX",
)
NOT_FOUND = 127  # the exit status of env where there is no such program


class _Failed(BadInput):
    """A git command said no. Some questions are asked that way."""


def git_files(root: Path) -> list[str] | None:
    """Tracked and untracked files that git does not ignore, sorted, relative to a folder.

    A submodule is one path, an untracked repository in the folder is one path with a slash behind.

    Returns:
        None where git knows nothing of the folder: there is no repository, or the folder is one
        that an enclosing repository ignores.

    Raises:
        BadInput, Unavailable: git refuses the repository, or is not installed.
    """
    if not _in_work_tree(root):
        return None
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    paths = sorted({path for path in listed.split("\0") if path})
    return paths if paths or (root / ".git").exists() else None


def repository_state(root: Path) -> RepositoryState:
    """Commit and dirty flag (changed, staged or untracked files below the folder).

    Raises:
        BadInput, Unavailable: git refuses the repository, or is not installed.
    """
    if not _in_work_tree(root):
        return RepositoryState(path=str(root), revision=None)
    status = ("status", "--porcelain", "-z", "--ignore-submodules=dirty", "--", ".")
    dirty = bool(_git(root, *_no_filters(root), *status))
    return RepositoryState(path=str(root), revision=_commit(root, "HEAD"), dirty=dirty)


def changed_since(root: Path, revision: str) -> set[str]:
    """Paths below a folder whose files differ from a revision: changed, new or gone.

    New ones include what git does not track and does not ignore.

    Args:
        root: a folder in a work tree; the paths are relative to it.
        revision: anything that names a commit: a hash, branch, tag, `HEAD~3`.

    Raises:
        BadInput: there is no git repository, or it does not hold the revision.
        Unavailable: git is not installed.
    """
    if git_files(root) is None:
        raise BadInput(
            f"{root} is in no git repository, so nothing tells what changed since '{revision}'.",
            cause="git knows nothing of that folder",
            next_step="Give a folder in a git work tree, or ask without a revision.",
        )
    commit = _commit(root, revision)
    if commit is None:
        raise _unknown(root, revision)
    difference = ("diff", "--name-only", "-z", "--relative", "--no-renames")
    changed = _git(
        root, *_no_filters(root), *difference, "--ignore-submodules=dirty", commit, "--", "."
    )
    new = _git(root, "ls-files", "-z", "--others", "--exclude-standard")
    return {path for path in (changed + new).split("\0") if path and not path.endswith("/")}


def _unknown(root: Path, revision: str) -> BadInput:
    if _git(root, "rev-parse", "--is-shallow-repository").strip() == "true":
        return BadInput(
            f"The clone {root} does not hold the revision '{revision}'.",
            cause="it is a shallow clone: older commits were not fetched",
            next_step="Fetch them with: git fetch --unshallow",
        )
    return BadInput(
        f"{root} knows no revision '{revision}'.",
        cause="it names no commit of this repository",
        next_step="See git log --oneline for the commits, or fetch it first: git fetch",
    )


def _commit(root: Path, revision: str) -> str | None:
    """The hash of the commit that a revision names, or None."""
    wanted = ("--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    try:
        return _git(root, "rev-parse", *wanted).strip()
    except _Failed:
        return None


def _in_work_tree(root: Path) -> bool:
    if not any((folder / ".git").exists() for folder in (root, *root.parents)):
        return False
    try:
        return _git(root, "rev-parse", "--is-inside-work-tree").strip() == "true"
    except _Failed:  # a .git that is no repository, as in an unpacked archive
        return False


def _no_filters(root: Path) -> list[str]:
    """Options that switch off the content filters of a repository's own configuration."""
    try:
        listed = _git(
            root, "config", "-z", "--show-scope", "--name-only", "--get-regexp", r"^filter\."
        )
    except _Failed:  # there is none
        return []
    fields = listed.split("\0")
    options = []
    for scope, key in zip(fields[0::2], fields[1::2], strict=False):
        if scope in ("local", "worktree"):
            value = "false" if key.endswith(".required") else ""
            options += ["-c", f"{key}={value}"]
    return options


def _git(root: Path, *arguments: str) -> str:
    """Output of a git command in a folder; bytes that are no UTF-8 become surrogates.

    Raises:
        Unavailable: git is not installed.
        BadInput: the repository belongs to somebody else; `_Failed`: any other refusal.
    """
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import git

    foreign = [name for name in FOREIGN_VARIABLES if name in os.environ]
    without = ["env", *(word for name in foreign for word in ("-u", name))] if foreign else []
    try:
        status, output, errors = git.Git(root).execute(
            [*without, "git", *HARMLESS, *arguments],
            env={"GIT_ALLOW_PROTOCOL": ""},  # no protocol, so no remote
            strip_newline_in_stdout=False,
            with_extended_output=True,
            with_exceptions=False,
        )
    except git.GitCommandNotFound:
        status, output, errors = NOT_FOUND, "", ""
    if status:
        raise _refusal(root, arguments[0], int(status), str(errors).strip())
    return str(output)


def _refusal(root: Path, command: str, status: int, errors: str) -> BadInput | Unavailable:
    if status == NOT_FOUND:
        return Unavailable(
            f"{root} is a git repository, but git is not installed.",
            cause="there is no program git on the PATH",
            next_step="Install git.",
        )
    if "dubious ownership" in errors:
        return BadInput(
            f"git refuses to read {root}: it belongs to another user.",
            cause=errors.splitlines()[0],
            next_step=f"If you trust it: git config --global --add safe.directory {root}",
        )
    return _Failed(
        f"git {command} failed in {root}.",
        cause=errors,
        next_step=f"Run git {command} there, and mend what it says.",
    )
