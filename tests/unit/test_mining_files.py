"""Listing, git, decoding, licences: against git itself, Python's codecs and parser; odd files."""

from __future__ import annotations

import ast
import codecs
import encodings.aliases
import itertools
import json
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from forge_mcp.errors import BadInput, NotFound, Unavailable
from forge_mcp.mining.files import (
    SourceFile,
    header_language,
    language_of_shebang,
    list_files,
    resolve_root,
)
from forge_mcp.mining.git import changed_since, git_files, repository_state
from forge_mcp.mining.languages import LANGUAGES
from forge_mcp.mining.licenses import Licenses, allowed, license_of_file, license_of_text
from forge_mcp.mining.patterns import Attributes, matches
from forge_mcp.mining.text import Text, decode, plain_python, text_skip_reason

STDLIB = Path(sysconfig.get_paths()["stdlib"])
CODE = "def f(a):\n    return [a, a, a]\n"


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def git(root: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main")
    allowing = ("-c", "protocol.file.allow=always")
    done = subprocess.run(
        ["git", *who, *allowing, *words], cwd=root, check=True, capture_output=True
    )
    return done.stdout.decode("utf-8", "surrogateescape").strip()


def repository(root: Path, files: dict[str, str | bytes]) -> Path:
    write(root, files)
    git(root, "init")
    git(root, "add", "-A")
    git(root, "commit", "--allow-empty", "-m", "first")
    return root


def listed(root: Path, max_bytes: int = 100_000) -> tuple[list[str], dict[str, int]]:
    listing = list_files(root, [], [], max_bytes)
    return [file.path for file in listing.files], dict(listing.skipped)


# -- listing -----------------------------------------------------------------------------------


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


# -- patterns ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "glob", "expected"),
    [
        ("docs/a.py", "docs", True),
        ("src/docs/a.py", "docs/", True),
        ("src/docs/a.py", "/docs", False),
        ("docs/a.py", "/docs", True),
        ("src/a/b/gen/x.py", "src/**/gen", True),
        ("src/gen/x.py", "src/**/gen", True),
        ("x.pb.go", "*.pb.go", True),
        ("a/x.pb.go", "*.pb.go", True),
        ("a/b.py", "a/*.py", True),
        ("a/c/b.py", "a/*.py", False),
        ("a/c/b.py", "a/**", True),
        ("ab.py", "?.py", False),
    ],
)
def test_globs(path: str, glob: str, expected: bool) -> None:
    assert matches(path, glob) is expected


