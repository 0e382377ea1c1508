"""Which licence a file is under: its SPDX header, else what is stated nearest above it.

In a folder count, in this order: its licence files, a `LICENSES` folder (REUSE), the `license`
field of its package.json, pyproject.toml or Cargo.toml. Only what is stated counts: a licence file
is recognised by its title, or by sentences of its official text. One that is not recognised means
that the licence is unknown, not that the one of the folder above holds.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

LICENSE_FILES = re.compile(
    r"(?:[a-z0-9.]+[-_])?(?:licen[cs]e|copying|unlicense)"
    r"(?:[-_.](?:mit|apache|bsd|isc|[al]?gpl|lesser|lib|mpl|psf|cc0|zlib|boost|unlicense)[\w.+-]*?)?"
    r"(?:\.(?:md|markdown|txt|rst|adoc|html))?",
    re.IGNORECASE,
)
REUSE_FOLDER = "LICENSES"
MANIFESTS = {  # where their field is
    "package.json": (("license",),),
    "pyproject.toml": (("project", "license"), ("tool", "poetry", "license")),
    "Cargo.toml": (("package", "license"),),
}
MAX_BYTES = 200_000
SPDX = re.compile(
    r"SPDX-License-Identifier:[ \t]*([\w.+()\-: \t]+?)[ \t]*(?:\*/|-->|[\"'\r\n]|$)", re.MULTILINE
)
HEADER_CHARACTERS = 4096

# SPDX identifiers and what must stand in the text (lower case, single spaces).
TITLES: tuple[tuple[str, str], ...] = (
    ("AGPL-3.0", "gnu affero general public license version 3"),
    ("LGPL-3.0", "gnu lesser general public license version 3"),
    ("LGPL-2.1", "gnu lesser general public license version 2.1"),
    ("GPL-3.0", "gnu general public license version 3"),
    ("GPL-2.0", "gnu general public license version 2"),
    ("MPL-2.0", "mozilla public license version 2.0"),
    ("EPL-2.0", "eclipse public license - v 2.0"),
    ("BSL-1.0", "boost software license - version 1.0"),
    ("CC0-1.0", "cc0 1.0 universal"),
    ("Apache-2.0", "apache license version 2.0"),
)
TITLE_CHARACTERS = 500  # these licences name each other further below
PERMISSION = "permission to use, copy, modify, and/or distribute this software"
GRANT = "permission is hereby granted, free of charge, to any person obtaining a copy"
REDISTRIBUTION = "redistribution and use in source and binary forms"
# The first sentence of a licence, and others that tell it from those further below.
SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("PSF-2.0", ("python software foundation license version 2",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("ISC", (PERMISSION, "provided that the above copyright notice")),
    ("0BSD", (PERMISSION,)),
    ("BSD-3-Clause", (REDISTRIBUTION, "neither the name of")),
    ("BSD-2-Clause", (REDISTRIBUTION,)),
    ("MIT", (GRANT, "the above copyright notice and this permission notice")),
    ("MIT-0", (GRANT,)),
    ("Zlib", ("this software is provided 'as-is'", "altered source versions must be plainly")),
)
ADDED_CONDITIONS = ("commons clause",)  # in front of another licence, which it takes back in part


def license_of_text(text: str) -> str | None:
    """SPDX identifier of a licence file's text, or None where it is none of those known here."""
    if stated := license_of_file(text):
        return stated
    normal = re.sub(r"\s+", " ", text.lower())
    if any(condition in normal for condition in ADDED_CONDITIONS):
        return None
    for name, title in TITLES:
        if title in normal[:TITLE_CHARACTERS]:
            return name
    found = [
        (normal.index(sentences[0]), order, name)  # others' licences may be quoted below
        for order, (name, sentences) in enumerate(SIGNS)
        if all(sentence in normal for sentence in sentences)
    ]
    return min(found)[2] if found else None


def license_of_file(text: str) -> str | None:
    """What the SPDX headers of a source file say, as one expression, or None without one."""
    headers = (" ".join(name.split()) for name in SPDX.findall(text[:HEADER_CHARACTERS]))
    found = dict.fromkeys(name for name in headers if _is_expression(name))
    if len(found) > 1:  # all of them hold
        return " AND ".join(f"({name})" if " " in name else name for name in found)
    return next(iter(found), None)


class Licenses:
    """The licences that are stated in the folders of a repository, each of them read once."""

    def __init__(self, root: Path) -> None:
        """`root`: the repository; nothing above it is read."""
        self._root = root
        self._known: dict[str, str | None] = {}

    def of(self, path: str) -> str | None:
        """SPDX expression that holds for a file without a header of its own; None: unknown.

        Args:
            path: of the file, from the repository's root, with forward slashes.
        """
        return self._of_folder(path.rpartition("/")[0])

    def _of_folder(self, folder: str) -> str | None:
        if folder not in self._known:
            stated = _stated(self._root / folder)
            if stated is None and folder:
                self._known[folder] = self._of_folder(folder.rpartition("/")[0])
            else:
                self._known[folder] = stated.license if stated else None
        return self._known[folder]


