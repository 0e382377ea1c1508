"""Which licence a file is under: its SPDX header, else the repository's licence file.

Only what is stated counts. A licence file is recognised by its title, or by sentences of its
official text; anything else is None.
"""

from __future__ import annotations

import re
from pathlib import Path

LICENSE_FILES = re.compile(r"(?i)^(?:licen[cs]e|copying|unlicense)(?:[-.](?:md|txt|rst|\w+))?$")
SPDX = re.compile(r"SPDX-License-Identifier:\s*([\w.+()\- ]+?)\s*(?:\*/|-->|[\r\n]|$)")
HEADER_BYTES = 4096

# SPDX identifiers and what must stand in the text (lower case, single spaces). First match wins.
TITLES: tuple[tuple[str, str], ...] = (
    ("AGPL-3.0", "gnu affero general public license version 3"),
    ("LGPL-3.0", "gnu lesser general public license version 3"),
    ("LGPL-2.1", "gnu lesser general public license version 2.1"),
    ("GPL-3.0", "gnu general public license version 3"),
    ("GPL-2.0", "gnu general public license version 2"),
    ("MPL-2.0", "mozilla public license version 2.0"),
    ("Apache-2.0", "apache license version 2.0"),
)
TITLE_CHARACTERS = 500  # these licences name each other further below
SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("PSF-2.0", ("python software foundation license version 2",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software",)),
    (
        "BSD-3-Clause",
        ("redistribution and use in source and binary forms", "neither the name of"),
    ),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms",)),
    ("MIT", ("permission is hereby granted, free of charge, to any person obtaining a copy",)),
)


def license_of_text(text: str) -> str | None:
    """SPDX identifier of a licence file's text, or None where it is none of those known here."""
    if match := SPDX.search(text):
        return match[1]
    normal = re.sub(r"\s+", " ", text.lower())
    for name, title in TITLES:
        if title in normal[:TITLE_CHARACTERS]:
            return name
    for name, sentences in SIGNS:
        if all(sentence in normal for sentence in sentences):
            return name
    return None


def license_of_repository(root: Path) -> str | None:
    """What the licence file in a repository's root says; None without one, or with two that
    differ (a choice of licences is not one licence).
    """
    found = set()
    for path in sorted(root.iterdir()):
        if LICENSE_FILES.match(path.name) and path.is_file() and path.stat().st_size < 200_000:
            found.add(license_of_text(path.read_text(encoding="utf-8", errors="replace")))
    return found.pop() if len(found) == 1 else None


def license_of_file(text: str) -> str | None:
    """The SPDX header of a source file, or None."""
    match = SPDX.search(text[:HEADER_BYTES])
    return match[1] if match else None