SEGMENTS = st.sampled_from(
    ["a", "b", "c.py", "*", "?", "*.py", "[ab]", "[!a]", "a*", "**", "d\\ e", "[z-a]"]
)
PATTERNS = st.builds(
    lambda negated, anchored, parts, folder: negated + anchored + "/".join(parts) + folder,
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "/"]),
    st.lists(SEGMENTS, min_size=1, max_size=3),
    st.sampled_from(["", "", "/"]),
)
IGNORE_FILES = st.lists(PATTERNS | st.sampled_from(["", "# a", "\\#a", "\\!a", "a\\"]), max_size=4)
TREE = [
    *("a.py", "b.py", "c.py", "a/a.py", "a/c.py/b.py", "a/b/a.py", "a/b/c.py", "b/a/b/c.py"),
    *("b/c.py", "b/b.py", "d e/a.py", "#a/x.py", "!a/x.py", "ab/c.py", "new\nline/a.py"),
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds `TREE`, and a repository beside it."""
    root = tmp_path_factory.mktemp("patterns")
    write(root / "tree", dict.fromkeys(TREE, "x = 1\n"))
    git(root, "init", "--bare", "store")
    return root / "tree"


@settings(max_examples=150, deadline=None)
@given(ignore_files=st.tuples(IGNORE_FILES, IGNORE_FILES, IGNORE_FILES))
@example((["/a/**", "!/a/c.py"], [], []))
@example((["a/", "!a/"], [], []))
@example((["*", "!*/", "!*.py"], ["a.py"], ["!*"]))
@example((["*.py"], ["!a.py"], ["b/"]))
@example((["/**/"], ["b/**/"], []))
def test_ignored_files_are_those_that_git_ignores(
    tree: Path, ignore_files: tuple[list[str], ...]
) -> None:
    for place, lines in zip(("", "a/", "b/"), ignore_files, strict=True):
        write(tree, {f"{place}.gitignore": "".join(f"{line}\r\n" for line in lines)})
    command = ("--git-dir=../store", "--work-tree=.", "ls-files", "-z", "--others")
    expected = git(tree, *command, "--exclude-standard").split("\0")
    files, _ = listed(tree)
    assert files == sorted(path for path in expected if path.endswith(".py"))


def test_ignored_folders_count_once(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            ".gitignore": "\ufeffdata/\n*.log.py\n",
            "data/a.py": CODE,
            "data/b.py": CODE,
            "x.log.py": CODE,
            "package/.gitignore": "/local.py\n!x.log.py\n",
            "package/local.py": CODE,
            "package/x.log.py": CODE,
            "package/inner/local.py": CODE,
            ".hg/a.py": CODE,
        },
    )
    files = ["package/inner/local.py", "package/x.log.py"]
    assert listed(tmp_path) == (files, {"ignored": 3, "other_language": 2})


ATTRIBUTES = st.sampled_from(
    [
        *("linguist-generated", "-linguist-generated", "!linguist-generated"),
        *("linguist-generated=false", "linguist-generated=true", "linguist-vendored", "text"),
    ]
)
ATTRIBUTE_LINES = st.lists(
    st.builds(
        lambda glob, words: f"{glob} {' '.join(words)}",
        st.builds(
            lambda anchored, parts: anchored + "/".join(parts),
            st.sampled_from(["", "/"]),
            st.lists(
                st.sampled_from(
                    ["a", "b", "c.py", "*", "*.py", "[ab]", "**", '"d e"', "#a", "[z-a]"]
                ),
                min_size=1,
                max_size=3,
            ),
        ),
        st.lists(ATTRIBUTES, max_size=3),
    ),
    max_size=5,
)


@pytest.fixture(scope="module")
def attributed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write(tmp_path_factory.mktemp("attributes"), dict.fromkeys(TREE, "x = 1\n"))
    git(root, "init")
    return root


@settings(max_examples=100, deadline=None)
@given(root_lines=ATTRIBUTE_LINES, a_lines=ATTRIBUTE_LINES)
def test_attributes_are_those_that_git_tells(
    attributed: Path, root_lines: list[str], a_lines: list[str]
) -> None:
    files = {".gitattributes": "\n".join(root_lines), "a/.gitattributes": "\n".join(a_lines)}
    root = write(attributed, dict(files))
    names = ("linguist-generated", "linguist-vendored")
    told = iter(git(root, "check-attr", "-z", *names, "--", *TREE).split("\0"))
    values = {"set": True, "true": True, "unset": False, "false": False, "unspecified": None}
    expected = {
        (path, name): values[value] for path, name, value in zip(told, told, told, strict=False)
    }
    assert len(expected) == 2 * len(TREE)
    found = Attributes(root, list(files), in_git=True)
    below = Attributes(root / "a", [".gitattributes"], in_git=True)
    for (path, name), value in expected.items():
        assert found.value(path, name) is value, (path, name)
        if path.startswith("a/"):
            assert below.value(path[2:], name) is value, (path, name)


@pytest.mark.parametrize("in_git", [True, False])
def test_generated_and_vendored_attributes_are_honoured(tmp_path: Path, in_git: bool) -> None:
    write(
        tmp_path,
        {
            ".gitattributes": "gen/** linguist-generated\nlib/** linguist-vendored=true\n"
            "build/** -linguist-vendored\n!x linguist-generated\nfoo/ linguist-generated\n"
            '"two words/*" linguist-generated\n* text=auto\n',
            "gen/a.py": CODE,
            "gen/.gitattributes": "kept.py linguist-generated=false\n",
            "gen/kept.py": CODE,
            "lib/a.py": CODE,
            "build/a.py": CODE,
            "dist/a.py": CODE,
            "foo/a.py": CODE,
            "two words/a.py": CODE,
            "two words/more/a.py": CODE,
        },
    )
    write(tmp_path, {"rules.txt": "* linguist-generated\n"})
    (tmp_path / "foo" / ".gitattributes").symlink_to("../rules.txt")  # git follows no such link
    if in_git:
        git(tmp_path, "init")
    files, skipped = listed(tmp_path)
    assert files == ["build/a.py", "foo/a.py", "gen/kept.py", "two words/more/a.py"]
    assert skipped == {"generated": 2, "other_language": 4, "vendored": 2}


def test_an_unreadable_gitignore_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {".gitignore": "secret.py\n", "secret.py": CODE})

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(BadInput, match=r"\.gitignore"):
        listed(tmp_path)


# -- git ---------------------------------------------------------------------------------------


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


# -- text --------------------------------------------------------------------------------------

COOKIE = "# -*- coding: {} -*-\n"
MARKED = {  # encoding: byte-order mark
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
MARKS = tuple(MARKED.values())
DECLARED = ["iso8859-1", "iso8859-15", "koi8-r", "shift_jis", "euc_kr", "big5", "gb18030", "cp1251"]


def check_offsets(data: bytes, decoded: Text) -> None:
    """Every slice between two characters is found again in the file."""
    text = decoded.text
    assert decoded.utf8.decode() == text
    ends = itertools.accumulate((len(character.encode()) for character in text), initial=0)
    places = [decoded.file_offset(end) for end in ends]
    for index, character in enumerate(text):
        assert data[places[index] : places[index + 1]].decode(decoded.encoding) == character
    for index in range(0, len(places), 3):
        assert data[places[index] :].decode(decoded.encoding) == text[index:]


@given(st.text(max_size=60), st.sampled_from([None, *MARKED]), st.sampled_from(["python", "go"]))
@example("", "utf-16-le", "go")
@example("a\r\nb\u2028é\n", "utf-16-be", "go")
def test_offsets_of_unicode(text: str, encoding: str | None, language: str) -> None:
    data = MARKED[encoding] + text.encode(encoding) if encoding else text.encode()
    if encoding is None and data.startswith((*MARKS, b"#")):
        return
    decoded = decode(data, language)
    assert decoded is not None
    if encoding == "utf-16-le" and text.startswith("\0"):  # these are the marks of UTF-32
        return
    assert (decoded.text, decoded.encoding) == (text, encoding or "utf-8")
    check_offsets(data, decoded)


@settings(deadline=None)
@given(st.data(), st.sampled_from(DECLARED), st.booleans())
def test_offsets_of_declared_encodings(draws: st.DataObject, encoding: str, second: bool) -> None:
    # Those left out have the bytes of other characters.
    characters = st.characters(codec=encoding, exclude_characters="¥‾ㅤ")
    drawn = draws.draw(st.text(characters | st.sampled_from("aé\nЖ日本가中"), max_size=40))
    text = "#!/usr/bin/python\n" * second + COOKIE.format(encoding) + drawn
    try:
        data = text.encode(encoding)
    except UnicodeEncodeError:
        return
    decoded = decode(data, "python")
    assert decoded is not None
    assert (decoded.text, decoded.encoding) == (text, codecs.lookup(encoding).name)
    check_offsets(data, decoded)


WESTERN = st.characters(codec="cp1252", exclude_categories=["Cc"]) | st.sampled_from("\n\t")


@given(st.text(WESTERN))
@example("Grüße, 5 €\r\n„Zitat“")
def test_offsets_of_what_nothing_declares(text: str) -> None:
    data = text.encode("cp1252")
    decoded = decode(data, "java")
    try:
        data.decode()
    except UnicodeDecodeError:
        if data.startswith(MARKS):
            return
        assert decoded is not None
        assert (decoded.text, decoded.encoding) == (text, "cp1252")
    if decoded is not None:
        check_offsets(data, decoded)


CODECS = sorted({*encodings.aliases.aliases, *DECLARED, "undefined", "idna", "punycode"})


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([b"", *MARKS]) | st.sampled_from([COOKIE.format(c).encode() for c in CODECS]),
    st.binary(max_size=100),
    st.sampled_from(["python", "javascript"]),
    st.sampled_from(["", "a.py", "a.ipynb"]),
)
def test_no_bytes_break_decoding(start: bytes, rest: bytes, language: str, path: str) -> None:
    data = start + rest
    decoded = decode(data, language, path)
    reason = text_skip_reason(data, decoded, path)
    if decoded is None:
        assert reason
    elif not path.endswith(".ipynb"):
        check_offsets(data, decoded)


@pytest.mark.parametrize(
    ("data", "language", "encoding"),
    [
        (b"x = 1\n", "python", "utf-8"),
        (b"# coding: latin-1\nx = '\xe9'\n", "python", "iso8859-1"),
        (b"# coding: latin-1\nx = '\xe9'\n", "ruby", "cp1252"),
        (b"#!/bin/x\r# vim: set fileencoding=koi8-r :\rx = '\xc1'\r", "python", "koi8-r"),
        (b"\xef\xbb\xbf# coding: koi8-r\nx = 1\n", "python", "utf-8"),
        (b"x = 1\n# coding: koi8-r\n\xc3\xa9", "python", "utf-8"),
        (b"\n\n# coding: koi8-r\n\xc3\xa9", "python", "utf-8"),
        (b"# coding: ascii\nx = '\xc3\xa9'\n", "python", "utf-8"),
        (b"# coding: klingon\nx = '\xc3\xa9'\n", "python", "utf-8"),
        (b"# coding: rot13\nx = '\xc3\xa9'\n", "python", "utf-8"),
        (b"# coding: utf-8-sig\nx = '\xc3\xa9'\n", "python", "utf-8"),
        (b"# coding: utf-16\nx = 12\n", "python", "utf-8"),
        (b"# coding: cp500\nx = 1\n", "python", "utf-8"),
        (b"x = '\x80'", "python", "cp1252"),
        (b"x = '\x81\x9d\xff'\n", "python", None),
        (b"x = '\xff\x01'\n", "python", None),
        (b"# coding: iso2022_jp\nx = '\x1b$B8@8l\x1b(B'\n", "python", None),
        (b"# coding: utf-7\nx = 'a +AGEAYg- b'\n", "python", None),
        (b"# coding: unicode_escape\nx = 1\n", "python", None),
        (b"# coding: shift_jisx0213\nx = '\x82\xf5'\n", "python", None),
        (b"# coding: cp932\nx = '\x87\x90'\n", "python", None),
        (b"# coding: idna\nx = '\xc3\xa9'\n", "python", "utf-8"),
        (b"# coding: undefined\nx = '\xc3\xa9'\n", "python", "utf-8"),
        (b"\xef\xbb\xbf\xff", "python", None),
        (b"\xff\xfe1\xd8", "go", None),
    ],
)
def test_encodings(data: bytes, language: str, encoding: str | None) -> None:
    decoded = decode(data, language)
    assert (decoded and decoded.encoding) == encoding
    assert text_skip_reason(data, decoded) == ("" if encoding else "undecodable")
    if decoded is not None:
        check_offsets(data, decoded)


def test_nul_bytes_are_binary_but_for_utf_16() -> None:
    for data in (b"x = '\0'\n", b"\xff\0\x01", "\ufeffa\0b".encode("utf-16-le")):
        assert text_skip_reason(data, decode(data, "python")) == "binary"
    data = "\ufeffclass A {}\n".encode("utf-16-le")
    assert text_skip_reason(data, decode(data, "java")) == ""


def test_plain_files_are_not_copied() -> None:
    data = CODE.encode() * 1000
    decoded = decode(data, "go")
    assert decoded is not None
    assert decoded.utf8 is data


PARAGRAPH = " * Permission is hereby granted, free of charge, to any one\n" * 30
LICENCE_COMMENT = f"/*!\n{PARAGRAPH} */\n"


@pytest.mark.parametrize(
    ("text", "minified"),
    [
        ("var a=[" + "1," * 5000 + "1]", True),
        ("var a=1;" * 500, False),  # short enough to be read
        (LICENCE_COMMENT + "var a=1;" * 2000, True),
        (LICENCE_COMMENT + "var a=1;" * 750, True),
        (LICENCE_COMMENT * 20 + "var a=1;" * 2000, False),
        ("x = 1\n" * 5000, False),
        ("x = 1\r" * 5000, False),
        ("", False),
    ],
)
def test_minified_text(text: str, minified: bool) -> None:
    data = text.encode()
    assert text_skip_reason(data, decode(data, "go")) == "minified" * minified


@pytest.mark.parametrize(
    "head",
    [
        "# Generated by the protocol buffer compiler.  DO NOT EDIT!\n",
        "# -*- coding: utf-8 -*-\n# Generated by the protocol buffer compiler.  DO NOT EDIT!\n",
        "// Code generated by stringer; DO NOT EDIT.\npackage x\n",
        "// Copyright\n\n// Code generated by sqlc. DO NOT EDIT.\n// versions:\npackage x\n",
        "// Code generated by MockGen. DO NOT EDIT.\n// Source: a.go\n",
        "package x\n\n// Code generated by hand; DO NOT EDIT.\n",
        "/**\n * @generated SignedSource<<abc>>\n */\n",
        "/* eslint-disable */\n// @generated\n",
        "# THIS FILE IS GENERATED FROM SETUP.PY\n",
        "# Generated by Django 4.2 on 2024-01-01 10:00\n\nfrom django.db import migrations\n",
        "#\n# Autogenerated by Thrift Compiler (0.9.3)\n#\n# DO NOT EDIT\n",
        '"""\n    Pets\n\n    NOTE: This class is auto generated by OpenAPI Generator\n"""\n',
        "/**\n * NOTE: This class is auto generated by the swagger code generator program.\n */\n",
        "// This file was automatically generated and should not be edited.\n",
        "// This file was generated by the swagger tool.\n",
        "/* AUTO-GENERATED FILE.  DO NOT MODIFY. */\n",
        "/* automatically generated by rust-bindgen 0.59.1 */\n",
        "//----\n// <auto-generated>\n//     This code was generated by a tool.\n",
        "# Don't worry: this file is autogenerated\n",
        "<!-- Code generated by x. DO NOT EDIT. -->\n",
        "-- Code generated by sqlc. DO NOT EDIT.\n",
        "\ufeff'''Automatically generated by ply'''\n",
        "/* A Bison parser, made by GNU Bison 3.0.4.  */\n",
        "# Please do not edit this file directly.\n",
        "# Copyright\n\n# auto-generated by a script\n",
    ],
)
def test_generated_heads(head: str) -> None:
    data = (head + "x = 1\n").encode()
    assert text_skip_reason(data, decode(data, "javascript")) == "generated"


@pytest.mark.parametrize(
    "head",
    [
        'HEADER = "# Code generated by x. DO NOT EDIT."\n',
        'import os\n\nHEADER = """\n# Code generated by x. DO NOT EDIT.\n"""\n',
        "import os\n\nHEADER = '''\n# Code generated by x. DO NOT EDIT.\n'''\n",
        "package x\n\nconst header = `\n// Code generated by x. DO NOT EDIT.\n`\n",
        "const header = '// Code generated by x. DO NOT EDIT.'\n",
        '// Writes files that begin with "Code generated by x. DO NOT EDIT."\n',
        "# Ids of rows are\n# automatically generated by the database.\n",
        "# This section is generated by a tool.\n",
        "# This file is not generated.\n",
        "# How this code is made: generated by hand.\n",
        "generated = True  # by the caller\n",
        "do not edit this file directly\n",
        "# The files that are auto-generated from protobuf are left out.\n",
        "x = 1\n" * 500 + "# Code generated by x. DO NOT EDIT.\n",
    ],
)
def test_heads_of_files_that_people_write(head: str) -> None:
    data = (head + "x = 1\n").encode()
    assert text_skip_reason(data, decode(data, "javascript")) == ""


