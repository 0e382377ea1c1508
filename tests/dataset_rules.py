"""Whether a fact is true, by rules of our own: for tests/dataset_checker.py.

One rule for each kind of the closed set. A rule sees the definition as dataset_readers.py found
it in the file on disk, never what forge_mcp derived, and answers True, False, or raises
`Undecided` with the reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dataset_readers import NODE, PYTHON, TOKENS, Bounds, Definition, read_files, read_text

from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import Fact

READABLE = (*PYTHON, *NODE, *TOKENS)
PLAIN = "plain"


class Undecided(Exception):
    """What this examiner cannot tell, and why."""


# -- texts ---------------------------------------------------------------------------------------

_COMMENT = re.compile(r"/\*.*?\*/|(?<![:\"'\w])//[^\n]*", re.DOTALL)


def squash(text: str) -> str:
    """Without white space, and without the comma before a closing bracket."""
    return re.sub(r",([)\]}>])", r"\1", re.sub(r"\s+", "", text))


def bare(text: str) -> str:
    """Squashed, and without the comments of C's family."""
    return squash(_COMMENT.sub("", text))


def same(written: str, found: str) -> bool:
    """Whether an answer's text is the code's, but for white space, comments and brackets around."""
    if squash(written) == squash(found) or bare(written) == bare(found):
        return True
    try:
        python = (ast.dump(ast.parse(text.strip(), mode="eval")) for text in (written, found))
        return next(python) == next(python)
    except (SyntaxError, ValueError):
        return False


def items_of(value: str) -> list[str]:
    """Items between backticks, split at ", "; a longer fence holds backticks, as in Markdown."""
    items = []
    at = 0
    while at < len(value):
        fence = re.match(r"`+", value[at:])
        if fence is None:
            raise Undecided(f"no item in backticks: {value[at : at + 40]!r}")
        close = re.search(rf"(?<!`){fence.group()}(?!`)", value[at + fence.end() :])
        if close is None:
            raise Undecided(f"a backtick that nothing closes: {value[:40]!r}")
        item = value[at + fence.end() : at + fence.end() + close.start()]
        spaced = len(fence.group()) > 1 and item.startswith(" ") and item.endswith(" ")
        items.append(item[1:-1] if spaced else item)
        at += fence.end() + close.end()
        if value[at:] and not value[at:].startswith(", "):
            raise Undecided(f"items are not split by ', ': {value[at : at + 20]!r}")
        at += 2
    return items


def within(items: Sequence[str], bounds: Bounds, *, known: Callable[[str], str] = bare) -> bool:
    """Whether all certain items are named, and no item that is not there."""
    named = {known(item) for item in items}
    return (
        {known(text) for text in bounds.own}
        <= named
        <= {known(text) for text in (*bounds.own, *bounds.may)}
    )


# -- the repository ------------------------------------------------------------------------------


