"""What a function does, from what mining noted about it and from its text.

What the code does not say for certain is not derived: exceptions that are raised through a
variable, caught where they are raised or raised again once caught, a list of calls that holds
`f(x)(y)`, conditions within other conditions, what nested functions do.
"""

from __future__ import annotations

import re

from forge_mcp.raft.kinds import (
    BRACES,
    DEEP,
    FUNCTIONS,
    SCRIPTS,
    USAGE,
    Derived,
    texts,
    unique,
)
from forge_mcp.raft.scan import Code, closing, mask
from forge_mcp.schemas.code_blocks import CodeBlock

# In these a function may be called without parentheses, so a list of calls is never certain.
SILENT_CALLS = frozenset({"ruby", "bash", "scala", "kotlin", "swift"})
OLD_ERRORS = ("error", "timeout", "herror", "gaierror")
MAX_USAGES = 4  # of one block
# Go's `string(x)` turns a value into another type; nothing is called.
GO_TYPES = frozenset(
    {
        *("bool", "byte", "rune", "string", "error", "any", "uintptr", "float32", "float64"),
        *("int", "int8", "int16", "int32", "int64", "complex64", "complex128"),
        *("uint", "uint8", "uint16", "uint32", "uint64"),
    }
)


def exception_name(name: str, language: str) -> str:
    """The name of a type that is raised, '' for a variable or a function.

    Types begin with a capital; Python has a few older ones such as `socket.error`.
    """
    owner, _, last = name.rpartition(".")
    old = language == "python" and owner not in ("", "self", "cls") and last in OLD_ERRORS
    return name if old or re.match(r"[_$]*[A-Z]", last) else ""


def _raised(block: CodeBlock) -> list[str]:
    names = [exception_name(text, block.language) for text in texts(block, "raises")]
    return [name for name in names if name]


def _yields(block: CodeBlock, masked: str) -> bool:
    """Whether a function may be a generator: what it returns is then not what a caller gets."""
    starred = block.language in SCRIPTS and re.match(r"[^(]*\*", block.signature)
    return bool(starred or re.search(r"\byield\b", masked))


def raises(block: CodeBlock) -> Derived:
    """'Which exceptions does it raise?': the types of all its own `raise` statements."""
    if block.block_type not in FUNCTIONS or block.language not in DEEP:
        return
    if block.language == "go":
        yield from _go_errors(block)
        return
    names = _raised(block)
    code = Code(block.source_code, block.language)
    for match in re.finditer(_STATED.get(block.language, _STATED_THROW), code.masked):
        name = next((text for text in match.groups() if text), "")
        # An object that was caught or given may be of any type.
        if name not in names or _variable(name, block, code.masked):
            return
        # What is caught where it is raised is not raised to the caller.
        if code.held(match.start(), frozenset({"try"})):
            return
    yield "", unique(names)


# Every statement that raises; it has a name only where it names a type.
_STATED = {
    "python": r"(?<![.\w])raise\b(?:[ \t]*([A-Za-z_][\w.]*)(?=[^\S\n]*(?:[(;\n]|$|from\b)))?"
}
_STATED_THROW = (
    r"(?<![.\w$])throw\b(?:\s*new\s+([A-Za-z_$][\w.$]*)|\s*([A-Za-z_$][\w.$]*)(?=\s*\())?"
)


def _variable(name: str, block: CodeBlock, masked: str) -> bool:
    """Whether a name in capitals is a parameter, is assigned, or holds what was caught."""
    if block.language == "java":
        return False  # types and variables do not share their names
    given = [
        str(row.get("name") or "").lstrip("*.") for row in block.metadata.get("parameters") or []
    ]
    bound = rf"(?<![\w$.]){re.escape(name)}\s*(?:[,}}\]:][^\n=()]*)?=(?![=>])"
    caught = rf"\b(?:as|for)\s+{re.escape(name)}\s*(?::|in\b)"
    return name in given or bool(re.search(f"{bound}|{caught}", masked))


def _go_errors(block: CodeBlock) -> Derived:
    """Error values with a name of their own (`ErrClosed`, `io.EOF`) that a function returns.

    Certain only where every `return` ends in such a name or in `nil`, and nothing panics.
    """
    returns = str(block.metadata.get("returns") or "")
    code = Code(block.source_code, "go")
    if not re.search(r"(?:^|[\s,(])error\)?$", returns) or "panic(" in code.masked:
        return
    last = [_last_part(text) for text in texts(block, "return_expressions")]
    bare = re.search(r"\breturn[ \t]*(?:\n|\}|$)", code.masked)
    if bare is None and all(text == "nil" or sentinel(text) for text in last):
        yield "", unique([text for text in last if text != "nil"])


