"""What universal-ctags 5.9 gets wrong, as rules; each kind was looked at in the sources.

ctags scans, it does not parse. A rule takes a tag out, corrects its name, or drops an end line
that contradicts the source; it never invents a definition, and never looks at what the miner found.
"""

from __future__ import annotations

import re
from typing import Any

Tag = dict[str, Any]

HEREDOC = re.compile(r"""<<(?:[~-](["'`]?)(\w+)\1|(["'`]?)([A-Z]\w*)\3)""")
SINGLETON = re.compile(r"def\s+(\w+)\.([\w?!=]+)")
GOOGLE_TEST = re.compile(r"^(?:TYPED_)?TEST(?:_[FP])?\(\s*\w+,\s*(\w+)\)")


def ruby(tags: list[Tag], lines: list[str]) -> list[Tag]:
    """Heredocs are read as code, receivers taken for names, and ends counted wrongly.

    - `module_eval <<-RUBY … def _run_#{name}_callbacks … RUBY` (activesupport, callbacks.rb:823)
    - `def topic.title() "b" end` is named `topic` (activerecord, attribute_methods_test.rb:428)
    - a `while` or `if` that is a modifier, a `class` in `options[:class]` or a `do` may open a
      block that never ends; from there on every end of the file is wrong (activesupport,
      attribute.rb:85). An end is believed where its line is the first `end` that stands as deep
      as the definition.
    """
    quoted = _heredoc_lines(lines)
    kept = []
    for tag in tags:
        line = lines[tag["line"] - 1]
        if tag["line"] in quoted:
            continue
        singleton = SINGLETON.search(line)
        if singleton and tag["name"] == singleton[1]:
            tag = tag | {"name": singleton[2]}
        kept.append(_with_believed_end(tag, lines, "end"))
    return kept


def _heredoc_lines(lines: list[str]) -> set[int]:
    """Numbers of the lines that are text of a heredoc."""
    inside: set[int] = set()
    at = 0
    while at < len(lines):
        body = at + 1
        for found in HEREDOC.finditer(lines[at]):
            word = found[2] or found[4]
            end = next((i for i in range(body, len(lines)) if lines[i].strip() == word), None)
            if end is not None:
                inside.update(range(body + 1, end + 2))
                body = end + 1
        at = body
    return inside


def _with_believed_end(tag: Tag, lines: list[str], closing: str) -> Tag:
    """The tag, without its end where that is not the first `closing` as deep as its first line."""
    line = lines[tag["line"] - 1]
    if tag.get("end") == tag["line"]:
        return tag
    indent = line[: len(line) - len(line.lstrip())]
    close = re.compile(rf"{re.escape(indent)}{re.escape(closing)}(?!\w)")
    first = next((i + 1 for i in range(tag["line"], len(lines)) if close.match(lines[i])), None)
    if tag.get("end") == first:
        return tag
    return {key: value for key, value in tag.items() if key != "end"}


def cpp(tags: list[Tag], lines: list[str]) -> list[Tag]:
    """`TEST_F(Suite, Name) {` is a test of the name Name (leveldb, db_test.cc)."""
    named = []
    for tag in tags:
        test = GOOGLE_TEST.search(lines[tag["line"] - 1])
        named.append(tag | {"name": test[1]} if test else tag)
    return named


def csharp(tags: list[Tag], lines: list[str]) -> list[Tag]:
    """Type constraints are taken for types, `@"c:\\"` for a string without end.

    - `class A<T> where T : class, IKey` has a class `T` (Json.NET, JsonSerializerTest.cs:3702)
    - behind `where T : struct {` calls are taken for methods (Json.NET, LinqBridge.cs:1327)
    - `void IDisposable.Dispose()` has the name `IDisposable.Dispose`, an operator lacks its
      `implicit` or `explicit`: here the name is that of the method, without its interface
    - behind a verbatim string with a backslash the braces are counted wrongly (Json.NET,
      JsonSerializerTest.cs:1730), and `#if … #else` opens a brace twice
    """
    kept = []
    for tag in tags:
        line, name = lines[tag["line"] - 1], tag["name"]
        if re.search(rf"\bwhere\s+{re.escape(name)}\s*:", line) or _is_call(line, name):
            continue
        conversion = re.search(rf"(implicit|explicit)\s+{re.escape(name)}", line)
        name = f"{conversion[1]} {name}" if conversion else re.sub(r"^[\w.<>]+\.", "", name)
        kept.append(_with_believed_end(tag | {"name": name}, lines, "}"))
    return kept


def _is_call(line: str, name: str) -> bool:
    """Whether a line is a statement that calls `name`: no type stands before the name."""
    before = line.partition(name)[0].strip()
    return line.rstrip().endswith(";") and (not before or before.endswith((" new", ")")))


def kotlin(tags: list[Tag], lines: list[str]) -> list[Tag]:
    """Lambdas and their parameters are reported as methods."""
    return [
        tag
        for tag in tags
        if tag["kind"] != "method"
        or re.search(rf"\bfun\b.*(?<!\w){re.escape(tag['name'])}`?\s*\(", lines[tag["line"] - 1])
    ]


def none(tags: list[Tag], lines: list[str]) -> list[Tag]:
    """Every tag is taken as it is."""
    return tags
