"""Facts that one block gives, from what mining noted about it and from its text.

Nothing here is trusted: `forge_mcp.raft.verify` derives every fact a second time, from a parse of
the code. What the code does not say for certain is not derived at all: a list of calls that holds
`f(x)(y)`, exceptions that are raised through a variable, conditions within other conditions.
A heading such as "Args:" is no purpose.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from forge_mcp.raft import behaviour
from forge_mcp.raft.kinds import (
    BRACES,
    DEEP,
    FUNCTIONS,
    KINDS,
    MAX_CODE,
    MAX_VALUE,
    SCRIPTS,
    Derived,
    location,
    make_fact,
    texts,
    unique,
)
from forge_mcp.raft.scan import mask
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import Fact

ABBREVIATED = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|resp|approx|incl|Mr|Dr|No|a\.k\.a)|\b[A-Z])\.$"
)


# A docstring that begins with a section: "Args:", "**Returns** (int) - x", "Note" on a line of its
# own, an underlined title, "TODO", "Deprecated", ":param x:".
_SECTION = (
    r"(?:(?:other|keyword|optional|named|input|output) )?(?:parameter|param|argument|arg)|kwarg"
    r"|return(?: value)?|yield|raise|throw|exception|error|warn|warning|note|nb|example(?: usage)?"
    r"|usage(?: example)?|attribute|attr|property|properties|field|member|method|input|output"
    r"|reference|see|todo|option|important|tip|hint|caution|description|summary|synopsis"
)
_HEADING = re.compile(
    r"[^\w\n]*(?:$"
    r"|(?-i:TODO|FIXME|XXX)\b|(?:deprecated|see[^\w\n]+also|params?)\b"
    rf"|(?:{_SECTION})s?[*_` \t]*(?:\([^()\n]*\)[*_` \t]*)?(?::|[-–—]+(?:\s|$)|[^\w(),\n]*$))"
    r"|[^\n]*\n[ \t]*([-=~^*_#\"'`+.])\1{2,}[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)


def derive(block: CodeBlock) -> list[Fact]:
    """Every fact of one document that a block gives, in the order of `KINDS`."""
    return [fact for kind in KINDS for fact in derive_kind(block, kind)]


def derive_kind(block: CodeBlock, kind: str) -> list[Fact]:
    """The facts of one kind, no two with the same subject; none for what is not in `KINDS`."""
    if kind not in _DERIVE:
        return []
    facts: dict[str, Fact | None] = {}
    for subject, items in _DERIVE[kind](block):
        facts[subject] = None if subject in facts else make_fact(kind, block, items, subject)
    return [fact for fact in facts.values() if fact is not None]


def one_line(text: str) -> str:
    """Code on one line: white space collapsed, none inside brackets' ends, no trailing comma."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"([(\[{]) ", r"\1", text)
    return re.sub(r",? ([)\]}])", r"\1", text)


def first_sentence(docstring: str) -> str:
    """The first sentence of a cleaned docstring on one line; '' where it is none.

    A sentence ends at `.`, `!` or `?` before a capital or the end, but not in `e.g. X`; it has at
    least three words and 15 characters, and begins with a letter or a quoted word. Behind a
    heading such as "Returns:" there is none.
    """
    if _HEADING.match(docstring.strip()):
        return ""
    paragraph = re.split(r"\n\s*\n|\n\s*[@:]\w", docstring.strip(), maxsplit=1)[0]
    text = " ".join(paragraph.split())
    sentence = text
    for match in re.finditer(r"[.!?](?=\s+[A-Z`\"'(]|$)", text):
        if not ABBREVIATED.search(text[: match.end()]):
            sentence = text[: match.end()]
            break
    prose = len(sentence.split()) >= 3 and 15 <= len(sentence) <= MAX_VALUE
    return sentence if prose and re.match(r"[A-Za-z`\"'*(]", sentence) else ""


