"""Facts of languages without deep facts, held against the text; and what documentation says.

Everything that is stated must stand in the code, comments and strings left out, in the form that
its kind prescribes, and a list must name all that has this form.
"""

from __future__ import annotations

import re
from functools import lru_cache

from forge_mcp.raft.kinds import MAX_VALUE, value_items
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import Fact

_SHORT = re.compile(r"(?:^|\W)(?:[A-Z]|e\.g|i\.e|etc|vs|cf|resp|approx|incl|Mr|Dr|No|a\.k\.a)\.$")
_HASH = frozenset({"python", "ruby", "bash"})
# Words before a parenthesis that call nothing.
_USUAL = "if else for while do switch case catch return throw new super this "
_NO_CALLS = {
    language: frozenset(words.split())
    for language, words in {
        "rust": "if else for while return fn match let unsafe where move pub loop in as mut ref",
        "c": "if else for while do switch case return sizeof alignof typeof __attribute__ defined",
        "cpp": _USUAL + "sizeof alignof typeof decltype typeid noexcept static_assert operator"
        " delete defined alignas __attribute__ requires",
        "csharp": _USUAL + "lock using fixed checked unchecked nameof default typeof sizeof foreach"
        " when base is as in out ref await async stackalloc",
        "php": _USUAL + "function fn array list isset empty unset echo print exit die foreach"
        " elseif use match include require include_once require_once declare and or xor yield"
        " clone static",
    }.items()
}
_LITERALS = r'"(?:\\.|[^"\\\n])*"|' + r"'(?:\\.|[^'\\\n]){1,2}'"


@lru_cache(maxsize=256)
def _code(source: str, language: str) -> str:
    """The code without comments; strings become `""`."""
    comment = r"#(?!\[)[^\n]*" if language in _HASH else r"//[^\n]*|/\*.*?\*/"
    if language == "php":
        comment = r"//[^\n]*|/\*.*?\*/|#(?!\[)[^\n]*"
    quoted = (
        _LITERALS
        if language not in ("php", *_HASH)
        else (r'"(?:\\.|[^"\\])*"|' + r"'(?:\\.|[^'\\])*'")
    )
    return re.sub(
        rf"({comment})|{quoted}", lambda m: " " if m[1] else '""', source, flags=re.DOTALL
    )


def _squeeze(code: str) -> str:
    """Code without white space and trailing commas, so that line breaks do not matter."""
    return re.sub(r",(?=[)\]}])", "", re.sub(r"\s+", "", code))


def _declaration(code: str) -> str:
    """Code from its declaration on: attributes and annotations before it taken off."""
    while match := re.match(r"\s*(?:#\[|\[|@[\w.:]+\s*\(?)", code):
        at = match.end() - 1
        if code[at] in "([":
            depth = 0
            while at < len(code):
                depth += (code[at] in "([") - (code[at] in ")]")
                at += 1
                if depth == 0:
                    break
            code = code[at:]
        else:
            code = code[match.end() :]
    return code.strip()


def states(fact: Fact, block: CodeBlock) -> bool:
    """Whether a fact of one document follows from the block's source."""
    items = value_items(fact)
    if fact.kind == "purpose":
        return documented(block, fact.value)
    code = _declaration(_code(block.source_code, block.language))
    header = _header(code, block)
    if fact.kind == "signature":
        stated = _squeeze(_code(items[0], block.language))
        quoted = _squeeze(items[0]) in _squeeze(block.source_code)  # default values verbatim
        return bool(header) and quoted and stated == _squeeze(header)
    if fact.kind == "calls":
        return set(items) == _called(code[len(header) :], block)
    names = _parameters(header, block)
    if fact.kind == "parameters":
        return names is not None and list(items) == names
    return False


def calls(block: CodeBlock, other: CodeBlock) -> bool:
    """Never certain from the text alone."""
    return False


def bases(block: CodeBlock) -> list[str]:
    """Never certain from the text alone."""
    return []


def overrides(block: CodeBlock) -> bool:
    """Never certain from the text alone."""
    return False