@dataclass
class Repository:
    """Files on disk and the blocks of their corpus.

    Attributes:
        blocks: of the corpus by id, those that were rejected too.
        callers: ids of the blocks that the corpus says depend on a block, by its id.
    """

    root: Path
    blocks: Mapping[str, CodeBlock]
    typescript: Path | None = None
    definitions: dict[str, list[Definition]] = field(default_factory=dict)
    callers: dict[str, set[str]] = field(default_factory=dict)
    _texts: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for block in self.blocks.values():
            for dependency in block.dependencies:
                self.callers.setdefault(dependency, set()).add(block.id)

    def read(self, paths: Sequence[str]) -> None:
        """Read files that rules will look into; many at once cost one process of node."""
        there = [p for p in paths if p not in self.definitions and (self.root / p).is_file()]
        self.definitions.update(read_files(self.root, there, self.typescript))

    def lines(self, path: str) -> list[str]:
        """A file's lines."""
        if path not in self._texts:
            self._texts[path] = read_text(self.root / path).split("\n")
        return self._texts[path]

    def _plain(self, block: CodeBlock) -> Definition:
        """The lines of a language that has no reader here."""
        if not (self.root / block.path).is_file():
            raise LookupError(f"there is no {block.path}")
        lines = self.lines(block.path)
        text = "\n".join(lines[block.start_line - 1 : block.end_line])
        # Some names are the miner's: `given_Ordering_Plan` of a given without one.
        parts = [part for part in re.split(r"[\W_]+", block.name) if part]
        if block.block_type != "module" and not all(part.lower() in text.lower() for part in parts):
            raise LookupError(f"{block.path}:{block.start_line} holds no {block.name}")
        above = block.start_line - 1
        while above > 0 and lines[above - 1].strip():
            above -= 1
        comment = "\n".join(lines[above : block.end_line])
        return Definition(
            PLAIN, block.name, block.start_line, block.end_line, header=text, docstring=comment
        )

    def definition(self, block: CodeBlock) -> Definition:
        """What stands in the file where a block says it does.

        Raises:
            Undecided: its language has no reader here, or its file cannot be parsed.
            LookupError: no such definition is there.
        """
        if Path(block.path).suffix not in READABLE:
            return self._plain(block)
        self.read([block.path])
        found = self.definitions.get(block.path)
        if found is None:
            raise Undecided(f"{block.path} is not read: no reader for {block.language}")
        if not found:  # a syntax error: only its lines can tell
            return self._plain(block)
        if block.block_type == "module":
            return found[-1] if found[-1].kind == "module" else found[0]
        for definition in found:
            named = definition.name in (block.name, block.qualified_name)
            if named and definition.end == block.end_line and block.start_line <= definition.start:
                above = "\n".join(
                    self.lines(block.path)[block.start_line - 1 : definition.start - 1]
                )
                if not re.sub(r"/\*.*?\*/|//[^\n]*|#[^\n]*", "", above, flags=re.DOTALL).strip():
                    return definition
        raise LookupError(
            f"{block.path}:{block.start_line}-{block.end_line} holds no {block.qualified_name}"
        )


# -- one document --------------------------------------------------------------------------------

Rule = Callable[[Fact, CodeBlock, Definition, Repository], bool]
_MODIFIERS = re.compile(
    r"^(?:export|default|public|protected|private|static|final|abstract|async|declare|readonly|"
    r"override|synchronized|native|accessor|get|set|const|let|var|@[\w.]+(?:\([^()]*\))?|\s)*"
)


def _one(fact: Fact) -> str:
    items = items_of(fact.value)
    if len(items) != 1:
        raise Undecided(f"{fact.kind} has {len(items)} items")
    return items[0]


def _signature(fact: Fact, block: CodeBlock, found: Definition, repository: Repository) -> bool:
    given, header = _one(fact), found.header
    if block.language == "python":
        try:
            trees = [ast.parse(f"{text.strip().rstrip(':')}: pass") for text in (given, header)]
        except SyntaxError:
            return False
        for tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    node.decorator_list = []
        return ast.dump(trees[0]) == ast.dump(trees[1])
    whole = bare(re.sub(r"(=>|=|\{)\s*$", "", header.strip()))
    asked = bare(re.sub(r"(=>|=|\{)\s*$", "", given.strip()))
    forms = {whole, bare(_MODIFIERS.sub("", _COMMENT.sub("", header))), whole.rstrip(";")}
    forms |= {form.removesuffix("=>").removesuffix("=").removesuffix("{") for form in set(forms)}
    return asked in forms or (whole.endswith(asked) and _only_prefix(whole, asked))


def _only_prefix(whole: str, part: str) -> bool:
    """Whether `part`, the end of a header, leaves only modifiers, a target or annotations out."""
    left = whole[: len(whole) - len(part)]
    return (
        re.fullmatch(r"[\w.$@=:\[\]'\"(),<>?{}]*", left) is not None
        and not re.search(r"\b(def|func|function|class|interface)\b", left)
        and "(" not in re.sub(r"@[\w.]+\([^()]*\)", "", left)
    )


