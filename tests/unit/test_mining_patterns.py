"""Globs, ignored files and attributes: against git itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from files_in_git import CODE, git, listed
from files_in_git import no_settings_of_the_user as no_settings_of_the_user  # a fixture
from hypothesis import example, given
from hypothesis import strategies as st
from mining_helpers import write

from forge_mcp.errors import BadInput
from forge_mcp.mining.patterns import Attributes, matches


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


@given(ignore_files=st.tuples(IGNORE_FILES, IGNORE_FILES, IGNORE_FILES))
@example((["/a/**", "!/a/c.py"], [], []))
@example((["a/", "!a/"], [], []))
@example((["*", "!*/", "!*.py"], ["a.py"], ["!*"]))
@example((["*.py"], ["!a.py"], ["b/"]))
@example((["/**/"], ["b/**/"], []))
@example(([], ["b/**/"], []))
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