# -- notebooks ---------------------------------------------------------------------------------


def notebook(*cells: str | list[str], **metadata: object) -> bytes:
    rows: list[dict[str, object]] = [{"cell_type": "markdown", "source": "# Title"}]
    rows += [{"cell_type": "code", "source": cell, "outputs": []} for cell in cells]
    return json.dumps({"cells": rows, "metadata": metadata, "nbformat": 4}).encode()


def python_of(data: bytes) -> Text:
    decoded = decode(data, "python", "a/study.IPYNB")
    assert decoded is not None
    assert text_skip_reason(data, decoded, "a/study.IPYNB") == ""
    return decoded


def test_the_cells_of_a_notebook() -> None:
    decoded = python_of(
        notebook(
            ["import os\n", "x = 'é'\n"],
            "%%bash\nls | wc",
            "%matplotlib inline\n\ndef f():\n    return 1",
            "",
            "\n\n!ls\ny = 2\n\n",
            kernelspec={"name": "python3", "language": "python"},
        )
    )
    cells = [
        "import os\nx = 'é'\n",
        "#matplotlib inline\n\ndef f():\n    return 1\n",
        "#ls\ny = 2\n",
    ]
    assert decoded.text == "\n".join(cells)
    assert decoded.cells == ((1, 1), (4, 3), (9, 5))
    lines = decoded.text.split("\n")
    assert [lines[line - 1] for line, _ in decoded.cells] == [c.split("\n")[0] for c in cells]
    assert (decoded.file_offset(17), decoded.offset, decoded.encoding) == (17, 0, "utf-8")