def _parameter_name(text: str) -> str:
    return squash(text).lstrip("*.&").rstrip("?")


def _parameters(fact: Fact, block: CodeBlock, found: Definition, repository: Repository) -> bool:
    names = [_parameter_name(name) for name, _, _ in found.parameters]
    if found.kind == "class":
        raise Undecided("parameters of a class")
    # A method is called without its first parameter: the object, the class, or a metaclass's own.
    bound = ("self", "cls", "mcs", "mcls", "meta", "metacls", "klass")
    if block.language == "python" and block.block_type == "method":
        static = any(text.split(".")[-1] == "staticmethod" for text in found.decorators)
        names = names[1:] if names[:1] and names[0] in bound and not static else names
    given = [_parameter_name(item) for item in items_of(fact.value)]
    # TypeScript's `this` is a type, no parameter; unnamed ones of Go have no name to give.
    return given in (names, [name for name in names if name not in ("this", "_", "")])


def _default(fact: Fact, block: CodeBlock, found: Definition, repository: Repository) -> bool:
    values = [
        d for n, _, d in found.parameters if _parameter_name(n) == _parameter_name(fact.subject)
    ]
    return len(values) == 1 and values[0] != "" and same(_one(fact), values[0])


def _annotation(fact: Fact, block: CodeBlock, found: Definition, repository: Repository) -> bool:
    if fact.subject == "return":
        return found.result != "" and same(_one(fact), found.result)
    name = _parameter_name(fact.subject)
    values = [a for n, a, _ in found.parameters if _parameter_name(n) == name]
    given = _one(fact)
    if len(values) != 1 or not values[0]:
        return False
    return same(given.removeprefix("..."), values[0].removeprefix("...")) or same(
        given, values[0].removesuffix("...")
    )


def _decorators(fact: Fact, block: CodeBlock, found: Definition, repository: Repository) -> bool:
    given = [bare(item.lstrip("@")) for item in items_of(fact.value)]
    whole = [bare(text) for text in found.decorators]
    return given in (whole, [text.split("(")[0] for text in whole])


def _raises(fact: Fact, block: CodeBlock, found: Definition, repository: Repository) -> bool:
    items = items_of(fact.value)
    return bool(items) and within(items, found.raises)


def _guard(fact: Fact, block: CodeBlock, found: Definition, repository: Repository) -> bool:
    tests = [test for name, test in found.conditions if bare(name) == bare(fact.subject)]
    given = items_of(fact.value)
    if not all(any(same(item, test) for test in tests) for item in given):
        return False
    # Asked for the condition, all of them must be given.
    return all(any(same(item, test) for item in given) for test in tests)


def _returns(fact: Fact, block: CodeBlock, found: Definition, repository: Repository) -> bool:
    items = items_of(fact.value)
    return bool(items) and within(items, found.returns)


def _returns_when(fact: Fact, block: CodeBlock, found: Definition, repository: Repository) -> bool:
    values = [value for test, value in found.returns_when if same(fact.subject, test)]
    given = _one(fact)
    return bool(values) and all(same(given, value) for value in values)


def _calls(fact: Fact, block: CodeBlock, found: Definition, repository: Repository) -> bool:
    items = items_of(fact.value)
    return bool(items) and within(items, found.calls)


def _bases(fact: Fact, block: CodeBlock, found: Definition, repository: Repository) -> bool:
    # With its type arguments or without, but never with others.
    named = {bare(item).lstrip("*") for item in items_of(fact.value)}
    forms = {bare(text).lstrip("*") for text in (*found.bases.own, *found.bases.may)}
    without = {re.sub(r"[<\[].*", "", text) for text in named}
    own = {re.sub(r"[<\[].*", "", bare(text)).lstrip("*") for text in found.bases.own}
    return bool(named) and named <= forms | own and own <= without


