"""What is compared: each language with its code, its oracle, and the share that is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from oracles import ctags_errors, javac, python_ast
from oracles.comparison import Definition
from oracles.ctags import CtagsOracle
from oracles.gaps import Syntax
from oracles.hand_checked import HandChecked
from oracles.node import NodeOracle
from oracles.packages import Package, standard_library

# Reads files (path → bytes) below a root, with what lies in the cache; returns the definitions
# and the paths that it cannot parse.
Oracle = Callable[[Path, Mapping[str, bytes], Path], tuple[list[Definition], list[str]]]


@dataclass(frozen=True)
class Task:
    """One comparison.

    Attributes:
        languages: names of `languages.LANGUAGES` whose blocks count.
        oracle_name: as printed.
        goal: the share of the oracle's definitions that the miner must have right.
        syntax: what a block may begin with; None where spans must be exactly equal.
        exclude: globs of files that are left out, as in the project's settings.
    """

    languages: tuple[str, ...]
    packages: tuple[Package, ...]
    oracle_name: str
    oracle: Oracle
    goal: float
    syntax: Syntax | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


CTAGS = "universal-ctags"
C_COMMENTS = (("/*", "*/"),)
# Between a block's first character and a name: types and modifiers, but no end of a statement.
NO_STATEMENT = re.compile(r"[^;{}]*")
# What precedes a name where lines end statements: words, types and receivers on one line.
ONE_LINE = re.compile(r"[\w$<>?*&@.,:()\[\]` -]*")

ECMASCRIPT = Syntax(
    line_comments=("//", "#!"),
    block_comments=C_COMMENTS,
    attributes=re.compile(r"@[\w$.]*"),
    modifiers=frozenset({"export", "default", "declare", "const", "let", "var", "using"}),
)
GO = Syntax(line_comments=("//",), block_comments=C_COMMENTS, head=NO_STATEMENT)
JAVA = Syntax(
    line_comments=("//",),
    block_comments=C_COMMENTS,
    attributes=re.compile(r"@(?!interface\b)[\w.]+"),
    head=NO_STATEMENT,
)
RUST = Syntax(
    line_comments=("//",),
    block_comments=C_COMMENTS,
    nested=True,
    attributes=re.compile(r"#!?(?=\[)"),
)
C = Syntax(
    line_comments=("//",),
    block_comments=C_COMMENTS,
    attributes=re.compile(r"(?=\[\[)|__attribute__\s*(?=\()|__declspec\s*(?=\()"),
    head=NO_STATEMENT,
)
CSHARP = Syntax(
    line_comments=("//",),
    block_comments=C_COMMENTS,
    attributes=re.compile(r"(?=\[[A-Za-z])"),
    head=NO_STATEMENT,
)
PHP = Syntax(
    line_comments=("//", "# "),
    block_comments=C_COMMENTS,
    attributes=re.compile(r"#(?=\[)"),
    modifiers=frozenset({"abstract", "final", "readonly"}),
)
RUBY = Syntax(
    line_comments=("#",),
    block_comments=(("=begin", "=end"),),
    head=re.compile(r"(?:[a-z_]+[ \t]+)?(?:def|class|module)(?:[ \t]+(?:[\w:]*(?:\.|::))+)?"),
)
SHELL = Syntax(line_comments=("#",))
JVM = Syntax(
    line_comments=("//",),
    block_comments=C_COMMENTS,
    nested=True,
    attributes=re.compile(r"@[\w.:]+"),
    head=ONE_LINE,
)
JAVA_PACKAGES = (
    Package("deb-src", "libcommons-lang3-java", "3.12.0-2+deb12u1"),
    Package("deb-src", "guava-libraries", "31.1-1", "guava-31.1/guava"),
    Package("deb-src", "libokhttp-java", "3.13.1-3"),
)

TASKS: dict[str, Task] = {
    "python": Task(
        languages=("python",),
        packages=(standard_library(), Package("pip", "django", "5.2.19", "django-*")),
        oracle_name="ast",
        oracle=lambda root, sources, cache: python_ast.definitions(sources),
        goal=0.9995,
    ),
    "javascript": Task(
        languages=("javascript",),
        packages=(
            Package("npm", "express", "5.3.0", "package"),
            Package("npm", "lodash", "4.18.1", "package"),
            Package("npm", "three", "0.187.0", "package"),
        ),
        oracle_name="acorn 8.19.0",
        oracle=NodeOracle("acorn.js", Package("npm", "acorn", "8.19.0")),
        goal=0.99,
        syntax=ECMASCRIPT,
    ),
    "typescript": Task(
        languages=("typescript", "tsx"),
        packages=(
            Package("npm", "rxjs", "7.8.2", "package"),
            Package("npm", "effect", "3.19.0", "package/src"),
            Package("npm", "zod", "4.6.7", "package"),
            Package("npm", "react-native-paper", "5.15.3", "package"),
        ),
        oracle_name="typescript 5.9.3",
        oracle=NodeOracle("typescript.js", Package("npm", "typescript", "5.9.3")),
        goal=0.99,
        syntax=ECMASCRIPT,
        exclude=("*.d.ts", "*.d.mts", "*.d.cts"),
    ),
    "go": Task(
        languages=("go",),
        packages=(
            Package("deb", "golang-github-gin-gonic-gin-dev", "1.8.1-1"),
            Package("deb", "golang-github-gorilla-mux-dev", "1.8.0-1"),
            Package("deb", "golang-github-spf13-cobra-dev", "1.6.1-1"),
        ),
        oracle_name=CTAGS,
        oracle=CtagsOracle("Go", frozenset({"func", "struct", "interface", "type", "talias"})),
        goal=0.99,
        syntax=GO,
    ),
    "java": Task(
        languages=("java",),
        packages=JAVA_PACKAGES,
        oracle_name=CTAGS,
        oracle=CtagsOracle(
            "Java", frozenset({"class", "interface", "enum", "annotation", "method"})
        ),
        goal=0.99,
        syntax=JAVA,
    ),
    "java-spans": Task(
        languages=("java",),
        packages=JAVA_PACKAGES,
        oracle_name="javac",
        oracle=javac.definitions,
        goal=0.99,
        syntax=JAVA,
    ),
    "rust": Task(
        languages=("rust",),
        packages=(
            Package("deb-src", "rust-ripgrep", "13.0.0-4"),
            Package("deb-src", "rust-serde", "1.0.152-2"),
            Package("deb", "librust-tokio-dev", "1.24.2-1"),
        ),
        oracle_name="syn (astexplorer-syn 2.0.15)",
        oracle=NodeOracle("rust.js", Package("npm", "astexplorer-syn", "2.0.15")),
        goal=0.97,
        syntax=RUST,
    ),
    "c": Task(
        languages=("c",),
        packages=(
            Package("deb-src", "lua5.4", "5.4.4-3+deb12u1"),
            Package("deb-src", "zlib", "1:1.2.13.dfsg-1"),
            Package("deb-src", "jq", "1.6-2.1+deb12u2"),
        ),
        oracle_name=CTAGS,
        oracle=CtagsOracle("C", frozenset({"function", "struct", "union", "enum"})),
        goal=0.97,
        syntax=C,
    ),
    "cpp": Task(
        languages=("cpp",),
        packages=(
            Package("deb-src", "leveldb", "1.23-4"),
            Package("deb-src", "fmtlib", "9.1.0+ds1-2"),
            Package("deb-src", "nlohmann-json3", "3.11.2-2", "json-3.11.2/include"),
        ),
        oracle_name=CTAGS,
        oracle=CtagsOracle(
            "C++",
            frozenset({"function", "class", "struct", "union", "enum"}),
            ctags_errors.cpp,
        ),
        goal=0.97,
        syntax=C,
    ),
    "ruby": Task(
        languages=("ruby",),
        packages=(
            Package("deb-src", "rails", "2:6.1.7.10+dfsg-1~deb12u2", "rails-*/activesupport"),
            Package("deb-src", "rails", "2:6.1.7.10+dfsg-1~deb12u2", "rails-*/activerecord"),
        ),
        oracle_name=CTAGS,
        oracle=CtagsOracle(
            "Ruby", frozenset({"method", "singletonMethod", "class", "module"}), ctags_errors.ruby
        ),
        goal=0.97,
        syntax=RUBY,
    ),
    "csharp": Task(
        languages=("csharp",),
        packages=(
            Package("deb-src", "newtonsoft-json", "6.0.8+dfsg-1.1"),
            Package("deb-src", "nunit", "2.6.4+dfsg-1.1"),
            Package("npm", "com.cysharp.unitask", "2.2.5", "package"),
        ),
        oracle_name=CTAGS,
        oracle=CtagsOracle(
            "C#", frozenset({"class", "interface", "struct", "enum", "method"}), ctags_errors.csharp
        ),
        goal=0.97,
        syntax=CSHARP,
    ),
    "php": Task(
        languages=("php",),
        packages=(
            Package("deb-src", "composer", "2.5.5-1+deb12u5"),
            Package(
                "deb-src", "symfony", "5.4.53+dfsg-0+deb12u1", "symfony-*/src/Symfony/Component"
            ),
        ),
        oracle_name="php-parser 3.7.0",
        oracle=NodeOracle("php.js", Package("npm", "php-parser", "3.7.0")),
        goal=0.97,
        syntax=PHP,
    ),
    "kotlin": Task(
        languages=("kotlin",),
        packages=(
            Package("deb-src", "kotlinx-coroutines", "1.0.1-2"),
            Package("npm", "expo-modules-core", "58.0.7"),
        ),
        oracle_name=f"{CTAGS} (names and first lines)",
        oracle=CtagsOracle(
            "Kotlin", frozenset({"method", "class", "interface", "object"}), ctags_errors.kotlin
        ),
        goal=0.97,
        syntax=JVM,
    ),
    "kotlin-by-hand": Task(
        languages=("kotlin",),
        packages=(
            Package("deb-src", "kotlinx-coroutines", "1.0.1-2"),
            Package("npm", "expo-modules-core", "58.0.7"),
        ),
        oracle_name="definitions checked by hand",
        oracle=HandChecked("kotlin"),
        goal=0.97,
        syntax=JVM,
        include=HandChecked("kotlin").paths,
    ),
    "scala": Task(
        languages=("scala",),
        packages=(Package("deb-src", "scala", "2.11.12-5", "scala-2.11.12/src"),),
        oracle_name="scalameta-parsers 4.14.2",
        oracle=NodeOracle("scala.js", Package("npm", "scalameta-parsers", "4.14.2")),
        goal=0.97,
        syntax=JVM,
    ),
    "swift-by-hand": Task(
        languages=("swift",),
        packages=(
            Package("npm", "@capacitor/ios", "8.5.2"),
            Package("npm", "expo-modules-core", "58.0.7"),
        ),
        oracle_name="definitions checked by hand",
        oracle=HandChecked("swift"),
        goal=0.97,
        syntax=JVM,
        include=HandChecked("swift").paths,
    ),
    "bash": Task(
        languages=("bash",),
        packages=(
            Package("deb-src", "dracut", "059-4"),
            Package("deb-src", "git", "1:2.39.5-0+deb12u3"),
        ),
        oracle_name="mvdan-sh 0.10.1",
        oracle=NodeOracle("bash.js", Package("npm", "mvdan-sh", "0.10.1")),
        goal=0.97,
        syntax=SHELL,
    ),
}