def test_an_old_notebook() -> None:
    cells = [
        {"cell_type": "heading", "source": "Title"},
        {"cell_type": "code", "input": ["x = 1\n", "y = 2"], "language": "python"},
    ]
    second = [{"cell_type": "code", "input": "z = 3", "language": "python"}]
    sheets = {"metadata": {}, "nbformat": 3, "worksheets": [{"cells": cells}, {"cells": second}]}
    decoded = python_of(json.dumps(sheets).encode())
    assert (decoded.text, decoded.cells) == ("x = 1\ny = 2\n\nz = 3\n", ((1, 1), (4, 2)))


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        {"language_info": {"name": "python"}},
        {"kernelspec": {"name": "conda-env", "language": "python"}},
        {"language_info": {"name": "ipython"}},
    ],
)
def test_kernels_of_python(metadata: dict[str, object]) -> None:
    assert python_of(notebook("x = 1", **metadata)).text == "x = 1\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (notebook("x <- 1", kernelspec={"name": "ir", "language": "R"}), "other_language"),
        (notebook("x", language_info={"name": "julia"}), "other_language"),
        (
            b'{"worksheets": [{"cells": [{"cell_type": "code", "input": "", "language": "R"}]}]}',
            "other_language",
        ),
        (b"no JSON", "unreadable_notebook"),
        (b"", "unreadable_notebook"),
        (b"\xff\xfe\x00", "unreadable_notebook"),
        (b"[]", "unreadable_notebook"),
        (b"{}", "unreadable_notebook"),
        (b'{"cells": 3}', "unreadable_notebook"),
        (b'{"cells": [3]}', "unreadable_notebook"),
        (b'{"cells": [{"cell_type": "code"}]}', "unreadable_notebook"),
        (b'{"cells": [{"cell_type": "code", "source": [3]}]}', "unreadable_notebook"),
        (b'{"cells": [], "metadata": []}', "unreadable_notebook"),
        (b'{"worksheets": [{}]}', "unreadable_notebook"),
        (b'{"cells": [{"cell_type": "code", "source": "\\ud800"}]}', "unreadable_notebook"),
        (b"[" * 100_000, "unreadable_notebook"),
    ],
    ids=range(16),
)
def test_notebooks_that_are_not_mined(data: bytes, reason: str) -> None:
    decoded = decode(data, "python", "a.ipynb")
    assert decoded is None
    assert text_skip_reason(data, decoded, "a.ipynb") == reason