def _methods(fact: Fact, block: CodeBlock, found: Definition, repository: Repository) -> bool:
    items = items_of(fact.value)
    return bool(items) and within(
        items, found.methods, known=lambda text: squash(text).strip("#'\"")
    )


def _imports(fact: Fact, block: CodeBlock, found: Definition, repository: Repository) -> bool:
    def plain(text: str) -> str:
        return squash(text).strip("'\"`;").removesuffix(".*")

    items = items_of(fact.value)
    named = {plain(item) for item in items}
    own, may = ({plain(text) for text in side} for side in (found.imports.own, found.imports.may))
    # Java names classes: the module of one may be its package.
    may |= {text.rsplit(".", 1)[0] for text in may if block.language == "java"}
    if block.language == "java":
        return bool(items) and named <= may
    return bool(items) and own <= named <= may | own


def _constant(fact: Fact, block: CodeBlock, found: Definition, repository: Repository) -> bool:
    values = [value for name, value in found.constants if squash(name) == squash(fact.subject)]
    given = _one(fact)
    if not any(same(given, value) for value in values):
        return False
    # A name that is bound again to something else has no one value.
    return block.language != "python" or all(same(given, value) for value in values)


def _location(fact: Fact, block: CodeBlock, found: Definition, repository: Repository) -> bool:
    return _one(fact) == f"{block.path}:{block.start_line}-{block.end_line}"


def comment_lines(text: str) -> list[str]:
    """A comment's or docstring's lines, without what marks them as one."""
    lines = []
    for line in text.replace("/**", "\n").replace("*/", "\n").split("\n"):
        line = re.sub(r"^\s*(?:/\*+|\*+|//[/!]*|#+!?)?\s?", "", line)
        lines.append(" ".join(line.split()))
    return lines


def prose(text: str) -> str:
    """The words of a comment, in one line."""
    return " ".join(" ".join(comment_lines(text)).split())


def _purpose(fact: Fact, block: CodeBlock, found: Definition, repository: Repository) -> bool:
    said = " ".join(fact.value.split())
    lines = comment_lines(found.docstring)
    whole = " ".join(" ".join(lines).split())
    if len(said) < 3 or not whole.startswith(said):
        # A module's comment may have a licence above it.
        return block.block_type == "module" and len(said) > 10 and said in whole
    if said[-1] in ".!?:;" or whole[len(said) : len(said) + 1] in ("", ".", ":", ";", "!"):
        return True
    # Without a full stop, a sentence ends where its paragraph does, or where a tag begins.
    begun = ""
    for number, line in enumerate(lines):
        begun = f"{begun} {line}".strip()
        if begun == said:
            following = lines[number + 1] if number + 1 < len(lines) else ""
            return not following[:1].islower()
    return False


def _usage(fact: Fact, block: CodeBlock, found: Definition, repository: Repository) -> bool:
    given = _one(fact)
    if "\n" in given:
        return False
    return any(
        given == text and squash(callee) == squash(fact.subject)
        for callee, text in found.call_texts
    )


def _code(fact: Fact, block: CodeBlock, found: Definition, repository: Repository) -> bool:
    lines = repository.lines(block.path)[block.start_line - 1 : block.end_line]
    given = [line.rstrip() for line in fact.value.strip("\n").split("\n")]
    there = [line.rstrip() for line in lines]
    if len(given) != len(there):
        return False
    first, last = given[0] in there[0], given[-1] in there[-1]
    middle = given[1:-1] == there[1:-1]
    return bool(first and last and middle and given[0].strip())


# -- several documents ---------------------------------------------------------------------------


def _last(name: str) -> str:
    """The last name of a chain, without arguments: `go` of `super().go<T>`."""
    text, before = squash(name), ""
    while text != before:
        before, text = text, re.sub(r"\([^()]*\)|\[[^\[\]]*\]|<[^<>]*>", "", text)
    return re.split(r"\.|::|->", text)[-1].strip("#?!")