def mentions(source: str, language: str, name: str) -> bool:
    """Whether a name is followed by parentheses."""
    return bool(re.search(rf"(?<![\w$]){re.escape(name)}\s*\(", _code(source, language)))


def parses(source: str, language: str, block_type: str) -> bool:
    """Whether there is code, and it ends as a definition does, or its brackets match."""
    code = _code(source, language)
    if language in ("ruby", "bash"):  # brackets stand in patterns and strings without quotes
        return bool(re.search(r"(?:\bend|[})])\s*$", code))
    return bool(code.strip()) and all(code.count(a) == code.count(b) for a, b in ("()", "[]", "{}"))


def _header(code: str, block: CodeBlock) -> str:
    """What stands before a function's body; '' where it is unclear.

    Up to its brace, `=`, `;` or, in Ruby and Bash, the end of the line.
    """
    spoken = block.language
    depth = 0
    for match in re.finditer(r"[()\[\]{};\n]|=>|(?<![=!<>])=(?![=>])|(?<!:):(?!:)", code):
        found = match.group()
        if found in "([":
            depth += 1
        elif found in ")]":
            depth -= 1
        elif depth:
            depth += (found == "{") - (found == "}")
        elif (found == "\n" and spoken not in ("ruby", "bash")) or (
            found == "="
            and (spoken == "ruby" or re.search(r"\boperator\s*$", code[: match.start()]))
        ):
            continue
        elif found == ":" and (spoken != "cpp" or not code[: match.start()].rstrip().endswith(")")):
            continue  # but for a constructor's initialisers
        else:
            code = code[: match.start()]
            break
    header = code.strip().rstrip(",")
    return header if re.search(rf"(?<!\w){re.escape(block.name)}(?!\w)", header) else ""


def _parameters(header: str, block: CodeBlock) -> list[str] | None:
    """Names between the first parentheses behind the name; None where they are not certain."""
    named = re.search(rf"(?<!\w){re.escape(block.name)}\s*(?:<[^()]*>)?\s*\(", header)
    if named is None:
        return None
    parts, depth, begin = [], 0, named.end()
    for at in range(named.end(), len(header)):
        character = header[at]
        if character in ",)" and depth == 0:
            parts.append(header[begin:at])
            begin = at + 1
            if character == ")":
                break
        depth += (
            (character in "([{<")
            - (character in ")]}")
            - (character == ">" and header[at - 1] not in "-=")
        )
    names = []
    for part in parts[: -1 if parts and not parts[-1].strip() else None]:
        words = re.findall(r"\$?[A-Za-z_]\w*", re.split(r"=|(?<!:):(?!:)", part)[0])
        if block.language == "rust" and words[-1:] == ["self"]:
            continue
        if not words or (len(words) > 2 and block.language == "ruby"):
            return None
        names.append(words[-1])
    return names


def _called(body: str, block: CodeBlock) -> set[str]:
    """Every name before a parenthesis, `new` and keywords aside; "?" where a call has no name."""
    if re.search(r"[)\]}\"](?:\s*(?:\??\.|->|::)\s*\w+)+\s*\(|[)\]]\s*\(", body):
        return {"?"}
    body = re.sub(r"\bthrow\s+(?:new\s+)?[\w.:\\]+", "throw", body)
    found = re.findall(
        r"((?:[\w$]+\s*(?:\?|!)?(?:\.|::|->)\s*)*[\w$]+!?)\s*(?:::)?(?:<[\w\s,.<>:&]*>)?\s*\(", body
    )
    names = {re.sub(r"\s+", "", name) for name in found}
    return names - _NO_CALLS.get(block.language, frozenset())


# -- documentation ----------------------------------------------------------------------------

_MARK = re.compile(r"^\s*(?:/\*+!?<?|//[/!]*<?|\*+(?!/)|#+!?)?[ \t]?")
_COMMENT = r"/\*.*?\*/|(?://[^\n]*(?:\n[ \t]*(?=//)|$|(?=\n)))+"
_HASHES = r"(?:#[^\n]*(?:\n[ \t]*(?=#)|$|(?=\n)))+"
_TAGS = re.compile(
    r"</?(?:summary|remarks|para|returns|value|example|code|c|list|item|inheritdoc)\b[^<>]*>"
)