class _Statement(NamedTuple):
    """A folder says something of its licence; None: nothing that can be understood."""

    license: str | None


def _stated(folder: Path) -> _Statement | None:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:  # the file that was listed is gone, and its folder
        return None
    files = [folder / name for name in names if LICENSE_FILES.fullmatch(name)]
    found = {license_of_text(_read(path)) for path in files if path.is_file()}
    if (license_name := _one_of(found)) is not None:
        return _Statement(license_name)
    reuse = _reuse_names(folder / REUSE_FOLDER) if REUSE_FOLDER in names else set()
    if len(reuse) == 1 and not found:
        return _Statement(reuse.pop())
    fields = {_of_manifest(folder / name) for name in MANIFESTS if name in names} - {None}
    if fields:
        return _Statement(_one_of({stated.license for stated in fields if stated}))
    return _Statement(None) if found or reuse else None


def _one_of(found: set[str | None]) -> str | None:
    """The licence of a folder's licence files, where they are one. A choice is not one."""
    if any(name and name.startswith("LGPL-") for name in found):
        # The LGPL adds to the GPL, whose text stands beside it.
        found = {name for name in found if not name or not name.startswith("GPL-")}
    return next(iter(found)) if len(found) == 1 else None


def _reuse_names(folder: Path) -> set[str]:
    """The licences of a LICENSES folder: its files are named after them."""
    if not folder.is_dir():
        return set()
    return {path.stem for path in folder.iterdir() if path.suffix in (".txt", ".md")}


def _of_manifest(path: Path) -> _Statement | None:
    """What a manifest states; None where it says nothing."""
    text = _read(path)
    try:
        fields = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError):
        return None
    for keys in MANIFESTS[path.name]:
        stated: Any = fields
        for key in keys:
            stated = stated.get(key) if isinstance(stated, dict) else None
        if isinstance(stated, dict):  # {"type": "MIT"} of old packages, {text = "…"} of PEP 621
            stated = stated.get("type") or stated.get("text")
        if isinstance(stated, str) and stated.strip():
            return _Statement(_license_of_field(stated))
    return None


def _license_of_field(stated: str) -> str | None:
    expression = " ".join(stated.replace("/", " OR ").split())  # a slash: in old Cargo.toml
    if expression.upper() == "UNLICENSED":  # npm's word for no licence at all
        return None
    return expression if _is_expression(expression) else license_of_text(stated)


def _read(path: Path) -> str:
    """The beginning of a text file, long enough for every licence; '' where it is unreadable."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


# -- what is allowed -------------------------------------------------------------------------

RANK = {"OR": 1, "AND": 2}
NAME = re.compile(r"[\w.+:-]+")
EXCEPTION = re.compile(r"(?<=[\w.+-])\s+with\s+[\w.:-]+", re.IGNORECASE)


def allowed(license_name: str | None, allow: list[str]) -> bool:
    """Whether a licence is one of those that a project allows.

    Of `A OR B` one is enough, of `A AND B` both are needed, and `A WITH an exception` counts as A.
    A licence `-or-later` (or `+`) is also allowed by its base version, `-only` is the base
    version. An unknown licence (None), or what is no SPDX expression, is not allowed.

    Args:
        license_name: an SPDX expression or None.
        allow: SPDX identifiers, or whole expressions; empty: everything is allowed.
    """
    if not allow or license_name is None:
        return not allow
    names = {_spelling(name) for name in allow}
    if _spelling(license_name) in names:
        return True

    def is_named(name: str) -> bool:
        spelled = _spelling(name)
        return spelled in names or spelled.removesuffix("-or-later") in names

    return bool(_holds(license_name, is_named))


def _spelling(name: str) -> str:
    spelled = " ".join(name.lower().split())
    return re.sub(r"-only\b", "", re.sub(r"\+(?!\w)", "-or-later", spelled))


def _is_expression(text: str) -> bool:
    return _holds(text, lambda name: True) is not None


def _holds(expression: str, is_named: Callable[[str], bool]) -> bool | None:
    """The value of an SPDX expression whose licences have values; None where it is none.

    With a stack (the shunting-yard algorithm), as brackets can be nested to any depth.
    """
    values: list[bool] = []
    operators: list[str] = []

    def apply() -> None:
        right, left = values.pop(), values.pop()
        values.append(left or right if operators.pop() == "OR" else left and right)

    is_operand = True  # what comes next
    for part in re.findall(r"[()]|[^()\s]+", EXCEPTION.sub("", expression)):
        word = part.upper()
        if is_operand and part == "(":
            operators.append(part)
        elif is_operand and NAME.fullmatch(part) and word not in (*RANK, "WITH"):
            values.append(is_named(part))
            is_operand = False
        elif not is_operand and word in RANK:
            while operators and RANK.get(operators[-1], 0) >= RANK[word]:
                apply()
            operators.append(word)
            is_operand = True
        elif not is_operand and part == ")":
            while operators and operators[-1] != "(":
                apply()
            if not operators:
                return None
            operators.pop()
        else:
            return None
    if is_operand or "(" in operators:
        return None
    while operators:
        apply()
    return values[0]