def _reaches(block: CodeBlock, other: CodeBlock, name: str, repository: Repository) -> bool:
    """Whether `name`, as `block` uses it, may be `other`: same file, imported, or a member."""
    if _last(name) not in (other.name, (other.parent or "").split(".")[-1]):
        return False
    if other.path == block.path or "." in name or "::" in name:
        return True
    if other.path.rsplit("/", 1)[0] == block.path.rsplit("/", 1)[0] and block.language in (
        "go",
        "java",
    ):
        return True
    if block.parent is not None and other.block_type == "method":
        return True  # Java's unqualified call of an inherited method
    text = "\n".join(repository.lines(block.path))
    imports = re.findall(
        r"(?ms)^\s*(?:from\s.*?import\s+(?:\(.*?\)|[^\n]*)|import\s[^;\n]*|.*require\(.*)", text
    )
    imports += re.findall(r"(?s)(?:import|export)\s+(?:type\s+)?[\w*{][^;'\"]*", text)
    names = rf"\b{re.escape(_last(name))}\b|\*"
    return any(re.search(names, statement) for statement in imports)


def _calls_it(block: CodeBlock, other: CodeBlock, subject: str, repository: Repository) -> bool:
    found = repository.definition(block)
    chains = {squash(text).removeprefix("new") for text in (*found.calls.own, *found.calls.may)}
    chains |= {squash(callee) for callee, _ in found.call_texts}
    wanted = squash(subject)
    used = [chain for chain in chains if chain == wanted or _last(chain) == _last(wanted)]
    return any(_reaches(block, other, chain, repository) for chain in used)


def _of_callee(kind: str) -> Callable[[Fact, Sequence[CodeBlock], Repository], bool]:
    def rule(fact: Fact, oracles: Sequence[CodeBlock], repository: Repository) -> bool:
        block, other = oracles[0], oracles[-1]
        callee, _, parameter = fact.subject.rpartition(".")
        subject = callee if kind == "default" else fact.subject
        if other.id == block.id or not _calls_it(block, other, subject, repository):
            return False
        inner = Fact(
            kind=kind,
            block=other.id,
            value=fact.value,
            subject=parameter if kind == "default" else "",
        )
        return holds(inner, [other], repository)

    return rule


def _base_location(fact: Fact, oracles: Sequence[CodeBlock], repository: Repository) -> bool:
    block, other = oracles[0], oracles[-1]
    bases = repository.definition(block).bases
    named = {_last(text) for text in (*bases.own, *bases.may)}
    if (
        other.id == block.id
        or _last(fact.subject) not in named
        or other.name != _last(fact.subject)
    ):
        return False
    if not _reaches(block, other, _last(fact.subject), repository):
        return False
    inner = Fact(kind="location", block=other.id, value=fact.value)
    return holds(inner, [other], repository)


def _overrides(fact: Fact, oracles: Sequence[CodeBlock], repository: Repository) -> bool:
    block, other = oracles[0], oracles[-1]
    if block.name != other.name or not block.parent or not other.parent or block.id == other.id:
        return False
    if _one(fact) not in (other.qualified_name, f"{other.path}::{other.qualified_name}"):
        return False
    # Up from the block's class, by the names that classes give for their bases.
    classes: dict[str, list[CodeBlock]] = {}
    for candidate in repository.blocks.values():
        if candidate.block_type == "class" and candidate.language == block.language:
            classes.setdefault(candidate.name, []).append(candidate)
    own = [c for c in classes.get(_last(block.parent), []) if c.path == block.path]
    seen: set[str] = set()
    while own:
        candidate = own.pop()
        if candidate.id in seen:
            continue
        seen.add(candidate.id)
        bases = repository.definition(candidate).bases
        for name in {_last(text) for text in (*bases.own, *bases.may)}:
            above = classes.get(name, [])
            if any(c.path == other.path and c.qualified_name == other.parent for c in above):
                return True
            own += above
    return False