VALUES = {"files = !ls *.py": "files = None", "a, b[0] = %timeit -o f()": "a, b[0] = None"}
MAGICS = [
    "%matplotlib inline",
    "%timeit -n 3 f(x)",
    "!pip install a \\\n    'b>=2' \\\n    c",
    "!ls {folder}",
    "?str.join",
    "str.join?",
    "str.join??  ",
    "f(1)?",
    "%cd ..",
]
STATEMENTS = [
    "x = (1\n  % 2)",
    "text = '''\n%not magic\n!no\nwhat?\n'''",
    "y = 5 \\\n  % 3",
    "z = [  # a bracket )\n  '(', \"'\",\n]",
    "if x:\n    y = '?'\nelse:\n    z = 'a\\'b'",
    "# what?  \\",
    "w = {'a': (1, [2])}; v = 'x' != 'y'",
    'def f():\n    r"""Doc.\n\n    %%no \\\n    """\n    return """a""" + "b"',
]


@given(st.lists(st.sampled_from([*STATEMENTS, *MAGICS, *VALUES]), max_size=8))
def test_magics_become_comments_and_nothing_else_changes(parts: list[str]) -> None:
    cell = "\n".join(parts)
    plain = plain_python(cell)
    assert plain.count("\n") == cell.count("\n")
    kept = [VALUES.get(part, part) for part in parts if part not in MAGICS]
    assert ast.dump(ast.parse(plain)) == ast.dump(ast.parse("\n".join(kept)))
    if not set(VALUES) & set(parts):
        assert len(plain) == len(cell)


