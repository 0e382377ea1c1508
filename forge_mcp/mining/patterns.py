"""Patterns of paths: globs of the settings, .gitignore where there is no git, .gitattributes.

The patterns of git are translated by pathspec. Its expressions also match what lies below a folder
that a pattern names; here they match the thing itself alone, since folders are asked before what
is in them, and since an attribute of a folder is none of its files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from forge_mcp.errors import from_os_error


@cache
def _translate(glob: str) -> re.Pattern[str]:
    anchored = "/" in glob.rstrip("/")
    body, index = "", 0
    glob = glob.strip("/")
    while index < len(glob):
        if glob.startswith("**/", index):
            body, index = body + r"(?:[^/]+/)*", index + 3
        elif glob.startswith("**", index):
            body, index = body + r".*", index + 2
        else:
            character = glob[index]
            body += {"*": r"[^/]*", "?": r"[^/]"}.get(character, re.escape(character))
            index += 1
    return re.compile(("" if anchored else r"(?:.*/)?") + body + r"(?:/.*)?", re.DOTALL)


def matches(path: str, glob: str) -> bool:
    """Whether a glob matches a path or one of the folders that it stands in, much as in .gitignore.

    `*` and `?` stay within a folder name, `**` does not. A glob without an inner slash matches at
    any depth (`docs`, `*.pb.go`), one with a slash from the root (`src/**/gen`, `/docs`).
    """
    return bool(_translate(glob).fullmatch(path))


# How pathspec's expressions begin ("in any folder") and end ("this, or in this", "in this folder").
ANYWHERE, THIS_OR_BELOW, FOLDER = "^(?:.+/)?", "(?:(?P<ps_d>/)|$)", "(?P<ps_d>/)"


def _git_pattern(line: str) -> tuple[str, bool] | None:
    """(expression, False after a `!`) of what a line of a .gitignore names: the thing itself, a
    folder with a slash behind, not what is in it. None for a comment and for what git skips.
    """
    try:
        expression, plain = GitIgnoreSpecPattern.pattern_to_regex(line)
        if expression is None or plain is None:
            return None
        if expression.endswith(THIS_OR_BELOW):
            expression = expression.removesuffix(THIS_OR_BELOW) + r"/?\Z"
        elif expression.endswith(FOLDER):
            expression = expression.removesuffix(FOLDER)
            if expression and line.rstrip().endswith("/**/"):  # all folders in it
                expression += "/.+"
            expression += r"/\Z"
        elif expression.endswith("/"):  # `folder/**`: all in it
            expression += "."
        if not expression.startswith("^"):
            expression = ".*" + expression
        re.compile(expression)
    except (ValueError, re.error):  # a backslash at the end, [z-a]
        return None
    return expression, plain


class Ignored:
    """What one .gitignore says of the paths below its folder."""

    def __init__(self, folder: str, file: Path) -> None:
        """Read the file; its folder is '' or ends in a slash."""
        self._start = len(folder)
        patterns = [found for line in _read(file).split("\n") if (found := _git_pattern(line))]
        by_name, by_path = [], []
        for number, (expression, plain) in enumerate(patterns):
            name = expression.removeprefix(ANYWHERE)
            if name == expression or "/" in name.removesuffix(r"\Z").rstrip("?/"):
                by_path.append((expression, number, plain))
            else:  # most lines: much faster than with the path
                by_name.append((name, number, plain))
        self._by_name, self._by_path = Alternatives(by_name), Alternatives(by_path)

    def ignores(self, path: str, is_folder: bool) -> bool | None:
        """Whether the path itself is ignored; None where no line speaks of it."""
        name, below = path[path.rfind("/") + 1 :], path[self._start :]
        if is_folder:
            name, below = name + "/", below + "/"
        number, plain = max(self._by_name.last(name), self._by_path.last(below))
        return plain if number >= 0 else None


class Alternatives:
    """Lines of a .gitignore, asked all at once."""

    def __init__(self, lines: list[tuple[str, int, bool]]) -> None:
        """`lines`: (expression, number of the line, False after a `!`)."""
        lines = lines[::-1]  # the last line that matches decides
        self._answers = [(number, plain) for _, number, plain in lines]
        self._any = re.compile("|".join(f"({line[0]})" for line in lines), re.DOTALL)

    def last(self, text: str) -> tuple[int, bool]:
        """(number, False after a `!`) of the last line that matches; -1 where none does."""
        match = self._any.match(text)
        return self._answers[match.lastindex - 1] if match and match.lastindex else (-1, False)


class AttributeRule(NamedTuple):
    """A line of a .gitattributes; None is the value of an attribute that a `!` unsets."""

    pattern: re.Pattern[str]
    values: dict[str, bool | None]


LINGUIST = ("linguist-generated", "linguist-vendored")


def attribute_rules(folder: Path) -> list[AttributeRule]:
    """The lines of a folder's .gitattributes on what `LINGUIST` names, the last one first."""
    path = folder / ".gitattributes"
    if path.is_symlink() or not path.is_file():
        return []
    rules = []
    for line in _read(path).split("\n"):
        quoted = re.match(r'\s*"((?:[^"\\]|\\.)*)"', line)
        glob, attributes = (
            (re.sub(r"\\(.)", r"\1", quoted[1]), line[quoted.end() :].split())
            if quoted
            else ("".join(line.split()[:1]), line.split()[1:])
        )
        values = {name: value for name, value in map(_attribute, attributes) if name in LINGUIST}
        if not values or glob.startswith(("!", "#")):  # git skips those
            continue
        if pattern := _git_pattern(glob):
            rules.append(AttributeRule(re.compile(pattern[0], re.DOTALL), values))
    return rules[::-1]


def _attribute(word: str) -> tuple[str, bool | None]:
    if word.startswith("!"):
        return word[1:], None
    if word.startswith("-"):
        return word[1:], False
    name, _, value = word.partition("=")
    return name, value != "false"


class Attributes:
    """What the .gitattributes files of a repository state of its paths."""

    def __init__(self, root: Path, paths: list[str], in_git: bool) -> None:
        """Read those among `paths` and, for a folder in a work tree, those above it."""
        self._above: list[tuple[str, list[AttributeRule]]] = []
        prefix, folder = "", root
        while in_git and not (folder / ".git").exists():
            prefix, folder = f"{folder.name}/{prefix}", folder.parent
            self._above.append((prefix, attribute_rules(folder)))
        self._files = {
            path.removesuffix(".gitattributes"): rules
            for path in paths
            if path == ".gitattributes" or path.endswith("/.gitattributes")
            if (rules := attribute_rules(root / path.removesuffix(".gitattributes")))
        }
        self._none = not self._files and not any(rules for _, rules in self._above)

    def value(self, path: str, name: str) -> bool | None:
        """Whether a path has an attribute; None where nothing is stated."""
        if self._none:
            return None
        for below, rules in self._speaking_of(path):
            for pattern, values in rules:
                if name in values and pattern.match(below):
                    return values[name]
        return None

    def _speaking_of(self, path: str) -> Iterator[tuple[str, list[AttributeRule]]]:
        """(the path as seen from a .gitattributes, its rules), the nearest file first."""
        folder = path
        while folder:
            folder = folder.rstrip("/").rpartition("/")[0]
            folder += "/" if folder else ""
            if folder in self._files:
                yield path[len(folder) :], self._files[folder]
        for prefix, rules in self._above:
            yield prefix + path, rules


def _read(path: Path) -> str:
    """A small file's text, with surrogates where a name in it is no UTF-8.

    Raises:
        BadInput: it must not be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise from_os_error(error, f"read {path}") from error