def _callers(fact: Fact, oracles: Sequence[CodeBlock], repository: Repository) -> bool:
    block, others = oracles[0], oracles[1:]
    if sorted(items_of(fact.value)) != sorted(other.qualified_name for other in others):
        return False
    if not all(_calls_it(other, block, block.name, repository) for other in others):
        return False
    known = repository.callers.get(block.id, set()) - {block.id}
    return {other.id for other in others} == known


def _tests(fact: Fact, oracles: Sequence[CodeBlock], repository: Repository) -> bool:
    block, other = oracles[0], oracles[-1]
    if _one(fact) != other.qualified_name or other.id == block.id:
        return False
    looks = re.search(r"test|spec", f"{other.path} {other.name}", re.IGNORECASE)
    text = "\n".join(repository.lines(other.path)[other.start_line - 1 : other.end_line])
    return bool(looks) and re.search(rf"\b{re.escape(block.name)}\b", text) is not None


def _in_lines(fact: Fact, block: CodeBlock, found: Definition) -> bool:
    """The same of a language without a reader: what its lines can tell.

    Raises:
        Undecided: they cannot tell this kind.
    """
    text = bare(found.header)
    if fact.kind == "location":
        return _one(fact) == f"{block.path}:{block.start_line}-{block.end_line}"
    if fact.kind == "signature":
        return bare(_one(fact)).rstrip(";{") in text
    if fact.kind in ("calls", "parameters"):
        # What does not occur is false; whether these are all needs more than lines.
        names = [_last(item).strip("$&*:@") for item in items_of(fact.value)]
        if not all(re.search(rf"\b{re.escape(name)}\b", found.header) for name in names):
            return False
    if fact.kind == "purpose":
        return squash(prose(fact.value)) in squash(prose(found.docstring))
    if fact.kind == "code":
        return squash(fact.value) in squash(found.header)
    raise Undecided(f"{fact.kind} of {block.language}")


ONE: dict[str, Rule] = {
    "signature": _signature,
    "parameters": _parameters,
    "default": _default,
    "annotation": _annotation,
    "decorators": _decorators,
    "raises": _raises,
    "guard": _guard,
    "returns": _returns,
    "returns_when": _returns_when,
    "calls": _calls,
    "bases": _bases,
    "methods": _methods,
    "imports": _imports,
    "constant": _constant,
    "location": _location,
    "purpose": _purpose,
    "usage": _usage,
    "code": _code,
}
SEVERAL: dict[str, Callable[[Fact, Sequence[CodeBlock], Repository], bool]] = {
    "callee_location": _of_callee("location"),
    "callee_signature": _of_callee("signature"),
    "callee_raises": _of_callee("raises"),
    "callee_default": _of_callee("default"),
    "callee_purpose": _of_callee("purpose"),
    "base_location": _base_location,
    "overrides": _overrides,
    "callers": _callers,
    "tests": _tests,
}


def holds(fact: Fact, oracles: Sequence[CodeBlock], repository: Repository) -> bool:
    """Whether a fact is true of the files on disk.

    Args:
        fact: to derive again.
        oracles: `fact.block` first, then the other documents that it rests on.
        repository: files and corpus.

    Raises:
        Undecided: this cannot be told; the reason is its text.
    """
    if fact.kind in ONE:
        block = oracles[0]
        try:
            found = repository.definition(block)
        except LookupError:
            return False
        if found.kind == PLAIN:
            return _in_lines(fact, block, found)
        return ONE[fact.kind](fact, block, found, repository)
    if fact.kind in SEVERAL:
        if len(oracles) < 2:
            return False
        try:
            for block in oracles:
                repository.definition(block)
            return SEVERAL[fact.kind](fact, oracles, repository)
        except LookupError:
            return False
    return False