def documented(block: CodeBlock, sentence: str) -> bool:
    """Whether the comment that a block begins with (a file: any in it) opens with a sentence."""
    pattern = _HASHES if block.language in _HASH else _COMMENT
    flags = re.DOTALL | re.MULTILINE
    if block.block_type != "module":
        source = block.source_code
        found = re.match(rf"\s*((?:{pattern}))", source, flags)
        return found is not None and opening_sentence(_uncommented(found.group(1))) == sentence
    return any(
        opening_sentence(_uncommented(found.group())) == sentence
        for found in re.finditer(pattern, block.source_code, flags)
    )


def _uncommented(comment: str) -> str:
    text = re.sub(r"\s*\**\*/\s*$", "", comment.replace("\r\n", "\n"))
    lines = [_MARK.sub("", line, count=1).rstrip() for line in text.split("\n")]
    text = "\n".join(lines).strip()
    if "<summary>" in text:
        text = re.sub(
            r"<(?:see|seealso|paramref|typeparamref)\s+\w+=\"([^\"]*)\"\s*/?>", r"\1", text
        )
        text = _TAGS.sub("", text).strip()
    return text


_SECTIONS = frozenset(
    {
        *("parameter", "param", "argument", "arg", "kwarg", "return", "return value", "yield"),
        *("raise", "throw", "exception", "error", "warn", "warning", "note", "nb", "example"),
        *("example usage", "usage", "usage example", "attribute", "attr", "property", "field"),
        *("properties", "member", "method", "input", "output", "reference", "see", "todo"),
        *("option", "important", "tip", "hint", "caution", "description", "summary", "synopsis"),
    }
)
_QUALIFIED = re.compile(
    r"(?:other|keyword|optional|named|input|output) (?=(?:parameter|param|argument|arg)s?$)"
)


def _is_heading(line: str, below: str) -> bool:
    """Whether a text's first line begins a section, or is a title with a line below it."""
    rule = below.strip()
    if len(rule) >= 3 and rule == rule[0] * len(rule) and rule[0] in "-=~^*_#\"'`+.":
        return True
    first = re.search(r"[^\W_].*", line)
    if first is None:
        return True
    title = first.group()
    opening = re.findall(r"\w+", title)[:2]
    if opening[0] in ("TODO", "FIXME", "XXX"):
        return True
    lowered = [word.lower() for word in opening]
    if lowered[0] in ("deprecated", "param", "params") or lowered == ["see", "also"]:
        return True
    title = re.sub(r"^(\w[\w ]*?[*_`\s]*)\([^()]*\)", r"\1", title)  # "Returns (int): x"
    name = re.split(r":|[-–—]+(?:\s|$)|[^\w(),]*$", title, maxsplit=1)[0]
    plain = _QUALIFIED.sub("", name.strip(" \t*_`").lower())
    return plain in _SECTIONS or plain.removesuffix("s") in _SECTIONS


def opening_sentence(text: str) -> str:
    """The first sentence of a text; '' where it is none that could be taught."""
    words: list[str] = []
    lines = text.strip().split("\n")
    if re.match(r"[@:]\w", lines[0]) or _is_heading(lines[0], "".join(lines[1:2])):
        return ""
    for line in lines:
        if not line.strip() or re.match(r"\s*[@:]\w", line):
            break
        words += line.split()
    for at, word in enumerate(words):
        following = words[at + 1][0] if at + 1 < len(words) else "A"
        ends = word[-1] in ".!?" and (following in "`\"'(" or "A" <= following <= "Z")
        if ends and not _SHORT.search(word):
            words = words[: at + 1]
            break
    sentence = " ".join(words)
    fits = len(words) >= 3 and 15 <= len(sentence) <= MAX_VALUE
    return (
        sentence
        if fits and (sentence[0].isascii() and (sentence[0].isalpha() or sentence[0] in "`\"'*("))
        else ""
    )
