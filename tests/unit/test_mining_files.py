"""Listing the files of a repository: against git itself; odd files, names and links."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from files_in_git import CODE, git, listed, repository
from files_in_git import no_settings_of_the_user as no_settings_of_the_user  # a fixture
from hypothesis import given
from hypothesis import strategies as st
from mining_helpers import write

from forge_mcp.errors import BadInput, NotFound
from forge_mcp.mining.files import (
    SourceFile,
    header_language,
    language_of_shebang,
    list_files,
    resolve_root,
)
from forge_mcp.mining.git import git_files
from forge_mcp.mining.languages import LANGUAGES


def test_files_that_are_not_mined_are_counted(tmp_path: Path) -> None:
    root = write(
        tmp_path / "repo",
        {
            "good.py": CODE,
            "empty.py": "",
            "big.py": "x = 1\n" * 20_000,
            "lib.min.js": "var a=1",
            "node_modules/x/index.js": "var a = 1",
            "docs/conf.py": CODE,
            "README.md": "hello",
            "Makefile": "all:\n",
        },
    )
    os.mkfifo(root / "pipe.py")
    listing = list_files(root, [], ["docs"], 100_000)
    assert listing.files == [SourceFile("empty.py", "python"), SourceFile("good.py", "python")]
    assert listing.skipped == {
        "excluded": 1,
        "minified": 1,
        "other_language": 2,
        "too_large": 1,
        "vendored": 1,
    }
    assert [f.path for f in list_files(root, ["docs"], [], 100).files] == ["docs/conf.py"]


def test_git_decides_what_is_listed(tmp_path: Path) -> None:
    root = repository(
        tmp_path,
        {
            ".gitignore": "ignored/\n",
            "tracked é.py": "x = 1\n",
            "deleted.py": "x = 1\n",
            "gone/away.py": "x = 1\n",
            "now_a_folder.py": "x = 1\n",
        },
    )
    write(root, {"untracked.py": "x = 1\n", "ignored/secret.py": "x = 1\n"})
    for name in ("deleted.py", "gone/away.py", "now_a_folder.py"):
        (root / name).unlink()
    (root / "gone").rmdir()
    write(root, {"now_a_folder.py/inner.py": "x = 1\n"})
    files = ["now_a_folder.py/inner.py", "tracked é.py", "untracked.py"]
    assert listed(root) == (files, {"other_language": 1})
    # A folder that the repository ignores, asked for by name, is walked.
    assert git_files(root / "ignored") is None
    assert listed(root / "ignored") == (["secret.py"], {})


def test_names_that_are_hard_to_write(tmp_path: Path) -> None:
    names = ["new\nline.py", 'a "quoted" name.py', "tab\t.py", " space .py", "é.py", "-dash.py"]
    names += ["back\\slash.py", "*star?[x].py"]
    write(tmp_path, dict.fromkeys(names, CODE))
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/latin\xe9.py")).write_text(CODE)
    expected = (sorted(names), {"undecodable": 1})
    assert listed(tmp_path) == expected
    git(tmp_path, "init")
    assert listed(tmp_path) == expected
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-m", "x")
    assert listed(tmp_path) == expected


@pytest.mark.parametrize("in_git", [True, False])
def test_links_are_not_followed_out_of_the_repository_nor_in_circles(
    tmp_path: Path, in_git: bool
) -> None:
    write(tmp_path, {"outside.py": CODE, "other/a.py": CODE})
    root = write(tmp_path / "repo", {"good.py": CODE, "package/a.py": CODE})
    (root / "inside.py").symlink_to("good.py")
    (root / "out.py").symlink_to(tmp_path / "outside.py")
    (root / "out_folder").symlink_to(tmp_path / "other")
    (root / "sibling.py").symlink_to(tmp_path / "repo2")
    (tmp_path / "repo2").mkdir()
    (root / "folder").symlink_to("package")
    (root / "loop").symlink_to(".")
    (root / "itself.py").symlink_to("itself.py")
    (root / "nowhere.py").symlink_to("nothing.py")
    if in_git:
        git(root, "init")
        git(root, "add", "-A")
    files = ["good.py", "inside.py", "package/a.py"]
    assert listed(root) == (files, {"outside": 3, "symlink": 4})


def test_tracked_files_behind_a_link_are_not_read(tmp_path: Path) -> None:
    root = repository(tmp_path / "repo", {"a/b/x.py": CODE, "c/y.py": CODE, "z.py": CODE})
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere", {"b/x.py": "secret = 1\n"})
    for folder, target in (("a", tmp_path / "elsewhere"), ("c", root / "a")):
        git(root, "rm", "-r", "--cached", "-q", folder)
        git(root, "reset", "-q")
        for path in sorted((root / folder).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (root / folder).rmdir()
        (root / folder).symlink_to(target)
    assert {"a/b/x.py", "c/y.py"} <= set(git_files(root) or [])
    files, skipped = listed(root)
    assert files == ["z.py"]
    assert skipped == {"outside": 4}


def test_submodules_are_counted_and_can_be_mined_themselves(tmp_path: Path) -> None:
    library = repository(tmp_path / "library", {"lib.py": CODE})
    root = repository(tmp_path / "root", {"a.py": CODE})
    git(root, "submodule", "add", str(library), "three.js")
    git(root, "commit", "-m", "submodule")
    repository(root / "untracked_repository", {"b.py": CODE})
    assert listed(root) == (["a.py"], {"other_language": 1, "submodule": 2})
    assert listed(root / "three.js") == (["lib.py"], {})
    clone = tmp_path / "clone"  # its submodule is not fetched
    git(tmp_path, "clone", str(root), str(clone))
    assert listed(clone) == (["a.py"], {"other_language": 1, "submodule": 1})


def test_what_the_system_refuses_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a.py": CODE, "b.py": CODE, "script": "#!/bin/sh\n", "closed/c.py": CODE})
    (tmp_path / "link.py").symlink_to("a.py")

    def refuse_for(place: Any, function: str, name: str) -> None:
        real = getattr(place, function)

        def refuse(path: str | Path, *arguments: Any, **options: Any) -> Any:
            if Path(path).name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *arguments, **options)

        monkeypatch.setattr(place, function, refuse)

    refuse_for(os, "lstat", "b.py")
    refuse_for(os, "scandir", "closed")
    refuse_for(Path, "open", "script")
    refuse_for(os.path, "realpath", "link.py")
    assert listed(tmp_path) == (["a.py"], {"unreadable": 4})


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "huge.py").open("wb") as file:
        file.truncate(50_000_000)
    monkeypatch.setattr(Path, "open", None)
    monkeypatch.setattr(Path, "read_bytes", None)
    assert listed(tmp_path) == ([], {"too_large": 1})


@pytest.mark.parametrize(
    ("line", "language"),
    [
        (b"#!/usr/bin/env python3\n", "python"),
        (b"#!/usr/bin/python3.11 -u\n", "python"),
        (b"#! /usr/bin/env -S PYTHONPATH=. pypy3 -O\r\n", "python"),
        (b"#!/bin/bash", "bash"),
        (b"#!/bin/sh -e\n", "bash"),
        (b"#!/usr/bin/env zsh\n", "bash"),
        (b"#!/usr/bin/env node\n", "javascript"),
        (b"#!/usr/bin/ruby2.7\n", "ruby"),
        (b"#!/usr/bin/env php\n", "php"),
        (b"#!/usr/bin/perl\n", None),
        (b"#!/usr/bin/env\n", None),
        (b"#!\n", None),
        (b"\x7fELF python", None),
        (b"# python\n", None),
        (b"", None),
    ],
)
def test_shebangs(line: bytes, language: str | None) -> None:
    assert language_of_shebang(line) == (language if language in LANGUAGES else None)


@given(st.binary(max_size=60))
def test_no_first_line_breaks(line: bytes) -> None:
    assert language_of_shebang(b"#!" + line) in {None, *LANGUAGES}


def test_files_are_known_by_their_first_line_and_notebooks_by_their_name(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "run": "#!/usr/bin/env python3\nprint(1)\n",
            "tool.txt": "#!/usr/bin/env python3\n",
            ".hook": "#!/usr/bin/env python3\nprint(1)\n",
            "LICENSE": "MIT",
            "empty": "",
            "study.ipynb": "{}",
            "A.PY": CODE,
            "node_modules/run": "#!/usr/bin/env python3\n",
        },
    )
    git(tmp_path, "init")
    listing = list_files(tmp_path, [], [], 1000)
    assert listing.files == [
        SourceFile(path, "python") for path in (".hook", "A.PY", "run", "study.ipynb")
    ]
    assert listing.skipped == {"other_language": 3, "vendored": 1}


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("class A {\npublic:\n  int x;\n};\n", "cpp"),
        ("struct A {\n private:\n  int x;\n};\n", "cpp"),
        ("class A;\n", "cpp"),
        ("namespace a::b {\n}\n", "cpp"),
        ("inline namespace v1\n{\n}\n", "cpp"),
        ("template <typename T>\nT f(T);\n", "cpp"),
        ("using Id = int;\n", "cpp"),
        ("using namespace std;\n", "cpp"),
        ("static constexpr int N = 3;\n", "cpp"),
        ("void f(const std::string &s);\n", "cpp"),
        ("#include <vector>\n", "cpp"),
        ("enum class Color { Red };\n", "cpp"),
        ("bool operator==(int a, int b);\n", "cpp"),
        ("#ifdef __cplusplus\nnamespace a {\n#endif\nint f(void);\n", "c"),
        ('#ifdef __cplusplus\nextern "C" {\n#endif\nint f(void);\n', "c"),
        ("#if defined(__cplusplus) && X\ntemplate <int N> struct A;\n#else\nint x;\n#endif\n", "c"),
        ("/* a class of things:\n class A;\n namespace b {\n*/\nint x;\n", "c"),
        ("// std::string\nint x;\n", "c"),
        ('#define NAME "std::string"\n', "c"),
        ("#include <stdio.h>\n#include <sys/types.h>\nstruct class_info { int class; };\n", "c"),
        ("int operator_count; int namespace_id;\n", "c"),
        ("/* never closed class A {", "c"),
        ("", "c"),
    ],
)
def test_headers_of_c_and_cpp(header: str, language: str) -> None:
    assert header_language(header.encode()) == language


def test_a_root_is_an_existing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, {"file.py": CODE}) / "file.py"
    assert resolve_root(str(tmp_path / "." / "x" / "..")) == tmp_path.resolve()
    with pytest.raises(NotFound, match="no folder"):
        resolve_root(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="not a folder") as caught:
        resolve_root(file)
    assert str(tmp_path) in caught.value.next_step

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(BadInput, match="permission denied"):
        resolve_root(tmp_path)