@pytest.mark.parametrize("path", sorted(STDLIB.glob("[a-d]*.py")), ids=lambda path: path.name)
def test_python_without_magics_is_left_alone(path: Path) -> None:
    source = path.read_text()
    assert plain_python(source) == source
    # The same where a magic below makes it no Python.
    assert plain_python(source + "\n%time") == source + "\n#time"


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("%%time\nx = 1", "#%time\nx = 1"),
        ("\n%%capture out\nx = 1\n!ls", "\n#%capture out\nx = 1\n#ls"),
        ("%%html\n<b>", ""),
        ("%%\nx = 1", "#%\nx = 1"),
        ("if x:\n    %time f()\n    !ls", "if x:\n    pass  # %time f()\n    pass  # !ls"),
        ("for f in x:\n    y = !ls\n", "for f in x:\n    y = None  # !ls\n"),
        ("if x:\n  !a \\\n  b\n  y = 1", "if x:\n  pass  # !a \\\n  #\n  y = 1"),
        ("def f(:\n", "def f(:\n"),
        ("x = ('a \\\n)'\n % 3)", "x = ('a \\\n)'\n % 3)"),
        ("x = ')'\n)\n%time", "x = ')'\n)\n#time"),
        ("x\0\n%time", "x\0\n#time"),
    ],
)
def test_magics_of_cells_and_in_blocks(cell: str, expected: str) -> None:
    assert plain_python(cell) == expected


# -- licences ----------------------------------------------------------------------------------

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
