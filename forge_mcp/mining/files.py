"""Which files of a repository are mined.

In a git repository the files are those that git tracks, and those that it does not ignore; in any
other folder all files below it that no .gitignore there names. What is not mined is counted with
its reason, file by file; a folder that is left out whole counts once:

    other_language   nothing that can be mined, by its extension or its first line
    excluded         by the project's include and exclude globs
    ignored          by a .gitignore (git does not say what it ignores: only outside of git)
    vendored         below node_modules, vendor, .venv, dist, …, or linguist-vendored
    submodule        a git repository within the repository
    outside          a symbolic link out of the repository
    symlink          a symbolic link to a folder, to nothing, or to itself
    too_large        more than mining.max_file_bytes
    unreadable       the operating system refused it
    generated        linguist-generated in a .gitattributes, or its head says so
    minified         named so, or lines are too long for source that people write
    binary           it holds NUL bytes
    undecodable      no encoding makes printable text of it; its name is no UTF-8
    unreadable_notebook   what calls itself a notebook is none
    syntax_error     no definition of it can be parsed
    miner_failed     a defect of the miner; please report it with the file

The last seven are found when a file is read (see text.py), in part or only.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from forge_mcp.errors import BadInput, NotFound, from_os_error
from forge_mcp.mining.git import git_files
from forge_mcp.mining.languages import LANGUAGES, language_of
from forge_mcp.mining.patterns import Attributes, Ignored, attribute_rules, matches
from forge_mcp.mining.text import is_notebook

VERSION_CONTROL = frozenset({".git", ".hg", ".svn"})
VENDORED = VERSION_CONTROL.union(
    (".venv", "venv", ".tox", ".nox", ".eggs", "__pycache__", "site-packages"),
    (".mypy_cache", ".pytest_cache", ".ruff_cache", ".gradle", ".idea", ".next"),
    ("node_modules", "bower_components", "vendor", "vendored", "_vendor", "third_party"),
    ("build", "dist", "target"),
)
MINIFIED_NAMES = (".min.js", ".min.mjs", ".bundle.js")
INTERPRETERS = {
    "python": "python",
    "pypy": "python",
    "sh": "bash",
    "bash": "bash",
    "dash": "bash",
    "zsh": "bash",
    "node": "javascript",
    "nodejs": "javascript",
    "ruby": "ruby",
    "php": "php",
}
FIRST_LINE_BYTES = 200


@dataclass(frozen=True)
class SourceFile:
    """A file to mine: its path from the repository's root (forward slashes) and its language.

    A header (.h) is listed as 'c'; `header_language` tells from its content.
    """

    path: str
    language: str


@dataclass
class Listing:
    """The files of a repository in order of their paths, and why others are left out."""

    files: list[SourceFile]
    skipped: Counter[str] = field(default_factory=Counter)


def list_files(root: Path, include: list[str], exclude: list[str], max_bytes: int) -> Listing:
    """The files of a repository that are candidates for mining.

    Args:
        root: an existing folder.
        include: globs; empty for everything. See `matches`.
        exclude: globs taken out after `include`.
        max_bytes: larger files are skipped.

    Raises:
        BadInput, Unavailable: git refuses the repository, or is not installed; a .gitignore or
            .gitattributes cannot be read.
    """
    listing = Listing([])
    paths = git_files(root)
    in_git = paths is not None
    if paths is None:
        paths = sorted(_walk(root, listing.skipped))
    judge = _Judge(root, include, exclude, max_bytes, Attributes(root, paths, in_git))
    for path in paths:
        reason, language = judge.judge(path)
        if reason:
            listing.skipped[reason] += 1
        elif language:
            listing.files.append(SourceFile(path, language))
    return listing


class _Judge:
    """Says of each path why it is not mined. What holds for a folder is found out once."""

    def __init__(
        self,
        root: Path,
        include: list[str],
        exclude: list[str],
        max_bytes: int,
        attributes: Attributes,
    ) -> None:
        self._root = str(root)
        self._real_root = os.path.realpath(root).rstrip("/") + "/"
        self._include, self._exclude, self._max_bytes = include, exclude, max_bytes
        self._attributes = attributes
        self._links: dict[str, str] = {"": ""}
        self._vendored: dict[str, bool] = {}

    def judge(self, path: str) -> tuple[str, str]:
        """(why a file is skipped or '', its language); ('', '') for what is no file at all."""
        absolute = f"{self._root}/{path}"
        folder, _, name = path.rpartition("/")
        try:
            if reason := self._folder_reason(folder):
                return reason, ""
            status = os.lstat(absolute)
            if stat.S_ISLNK(status.st_mode):
                if reason := self._link_reason(absolute):
                    return reason, ""
                status = Path(absolute).stat()
            if stat.S_ISDIR(status.st_mode):
                return ("submodule" if _is_repository(absolute) else ""), ""
            if not stat.S_ISREG(status.st_mode):  # a pipe, a device
                return "", ""
            return self._file(path, folder, name, absolute, status.st_size)
        except (FileNotFoundError, NotADirectoryError):  # deleted, but still tracked
            return "", ""
        except OSError:
            return "unreadable", ""

    def _file(self, path: str, folder: str, name: str, absolute: str, size: int) -> tuple[str, str]:
        language = "python" if is_notebook(name) else language_of(name)
        if language is None and "." in name[1:]:
            return "other_language", ""
        if self._is_vendored(path, folder):
            return "vendored", ""
        if (self._include and not any(matches(path, glob) for glob in self._include)) or any(
            matches(path, glob) for glob in self._exclude
        ):
            return "excluded", ""
        if language is None:
            with Path(absolute).open("rb") as file:
                language = language_of_shebang(file.readline(FIRST_LINE_BYTES))
            if language is None:
                return "other_language", ""
        if not _is_utf8(path):
            return "undecodable", ""
        if size > self._max_bytes:
            return "too_large", ""
        if self._attributes.value(path, "linguist-generated"):
            return "generated", ""
        if name.endswith(MINIFIED_NAMES):
            return "minified", ""
        return "", language

    def _folder_reason(self, folder: str) -> str:
        """Why what stands in a folder is not the repository's: a link is on the way to it."""
        reason = self._links.get(folder)
        if reason is None:
            reason = self._folder_reason(folder.rpartition("/")[0])
            absolute = f"{self._root}/{folder}"
            if not reason and stat.S_ISLNK(os.lstat(absolute).st_mode):
                reason = self._link_reason(absolute)
            self._links[folder] = reason
        return reason

    def _link_reason(self, absolute: str) -> str:
        """Why a link is not followed; '' where it leads to a file of the repository."""
        try:
            target = os.path.realpath(absolute, strict=True)
        except PermissionError:
            return "unreadable"
        except OSError:  # it leads nowhere, or to itself
            return "symlink"
        if not (target + "/").startswith(self._real_root):
            return "outside"
        return "symlink" if Path(target).is_dir() else ""

    def _is_vendored(self, path: str, folder: str) -> bool:
        stated = self._attributes.value(path, "linguist-vendored")
        if stated is not None:
            return stated
        if folder not in self._vendored:
            self._vendored[folder] = not VENDORED.isdisjoint(folder.split("/"))
        return self._vendored[folder]


