"""The closed set of fact kinds, and how each is derived from what mining noted about a block.

A fact is one true statement about one definition: its kind, which part of the block it is about
(`subject`: a parameter, an exception, a callee), and its value. The value is also the final
answer's text: code items in backticks joined by commas, or one sentence for `purpose`.

Nothing here is trusted: `forge_mcp.raft.verify` derives every fact a second time, from the code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import Fact

MAX_VALUE = 180  # characters of a value

# kind: the most items that one answer may list
KINDS: dict[str, int] = {
    "signature": 1,
    "parameters": 8,
    "default": 1,
    "annotation": 1,
    "decorators": 4,
    "raises": 5,
    "guard": 1,
    "returns": 3,
    "calls": 6,
    "bases": 4,
    "methods": 8,
    "imports": 6,
    "constant": 1,
    "location": 1,
    "purpose": 1,
}
# Facts that only two documents together give: the block that leads there, and the one that says.
RELATED_KINDS = ("callee_location", "callee_signature", "callee_raises", "base_location")

Items = tuple[str, ...]


def fact_value(kind: str, items: Items) -> str:
    """The text of a value: code items in backticks, a purpose as it is."""
    return items[0] if kind == "purpose" else ", ".join(f"`{item}`" for item in items)


def value_items(fact: Fact) -> Items:
    """The items of a fact's value; inverse of `fact_value`."""
    return (fact.value,) if fact.kind == "purpose" else tuple(re.findall(r"`([^`]*)`", fact.value))


def make_fact(kind: str, block: CodeBlock, items: Items, subject: str = "") -> Fact | None:
    """A fact, or None where the items do not fit into one short line."""
    limit = KINDS[kind.replace("callee_", "").replace("base_", "")]
    value = fact_value(kind, items)
    plain = kind == "purpose" or not any("`" in item for item in items)
    if not items or len(items) > limit or len(value) > MAX_VALUE or "\n" in value or not plain:
        return None
    if not all(item.strip() for item in items):
        return None
    return Fact(kind=kind, block=block.id, value=value, subject=subject)


def derive(block: CodeBlock) -> list[Fact]:
    """Every fact of one document that the block's metadata gives, in the order of `KINDS`."""
    found = []
    for kind in KINDS:
        for subject, items in _DERIVE[kind](block):
            fact = make_fact(kind, block, items, subject)
            if fact is not None:
                found.append(fact)
    return found


def derive_kind(block: CodeBlock, kind: str) -> list[Fact]:
    """The facts of one kind."""
    facts = (make_fact(kind, block, items, subject) for subject, items in _DERIVE[kind](block))
    return [fact for fact in facts if fact is not None]


def location(block: CodeBlock) -> str:
    """Where a block stands, e.g. 'src/app.py:10-24'."""
    return f"{block.path}:{block.start_line}-{block.end_line}"


def one_line(text: str) -> str:
    """Code on one line: white space collapsed, none inside brackets' ends, no trailing comma."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"([(\[{]) ", r"\1", text)
    return re.sub(r",? ([)\]}])", r"\1", text)


def first_sentence(docstring: str) -> str:
    """The first sentence of a cleaned docstring on one line; '' where it is none."""
    paragraph = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
    text = " ".join(paragraph.split())
    match = re.match(r"(.+?[.!?])(?=\s+[A-Z`\"'(]|$)", text)
    sentence = match.group(1) if match else text
    prose = len(sentence.split()) >= 3 and 15 <= len(sentence) <= MAX_VALUE
    return sentence if prose and re.match(r"[A-Za-z`\"'*(]", sentence) else ""


def exception_name(raised: str) -> str:
    """'ValueError' of 'ValueError("no")' or 'raise ValueError'; '' for what is no type's name."""
    match = re.match(r"(?:raise\s+|throw\s+)?(?:new\s+)?([A-Za-z_][\w.]*)", raised.strip())
    if match is None:
        return ""
    name = match.group(1)
    last = name.rsplit(".", 1)[-1]
    named = re.match(r"_*[A-Z]", last) or last.endswith(("error", "timeout", "Error"))
    return name if named else ""


def imported_modules(statement: str) -> list[str]:
    """'a.b' and 'c' of 'import a.b, c as d', '.x' of 'from .x import y', 'fs' of "… from 'fs'"."""
    text = " ".join(statement.split())
    if match := re.match(r"from (\.*[\w.]*) import\b", text):
        return [match.group(1)]
    if quoted := re.findall(r"""["'`]([^"'`]+)["'`]""", text):
        return quoted
    text = re.sub(r"^import (?:static )?", "", text).rstrip("; ")
    return [part.split(" as ")[0].strip() for part in text.split(",")]


# -- one function a kind: (subject, items) pairs ----------------------------------------------

Derived = Iterator[tuple[str, Items]]


