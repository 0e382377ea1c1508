"""Licences of texts, files and folders, and what is allowed: expressions against Python's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mining_helpers import write

from forge_mcp.mining.licenses import Licenses, allowed, license_of_file, license_of_text

CODE = "def f(a):\n    return [a, a, a]\n"
MIT = (
    "MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining\na copy …"
    "\nThe above copyright notice and this permission notice shall be included …\n"
)
BSD = "Redistribution and use in source and binary forms, with or without modification, …\n"
ISC = "Permission to use, copy, modify, and/or distribute this software for any purpose …\n"
APACHE = "Apache License\n    Version 2.0, January 2004\n"
GPL = "GNU GENERAL PUBLIC LICENSE\nVersion 3, 29 June 2007\n" + "x" * 600
LGPL = "GNU LESSER GENERAL PUBLIC LICENSE\nVersion 3, 29 June 2007"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (APACHE, "Apache-2.0"),
        (GPL + "GNU Affero General Public License version 3", "GPL-3.0"),
        (MIT, "MIT"),
        ("Permission is hereby granted, free of charge, to any person obtaining a copy", "MIT-0"),
        (BSD, "BSD-2-Clause"),
        (BSD + "Neither the name of the University …", "BSD-3-Clause"),
        (MIT + BSD + "Neither the name of", "MIT"),
        (BSD + MIT, "BSD-2-Clause"),
        (ISC, "0BSD"),
        (ISC + "provided that the above copyright notice …", "ISC"),
        ("# SPDX-License-Identifier: EUPL-1.2\n", "EUPL-1.2"),
        ('"Commons Clause" License Condition v1.0\n' + APACHE, None),
        ("All rights reserved.", None),
        ("", None),
    ],
)
def test_licence_texts(text: str, name: str | None) -> None:
    assert license_of_text(text) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("# {}: MIT\nx = 1\n", "MIT"),
        ("// {}:  MIT  OR Apache-2.0\r\n", "MIT OR Apache-2.0"),
        ("/* {}: GPL-2.0-only WITH x-exception */", "GPL-2.0-only WITH x-exception"),
        ("<!-- {}: CC0-1.0 -->", "CC0-1.0"),
        ("# {0}: (MIT OR X11)\n# {0}: MIT\n", "((MIT OR X11)) AND MIT"),
        ("# {0}: MIT OR 0BSD\n# {0}: ISC\n", "(MIT OR 0BSD) AND ISC"),
        ("# {0}: MIT\n# {0}: MIT\n", "MIT"),
        ("# {}:\n\nimport os\n", None),
        ("# The {}: header of a file\n", None),
        ("#" * 5000 + "\n# {}: MIT\n", None),
        ("x = 1\n", None),
    ],
)
def test_headers_of_files(text: str, name: str | None) -> None:
    assert license_of_file(text.format("SPDX-License-Identifier")) == name


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({}, None),
        ({"LICENSE": MIT}, "MIT"),
        ({"licence.md": MIT}, "MIT"),
        ({"MIT-LICENSE.txt": MIT}, "MIT"),
        ({"license.py": CODE, "COPYING": GPL}, "GPL-3.0"),
        ({"LICENSE": "Ours.", "package.json": '{"license": "MIT"}'}, "MIT"),
        ({"LICENSE-MIT": MIT, "LICENSE-APACHE": APACHE}, None),
        (
            {
                "LICENSE-MIT": MIT,
                "LICENSE-APACHE": APACHE,
                "Cargo.toml": '[package]\nlicense = "MIT/Apache-2.0"\n',
            },
            "MIT OR Apache-2.0",
        ),
        ({"COPYING": GPL, "COPYING.LESSER": LGPL}, "LGPL-3.0"),
        ({"LICENSES/Apache-2.0.txt": APACHE}, "Apache-2.0"),
        ({"LICENSES/Apache-2.0.txt": APACHE, "LICENSES/MIT.txt": MIT}, None),
        ({"LICENSES/Apache-2.0.txt": APACHE, "LICENSE": MIT}, "MIT"),
        ({"LICENSES/MIT.txt": MIT, "LICENSE": "Ours."}, None),
        ({"LICENSES": "MIT"}, None),
        ({"LICENSE/README": "MIT"}, None),
        ({"package.json": '{"license": {"type": "ISC", "url": "…"}}'}, "ISC"),
        ({"package.json": '{"license": "SEE LICENSE IN terms"}'}, None),
        ({"package.json": '{"license": "UNLICENSED"}'}, None),
        ({"package.json": "{"}, None),
        ({"package.json": "[" * 100_000}, None),
        ({"package.json": "[]"}, None),
        ({"pyproject.toml": '[project]\nlicense = "Apache-2.0 OR MIT"\n'}, "Apache-2.0 OR MIT"),
        ({"pyproject.toml": f"[project]\nlicense = {{text = '''{MIT}'''}}\n"}, "MIT"),
        ({"pyproject.toml": "[project]\nlicense = {file = 'x'}\n"}, None),
        ({"pyproject.toml": '[tool.poetry]\nlicense = "MIT"\n'}, "MIT"),
        ({"pyproject.toml": "[tool]\npoetry = 1\n"}, None),
        ({"Cargo.toml": "[package]\nlicense.workspace = true\n"}, None),
        ({"package.json": '{"license": "MIT"}', "Cargo.toml": '[package]\nlicense = "ISC"'}, None),
    ],
    ids=range(28),
)
def test_the_licence_of_a_folder(
    tmp_path: Path, files: dict[str, str | bytes], name: str | None
) -> None:
    assert Licenses(write(tmp_path, files)).of("a.py") == name


def test_the_nearest_licence_holds(tmp_path: Path) -> None:
    root = write(
        tmp_path / "root",
        {
            "LICENSE": MIT,
            "a/b/c.py": CODE,
            "libs/x/COPYING": GPL,
            "libs/x/src/deep/a.py": CODE,
            "libs/y/LICENSE.txt": "Nobody may read this.",
            "libs/y/a.py": CODE,
            "libs/z/package.json": '{"name": "z"}',
            "libs/z/a.py": CODE,
            "libs/w/package.json": '{"license": "UNLICENSED"}',
        },
    )
    write(tmp_path, {"LICENSE": APACHE})
    licenses = Licenses(root)
    assert licenses.of("a.py") == "MIT"
    assert licenses.of("a/b/c.py") == "MIT"
    assert licenses.of("libs/x/src/deep/a.py") == "GPL-3.0"
    assert licenses.of("libs/y/a.py") is None
    assert licenses.of("libs/z/a.py") == "MIT"
    assert licenses.of("libs/w/a.py") is None
    assert licenses.of("gone/a.py") == "MIT"
    (root / "LICENSE").unlink()
    assert licenses.of("a/d.py") == "MIT"  # read once
    assert Licenses(root).of("a/d.py") is None  # not from above the root


def test_a_licence_that_cannot_be_read_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"LICENSE": MIT, "sub/LICENSE": APACHE})
    opened = Path.open

    def refuse(self: Path, mode: str) -> object:
        if self.parent.name == "sub":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, mode)

    monkeypatch.setattr(Path, "open", refuse)
    assert (Licenses(tmp_path).of("a.py"), Licenses(tmp_path).of("sub/a.py")) == ("MIT", None)


@pytest.mark.parametrize(
    ("name", "allow", "expected"),
    [
        (None, [], True),
        ("GPL-3.0", [], True),
        (None, ["MIT"], False),
        ("MIT", ["MIT"], True),
        ("mit", ["MIT"], True),
        ("MIT OR Apache-2.0", ["Apache-2.0"], True),
        ("MIT AND Apache-2.0", ["Apache-2.0"], False),
        ("MIT AND Apache-2.0", ["Apache-2.0", "MIT"], True),
        ("MIT  or Apache-2.0", ["MIT OR Apache-2.0"], True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", ["GPL-2.0"], True),
        ("GPL-2.0 WITH Classpath-exception-2.0 AND MIT", ["MIT"], False),
        ("GPL-2.0-or-later", ["GPL-2.0-only"], True),
        ("GPL-2.0+", ["GPL-2.0-or-later"], True),
        ("GPL-2.0", ["GPL-2.0-or-later"], False),
        ("(MIT", ["MIT"], False),
        ("MIT)", ["MIT"], False),
        ("MIT OR", ["MIT"], False),
        ("MIT Apache-2.0", ["MIT", "Apache-2.0"], False),
        ("MIT WITH", ["MIT"], False),
        ("", ["MIT"], False),
        ("(" * 50_000 + "MIT" + ")" * 50_000, ["MIT"], True),
    ],
    ids=range(21),
)
def test_allowed_licences(name: str | None, allow: list[str], expected: bool) -> None:
    assert allowed(name, allow) is expected


NAMES = ["MIT", "ISC", "0BSD", "GPL-3.0-only"]
EXPRESSIONS = st.recursive(
    st.sampled_from(NAMES),
    lambda inner: (
        st.builds("{} {} {}".format, inner, st.sampled_from(["AND", "OR"]), inner)
        | st.builds("({})".format, inner)
    ),
)


@given(EXPRESSIONS, st.sets(st.sampled_from(NAMES), min_size=1))
def test_expressions_mean_what_they_mean_to_python(expression: str, allow: set[str]) -> None:
    words = expression.replace("(", "( ").replace(")", " )").split()
    operators = {"AND": "and", "OR": "or", "(": "(", ")": ")"}
    python = " ".join(operators.get(word) or str(word in allow) for word in words)
    assert allowed(expression, sorted(allow)) is eval(python)