def sentinel(text: str) -> bool:
    """Whether a Go expression names an error value: `ErrClosed`, `http.ErrAborted`, `io.EOF`."""
    return bool(re.fullmatch(_SENTINEL, text))


def _last_part(values: str) -> str:
    """The last of several values that are returned, by the last comma in no bracket."""
    masked, depth = mask(values, "go"), 0
    for at in range(len(masked) - 1, -1, -1):
        depth += (masked[at] in ")]}") - (masked[at] in "([{")
        if masked[at] == "," and depth == 0:
            return values[at + 1 :].strip()
    return values.strip()


# Statements that do more than compute: behind them a body's end may never be reached.
_CONTROL = (
    r"\b(?:if|else|elif|for|while|with|try|switch|match|case|return|raise|throw|yield|goto|break"
    r"|continue|def|func|function|class|defer|go)\b"
)
_SENTINEL = r"(?:\w+\.)?(?:[eE]rr[A-Z]\w*|EOF)"
_RAISING = {
    "python": r"\braise\s+(?P<name>[A-Za-z_][\w.]*)",
    "go": r"return\b(?:[^\n;]*,)?[ \t]*(?P<name>" + _SENTINEL + r")[ \t]*;?\s*$|\bpanic\s*\(",
}
_THROWING = r"\bthrow\s+(?:new\s+)?(?P<name>[A-Za-z_$][\w.$]*)\s*[(;]"


def guard(block: CodeBlock) -> Derived:
    """'When does it raise X?': an `if` whose body ends in the only raise of X."""
    if block.block_type not in FUNCTIONS or block.language not in DEEP:
        return
    code = Code(block.source_code, block.language)
    pattern = _RAISING.get(block.language, _THROWING)
    for branch in code.branches():
        match = re.search(pattern, branch.masked)
        if match is None or re.search(_CONTROL, branch.masked[: match.start()]):
            continue
        name = match.group("name") or "panic"
        if name != "panic" and block.language != "go" and not exception_name(name, block.language):
            continue
        if not _raised_once(code.masked, name, block.language):
            continue
        yield name, (branch.condition,)


def _raised_once(masked: str, name: str, language: str) -> bool:
    if language == "go":
        escaped = r"\bpanic\s*\(" if name == "panic" else rf"\b{re.escape(name)}\b"
        return len(re.findall(escaped, masked)) == 1
    word = r"\b(?:raise|throw)\s+(?:new\s+)?"
    return len(re.findall(rf"{word}{re.escape(name)}(?![\w.$])", masked)) == 1


def returns(block: CodeBlock) -> Derived:
    """'What does it return?': the expressions of all its own `return` statements."""
    if block.block_type in FUNCTIONS and block.language in DEEP:
        masked = mask(block.source_code, block.language)
        if not _yields(block, masked):
            yield "", unique(texts(block, "return_expressions"))


def returns_when(block: CodeBlock) -> Derived:
    """'What does it return when …?': an `if` that holds one return statement and nothing else."""
    if block.block_type not in FUNCTIONS or block.language not in DEEP:
        return
    code = Code(block.source_code, block.language)
    if _yields(block, code.masked):
        return
    found = list(code.branches())
    conditions = [branch.condition for branch in found]
    for branch in found:
        text = branch.masked.strip()
        if not re.match(r"return\b", text) or conditions.count(branch.condition) > 1:
            continue
        begin = branch.masked.index("return") + len("return")
        value = branch.body[begin : len(branch.masked.rstrip())].strip().removesuffix(";").rstrip()
        if value and ";" not in text.removesuffix(";"):
            yield branch.condition, (value,)


def calls(block: CodeBlock) -> Derived:
    """'Which functions does it call?': the names of all that it calls."""
    if block.block_type not in FUNCTIONS or block.language in SILENT_CALLS:
        return
    raised = set(_raised(block))  # raising an exception is not called a call
    ignored = _NOT_CALLED[block.language]
    stated = [text for text in texts(block, "calls") if text not in raised | ignored]
    body = mask(block.source_code, block.language)[_body_start(block) :]
    if block.language == "python":
        body = body.replace("super()", "super")
    if re.search(_CHAINED, body) or re.search(_NESTED, body, re.MULTILINE):
        return
    if not all(re.fullmatch(_DOTTED, text) for text in stated):
        return
    if block.language in BRACES and re.search(r"(?<![.\w])(?:super|this)\s*\(|\.super\.", body):
        return  # another constructor, which has no name of its own
    if re.search(r"\bnew\s+[\w.$]+(?![\w.$]|\s*[(<\[])", body):
        return  # `new Foo` without parentheses calls too
    if block.language == "python" and re.search(r"=\s*[\w.]+\(", block.signature):
        return  # called when the function is defined, not by it
    if any(name not in raised for name in re.findall(r"\bthrow\s+new\s+([\w.$]+)", body)):
        return  # a function without a name in it throws
    # Whatever stands before a parenthesis must be among them.
    found = {re.sub(r"\s+", "", name) for name in _CALLED.findall(body)} - ignored
    if found == {text.replace("super()", "super") for text in [*stated, *raised]}:
        yield "", unique(stated)