def imported_modules(statement: str) -> list[str]:
    """'a.b' and 'c' of 'import a.b, c as d', '.x' of 'from .x import y', 'fs' of "… from 'fs'"."""
    text = re.sub(r" (?:with|assert) ?\{[^{}]*\}", "", " ".join(statement.split()))
    if match := re.match(r"from (\.*[\w.]*) import\b", text):
        return [match.group(1)]
    if quoted := re.findall(r"""["'`]([^"'`]+)["'`]""", text):
        return quoted
    text = re.sub(r"^import (?:static )?", "", text).rstrip("; ")
    return [part.split(" as ")[0].strip() for part in text.split(",")]


# -- what a definition declares ---------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """One parameter as mining noted it; texts are verbatim, '' where there is none."""

    name: str
    annotation: str
    default: str
    variadic: bool


def parameters(block: CodeBlock) -> list[Parameter]:
    """The parameters that a caller gives; mining leaves the receiver of a method out."""
    rows = [
        Parameter(
            str(row.get("name") or "").lstrip("*."),
            str(row.get("annotation") or "").strip(),
            str(row.get("default") or "").strip(),
            row.get("kind") == "var_positional",
        )
        for row in block.metadata.get("parameters") or []
    ]
    return [row for row in rows if row.name and row.name not in ("/", "this")]


def _signature(block: CodeBlock) -> Derived:
    if block.block_type not in FUNCTIONS or not block.signature:
        return
    text = block.signature
    if block.language == "python":
        text = re.sub(r"#[^\n]*\n", "\n", text)  # comments between parameters
    elif "//" in text or "/*" in text:
        return
    if not _plain_header(block) or text.count("(") != text.count(")"):
        return
    yield "", (one_line(text).removesuffix(":").rstrip(" {,"),)


def _plain_header(block: CodeBlock) -> bool:
    """Not a macro, a property, an indexer, a function that is bound to a variable."""
    other = r"#|[^(]*$|[^(]*\[|[^(]*=\s*(?:static\s+)?(?:fn|fun|function)\b"
    # Function pointers, Ruby's `*`, C's `...`.
    nameless = r"\(\s*\*|[(,]\s*(?:[*&]+|\.\.\.)\s*[,)]"
    return block.language in DEEP or not (
        re.match(other, block.signature) or re.search(nameless, block.signature)
    )


def _parameters(block: CodeBlock) -> Derived:
    names = [row.name for row in parameters(block)]
    plain = all(re.fullmatch(r"[^\W\d][\w$]*|\$[\w$]*", name) and name != "_" for name in names)
    if block.block_type in FUNCTIONS and plain and _plain_header(block):
        yield "", tuple(names)


def _default(block: CodeBlock) -> Derived:
    for row in parameters(block) if block.language in DEEP else ():
        if row.default:
            yield row.name, (row.default,)


def _annotation(block: CodeBlock) -> Derived:
    if block.language not in DEEP:
        return
    for row in parameters(block):
        if row.variadic and block.language in ("go", "java"):
            continue  # mining notes the type of one of them
        if block.language == "java" and re.search(rf"\b{row.name}\s*\[", block.signature):
            continue  # `int rows[]` says half of its type behind the name
        if row.annotation:
            yield row.name, (row.annotation,)
    returns = str(block.metadata.get("returns") or "").strip()
    if returns and block.block_type in FUNCTIONS:
        yield "return", (returns,)


def _decorators(block: CodeBlock) -> Derived:
    if block.language in DEEP:
        yield "", tuple(f"@{text.removeprefix('@')}" for text in texts(block, "decorators"))


def _bases(block: CodeBlock) -> Derived:
    if block.block_type == "class" and block.language in DEEP:
        yield "", tuple(text for text in texts(block, "bases") if "=" not in text)


def _methods(block: CodeBlock) -> Derived:
    if block.block_type == "class" and block.language in DEEP:
        names = unique(texts(block, "methods"))
        if block.language in BRACES:
            # Those of anonymous classes in it are none of its own.
            own = _outer_level(mask(block.source_code, block.language))
            names = tuple(
                n for n in names if re.search(rf"(?<![\w$]){re.escape(n)}\s*[(<=:?!]", own)
            )
        yield "", names