def _texts(block: CodeBlock, key: str) -> list[str]:
    return [str(text).strip() for text in block.metadata.get(key) or []]


def _unique(texts: Sequence[str]) -> Items:
    return tuple(dict.fromkeys(texts))


@dataclass(frozen=True)
class Parameter:
    """One parameter as mining noted it; texts are verbatim, '' where there is none."""

    name: str
    annotation: str
    default: str


def parameters(block: CodeBlock) -> list[Parameter]:
    """The parameters that a caller gives; mining leaves the receiver of a method out."""
    rows = [
        Parameter(
            str(row.get("name") or ""),
            str(row.get("annotation") or "").strip(),
            str(row.get("default") or "").strip(),
        )
        for row in block.metadata.get("parameters") or []
    ]
    return [row for row in rows if row.name and row.name not in ("*", "/")]


def _signature(block: CodeBlock) -> Derived:
    if block.block_type in ("function", "method") and block.signature:
        text = re.sub(r"#[^\n]*\n", "\n", block.signature)  # comments between parameters
        yield "", (one_line(text).removesuffix(":").rstrip(" {"),)


def _parameters(block: CodeBlock) -> Derived:
    if block.block_type in ("function", "method"):
        yield "", tuple(row.name.lstrip("*.") for row in parameters(block))


def _default(block: CodeBlock) -> Derived:
    for row in parameters(block):
        if row.default:
            yield row.name.lstrip("*."), (row.default,)


def _annotation(block: CodeBlock) -> Derived:
    for row in parameters(block):
        if row.annotation:
            yield row.name.lstrip("*."), (row.annotation,)
    returns = str(block.metadata.get("returns") or "").strip()
    if returns and block.block_type in ("function", "method"):
        yield "return", (returns,)


def _decorators(block: CodeBlock) -> Derived:
    texts = [text if text.startswith("@") else f"@{text}" for text in _texts(block, "decorators")]
    yield "", tuple(texts)


def _raises(block: CodeBlock) -> Derived:
    if block.block_type in ("function", "method"):
        names = [exception_name(text) for text in _texts(block, "raises")]
        yield "", _unique([name for name in names if name])


def _guard(block: CodeBlock) -> Derived:
    """'When does it raise X?': an `if` whose whole body starts with that raise (Python)."""
    if block.language != "python" or block.block_type not in ("function", "method"):
        return
    pattern = r"^[ \t]*if (.+):[ \t]*\n[ \t]+raise ([A-Za-z_][\w.]*)\b"
    found = re.findall(pattern, block.source_code, flags=re.MULTILINE)
    for condition, raised in found:
        if exception_name(raised) and sum(other == raised for _, other in found) == 1:
            yield raised, (condition,)


def _returns(block: CodeBlock) -> Derived:
    if block.block_type in ("function", "method"):
        yield "", _unique(_texts(block, "return_expressions"))


def _calls(block: CodeBlock) -> Derived:
    if block.block_type in ("function", "method"):
        raised = set(_texts(block, "raises"))  # raising an exception is not called a call
        texts = tuple(text for text in _unique(_texts(block, "calls")) if text not in raised)
        if all(re.fullmatch(r"[\w$]+(?:\.[\w$]+)*", text) for text in texts):
            yield "", texts


def _bases(block: CodeBlock) -> Derived:
    if block.block_type == "class":
        yield "", tuple(text for text in _texts(block, "bases") if "=" not in text)


def _methods(block: CodeBlock) -> Derived:
    if block.block_type == "class":
        yield "", _unique(_texts(block, "methods"))


def _imports(block: CodeBlock) -> Derived:
    """Names of imported modules, from the import statements that mining noted."""
    if block.block_type == "module":
        names = [name for text in _texts(block, "imports") for name in imported_modules(text)]
        yield "", _unique(names)


def _constant(block: CodeBlock) -> Derived:
    rows = [row for row in block.metadata.get("constants") or [] if row.get("value")]
    for row in rows:
        if sum(other["name"] == row["name"] for other in rows) == 1:
            yield str(row["name"]), (str(row["value"]).strip(),)


def _location(block: CodeBlock) -> Derived:
    if block.block_type != "module":
        yield "", (location(block),)


def _purpose(block: CodeBlock) -> Derived:
    sentence = first_sentence(block.docstring)
    if sentence:
        yield "", (sentence,)


_DERIVE: dict[str, Callable[[CodeBlock], Derived]] = {
    "signature": _signature,
    "parameters": _parameters,
    "default": _default,
    "annotation": _annotation,
    "decorators": _decorators,
    "raises": _raises,
    "guard": _guard,
    "returns": _returns,
    "calls": _calls,
    "bases": _bases,
    "methods": _methods,
    "imports": _imports,
    "constant": _constant,
    "location": _location,
    "purpose": _purpose,
}