_DOTTED = r"(?:super\(\)\.)?[\w$]+(?:(?:\.|::|->)[\w$]+)*"
_CALLED = re.compile(
    r"(?<![\w$.#])((?:[\w$]+\s*(?:\??\.|::|->)\s*)*[\w$]+!?)\s*(?:::)?(?:<[\w\s,.<>?&|:\[\]]*>)?\s*\("
)
_CURLY = "if else for while do switch case catch return throw new super this "
_NOT_CALLED = {
    language: frozenset(words.split())
    for language, words in {
        "python": "if elif else for while return and or not is in with lambda assert del from"
        " import yield await async except raise super",
        "javascript": _CURLY + "function typeof instanceof void delete await yield async of in as",
        "java": _CURLY + "synchronized try assert yield instanceof throws",
        "go": "if else for switch case return func range defer go select",
        "rust": "if else for while return fn match let unsafe where move pub loop in as mut ref",
        "c": "if else for while do switch case return sizeof alignof typeof __attribute__ defined",
        "cpp": _CURLY + "sizeof alignof typeof decltype typeid noexcept static_assert operator"
        " delete defined alignas __attribute__ requires",
        "csharp": _CURLY + "lock using fixed checked unchecked nameof default typeof sizeof foreach"
        " when base is as in out ref await async stackalloc",
        "php": _CURLY + "function fn array list isset empty unset echo print exit die foreach"
        " elseif use match include require include_once require_once declare and or xor yield"
        " clone static",
    }.items()
}
_NOT_CALLED["go"] |= GO_TYPES
_NOT_CALLED["typescript"] = _NOT_CALLED["tsx"] = _NOT_CALLED["javascript"]
# A call on what another call gave, and a call of it.
_CHAINED = r"[)\]}\"`](?:\s*(?:\??\.|->|::)\s*[\w$]+)+\s*\(|[)\]]\s*\("
# Functions and classes within a function: what they call is neither clearly called by the outer
# one nor clearly not.
_NESTED = (
    r"^\s*(?:async\s+)?(?:def|class)\s|\bfunction\s*\*?\s*[\w$]+\s*\(|\bclass\s+\w"
    r"|[\w$\"]\s*[=:]\s*(?:async\s*)?(?:function\b|\([^()]*\)(?:\s*:[^=;{}]+)?\s*=>|[\w$]+\s*=>)"
    r"|\bnew\s+[\w.<>?, \[\]]+\([^;]*?\)\s*\{|\bfn\s+\w"
)


def _body_start(block: CodeBlock) -> int:
    """Where a function's header ends; 0 where it cannot be found."""
    at = block.source_code.find(block.signature)
    return at + len(block.signature) if at >= 0 else 0


def usage(block: CodeBlock) -> Derived:
    """How a callee is called: the whole call, where it is called once and on one line."""
    if block.block_type not in FUNCTIONS or block.language not in DEEP:
        return
    masked = mask(block.source_code, block.language)
    body, raised = _body_start(block), set(_raised(block))
    found = 0
    for callee in unique(texts(block, "calls")):
        last = callee.rpartition(".")[2]
        if found == MAX_USAGES:
            return
        if callee in raised or not re.fullmatch(r"[\w$]+(?:\.[\w$]+)*", callee):
            continue
        if last in _NO_USAGE or (block.language == "go" and callee in GO_TYPES):
            continue
        # Not even in a comment or in a string, which may be a template with code in it.
        spots = [
            m.start() for m in re.finditer(rf"(?<![\w$]){re.escape(last)}\s*\(", block.source_code)
        ]
        start = spots[0] + len(last) - len(callee) if len(spots) == 1 else -1
        if start < body or masked[start : start + len(callee)] != callee:
            continue
        end = closing(masked, masked.index("(", start + len(callee)))
        new = re.search(r"\bnew\s+$", masked[max(0, start - 12) : start])
        begin = start - len(new.group()) if new else start
        text = block.source_code[begin : end + 1]
        if end < 0 or len(text) not in USAGE or re.search(r"\n|\(\s*\)$", text):
            continue
        if re.search(r"[.\w$>]$|\b(?:raise|throw)\s+$", masked[max(0, begin - 10) : begin]):
            continue
        if new and masked[end + 1 :].lstrip()[:1] == "{":  # an anonymous class
            continue
        found += 1
        yield callee, (text,)


_NO_USAGE = frozenset({"new", "super", "import", "func", "function", "require", "panic"})