def _is_repository(folder: str) -> bool:
    """Whether a folder that git names as if it were a file is a submodule: one that was not
    fetched is empty. Else it stands where git knows a file.
    """
    names = [path.name for path in Path(folder).iterdir()]
    return not names or ".git" in names


def _is_utf8(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _walk(root: Path, skipped: Counter[str]) -> Iterator[str]:
    """All files below a folder that is no git repository; no link to a folder is followed."""
    vendored = VENDORED
    if any(rule.values.get("linguist-vendored") is False for rule in attribute_rules(root)):
        vendored = VERSION_CONTROL  # some of what is in them is wanted
    folders: list[tuple[str, tuple[Ignored, ...]]] = [("", ())]
    while folders:
        folder, ignored = folders.pop()
        try:
            with os.scandir(root / folder) as scanned:
                entries = list(scanned)
        except OSError:
            skipped["unreadable"] += 1
            continue
        for entry in entries:
            if entry.name == ".gitignore" and entry.is_file(follow_symlinks=False):
                ignored = (Ignored(folder, Path(entry.path)), *ignored)
        for entry in entries:
            path, is_folder = folder + entry.name, entry.is_dir(follow_symlinks=False)
            if is_folder and entry.name in VERSION_CONTROL:
                continue
            answers = (rules.ignores(path, is_folder) for rules in ignored)
            if next((answer for answer in answers if answer is not None), False):
                skipped["ignored"] += 1
            elif not is_folder:
                yield path
            elif entry.name in vendored:
                skipped["vendored"] += 1
            else:
                folders.append((path + "/", ignored))


def resolve_root(repo_path: str | Path) -> Path:
    """The absolute folder of a repository.

    Raises:
        NotFound: nothing is there.
        BadInput: it is no folder, or must not be read.
    """
    root = Path(repo_path).expanduser().resolve()
    try:
        if not root.exists():
            raise NotFound(
                f"There is no folder {root}.",
                cause="the path does not exist",
                next_step="Give the path of a repository on this machine.",
            )
        if not root.is_dir():
            raise BadInput(
                f"{root} is not a folder.",
                cause="a repository is a folder with source files",
                next_step=f"Give the folder that it stands in: {root.parent}",
            )
        next(root.iterdir(), None)
    except OSError as error:
        raise from_os_error(error, f"read the repository {root}") from error
    return root


# -- languages that a path does not tell -----------------------------------------------------

COMMENT_OR_STRING = re.compile(
    rb"//[^\n]*|/\*.*?(?:\*/|\Z)|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'", re.DOTALL
)
# What a header of C says to a compiler of C++ only.
FOR_CPP_TOO = re.compile(
    rb"^[ \t]*#[ \t]*if[^\n]*\b__cplusplus\b.*?(?:^[ \t]*#[ \t]*(?:else|elif|endif)|\Z)",
    re.DOTALL | re.MULTILINE,
)
CPP = re.compile(
    rb"^[ \t]*(?:(?:inline[ \t]+)?namespace\b[\w: \t\r\n]{0,200}[{=]"
    rb"|template[ \t\r\n]*<"
    rb"|using[ \t]+[\w:]+[ \t]*[=;]|using[ \t]+namespace\b"
    rb"|(?:public|protected|private)[ \t]*:"
    rb"|(?:enum[ \t]+)?class[ \t]+[^;(){}=]{0,300}[;{]"
    rb"|#[ \t]*include[ \t]*<[a-z_]+>)"  # the standard library's; C's end in .h
    rb"|\bconstexpr\b|\w::~?\w|\bnullptr\b|\boperator[ \t]*[^\w\s;,)]",
    re.MULTILINE,
)


def language_of_shebang(first_line: bytes) -> str | None:
    """The language that `#!/usr/bin/env python3` and its like name, if it can be mined."""
    if not first_line.startswith(b"#!"):
        return None
    words = first_line[2:].decode("latin-1").split()
    if words and words[0].endswith("/env"):  # its options, and variables that it sets
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    program = words[0].rpartition("/")[2].rstrip("0123456789.") if words else ""
    language = INTERPRETERS.get(program)
    return language if language in LANGUAGES else None


def header_language(data: bytes) -> str:
    """Whether a header (.h) is in 'c' or in 'cpp'."""
    code = FOR_CPP_TOO.sub(b"", COMMENT_OR_STRING.sub(b" ", data))
    return "cpp" if CPP.search(code) else "c"