def _outer_level(masked: str) -> str:
    """What stands in a class body itself, and not in the braces within it."""
    parts, depth, at = [], 0, 0
    for match in re.finditer(r"[{}]", masked):
        if depth == 1:
            parts.append(masked[at : match.start()])
        depth += 1 if match.group() == "{" else -1
        at = match.end()
    return "{}".join(parts)


def _imports(block: CodeBlock) -> Derived:
    """Names of imported modules, from the import statements that mining noted."""
    if block.block_type == "module" and block.language in DEEP:
        stated = texts(block, "imports")
        code = mask(block.source_code, block.language)
        required = len(re.findall(r"\brequire\s*\(", code))
        if block.language in SCRIPTS and required != sum("require" in text for text in stated):
            return  # one is required within an expression
        yield "", unique([name for text in stated for name in imported_modules(text)])


def _constant(block: CodeBlock) -> Derived:
    if block.language not in DEEP:
        return
    masked = mask(block.source_code, block.language)
    for row in block.metadata.get("constants") or []:
        again = re.findall(
            rf"^[ \t]*{re.escape(str(row['name']))}\b[^\n=]*=(?!=)", masked, re.MULTILINE
        )
        if row.get("value") not in ("", "iota") and len(again) < 2:
            yield str(row["name"]), (str(row["value"]).strip(),)
    if block.block_type == "class":
        yield from _class_constants(block)


def _class_constants(block: CodeBlock) -> Derived:
    """Python's upper-case names in a class body, and Java's `static final` fields."""
    masked = mask(block.source_code, block.language)
    if block.language == "python":
        indents = re.findall(r"^([ \t]+)(?:async def|def|class|[A-Za-z_])\b", masked, re.MULTILINE)
        inner = min(indents, key=len, default="")
        pattern = rf"^{inner}([A-Z][A-Z0-9_]*)(?:[ \t]*:[^=\n]+)?[ \t]*=[ \t]*(?=[^=\s])(.*)$"
    elif block.language == "java":
        modifier = r"(?:public|protected|private|static|final)"
        pattern = (
            r"^[ \t]*(?=[^\n=;(]*\bstatic\b)(?=[^\n=;(]*\bfinal\b)"
            rf"(?:{modifier}\b\s+){{2,}}[\w.<>\[\], ?]+?[ \t]([A-Za-z_]\w*)[ \t]*=\s*([^;]*);"
        )
    else:
        return
    for match in re.finditer(pattern, masked, re.MULTILINE):
        if block.language == "java" and _depth(masked, match.start(1)) != 1:
            continue
        value = block.source_code[match.start(2) : match.end(2)]
        if block.language == "python":
            value = value[: len(match.group(2).rstrip())]
        held = match.group(2)
        several = block.language == "java" and re.search(r",\s*\w+\s*=", held)
        if not several and all(held.count(a) == held.count(b) for a, b in ("()", "[]", "{}")):
            yield match.group(1), (value.strip(),)


def _depth(masked: str, offset: int) -> int:
    return masked.count("{", 0, offset) - masked.count("}", 0, offset)


def _location(block: CodeBlock) -> Derived:
    if block.block_type != "module" and "cell" not in block.metadata:
        yield "", (location(block),)


def _purpose(block: CodeBlock) -> Derived:
    sentence = first_sentence(block.docstring)
    if sentence:
        yield "", (sentence,)


def _code(block: CodeBlock) -> Derived:
    """The whole definition; the subject is its hash, so that an edited answer is known."""
    if block.block_type not in FUNCTIONS or len(block.source_code) > MAX_CODE:
        return
    if not block.metadata.get("secrets_redacted"):
        yield block.content_hash, (block.source_code,)


_DERIVE: dict[str, Callable[[CodeBlock], Derived]] = {
    "signature": _signature,
    "parameters": _parameters,
    "default": _default,
    "annotation": _annotation,
    "decorators": _decorators,
    "raises": behaviour.raises,
    "guard": behaviour.guard,
    "returns": behaviour.returns,
    "returns_when": behaviour.returns_when,
    "calls": behaviour.calls,
    "bases": _bases,
    "methods": _methods,
    "imports": _imports,
    "constant": _constant,
    "location": _location,
    "purpose": _purpose,
    "usage": behaviour.usage,
    "code": _code,
}
