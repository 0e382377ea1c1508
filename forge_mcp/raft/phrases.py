"""The words of questions: several phrasings a kind of fact, and how a question names a symbol.

Of every kind the last phrasing is never trained on: it is kept for held-out closed-book rows, so
that judging can ask in words that no training row has used.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import escape
from forge_mcp.schemas.raft_examples import Fact

# {s}: the symbol, with its path where that is needed. {p}: the fact's subject. {c}: the callee of a
# subject "callee.parameter". {throw}, {throws}: what the language calls it.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "signature": (
        "What is the signature of {s}?",
        "How is {s} declared?",
        "Give the signature of {s}.",
        "What does the declaration of {s} look like?",
        "Write down the header of {s} as the repository declares it.",
    ),
    "parameters": (
        "Which parameters does {s} take?",
        "List the parameters of {s}.",
        "What arguments can be passed to {s}?",
        "What are the names of the parameters that {s} accepts?",
        "Which inputs does a caller of {s} hand over, by name?",
    ),
    "default": (
        "What is the default value of `{p}` in {s}?",
        "Which default does the parameter `{p}` of {s} have?",
        "When {s} is called without `{p}`, which value is used for it?",
        "How does {s} handle a call that leaves `{p}` out: which value does it take?",
        "To what does `{p}` fall back in {s} if the caller says nothing?",
    ),
    "annotation": (
        "How is the parameter `{p}` of {s} annotated?",
        "What is the declared type of `{p}` in {s}?",
        "Which type does {s} expect for `{p}`?",
        "Of which type is the argument `{p}` of {s} declared to be?",
        "What kind of value must `{p}` be according to the declaration of {s}?",
    ),
    "return_annotation": (
        "What return type does {s} declare?",
        "How is the return value of {s} annotated?",
        "Which type is {s} declared to return?",
        "What is the declared result type of {s}?",
        "According to its declaration, what type of value comes back from {s}?",
    ),
    "decorators": (
        "Which decorators does {s} have?",
        "How is {s} decorated?",
        "List the decorators of {s}.",
        "Which decorators or annotations are applied to {s}?",
        "What is written with an @ above the definition of {s}?",
    ),
    "raises": (
        "Which exceptions does {s} {throw}?",
        "What exceptions might {s} {throw} itself?",
        "Which errors are raised in {s}?",
        "Which exception types does the body of {s} {throw}?",
        "Which exceptions does the body of {s} {throw} by itself?",
    ),
    "guard": (
        "When does {s} {throw} `{p}`?",
        "Under which condition does {s} {throw} `{p}`?",
        "What does {s} check before it {throws} `{p}`?",
        "How does {s} decide that it must {throw} `{p}`: which condition does it test?",
        "Which case leads {s} to fail with `{p}`?",
    ),
    "returns": (
        "What does {s} return?",
        "What stands in the return statements of {s}?",
        "Which expressions does {s} return?",
        "What is given back by {s}?",
        "With which result does a call of {s} end?",
    ),
    "returns_when": (
        "What does {s} return when `{p}`?",
        "How does {s} handle the case `{p}`: what does it return?",
        "If `{p}` holds in {s}, what is the result?",
        "Which value does {s} give back under the condition `{p}`?",
        "Think of the edge case `{p}`: with what does {s} answer it?",
    ),
    "calls": (
        "Which functions does {s} call?",
        "What does {s} call?",
        "What are the calls that {s} makes?",
        "What are the dependencies of {s}, as far as it calls them?",
        "On which other functions does the body of {s} rely?",
    ),
    "bases": (
        "Which classes does {s} inherit from?",
        "What are the base classes of {s}?",
        "What does {s} extend?",
        "From which types is {s} derived?",
        "Which ancestors are named in the header of {s}?",
    ),
    "methods": (
        "Which methods does {s} define?",
        "List the methods of {s}.",
        "What methods can be found in {s}?",
        "Which methods stand in the body of {s}?",
        "What can be called on {s} that it defines itself?",
    ),
    "imports": (
        "What does {s} import?",
        "Which modules are imported by {s}?",
        "List the imports of {s}.",
        "What are the dependencies of {s}, as far as it imports them?",
        "On which modules does the file {s} build?",
    ),
    "constant": (
        "What is the value of `{p}` in {s}?",
        "To what is `{p}` set in {s}?",
        "Which value does {s} give to `{p}`?",
        "How is `{p}` defined in {s}?",
        "What does `{p}` stand for in {s}?",
    ),
    "location": (
        "Where is {s} defined?",
        "In which file and lines does {s} stand?",
        "Where can the definition of {s} be found?",
        "Which lines of which file hold {s}?",
        "Where must an editor be opened to change {s}?",
    ),
    "purpose": (
        "What is the purpose of {s}?",
        "What does {s} do?",
        "What is {s} for?",
        "How does the documentation describe {s}?",
        "What is {s} meant to do, in the words of its documentation?",
    ),
    "usage": (
        "Write the call of `{p}` as it stands in {s}.",
        "How does {s} call `{p}`? Write that call.",
        "Show how `{p}` is used in {s}.",
        "With which arguments does {s} call `{p}`? Write the whole expression.",
        "Complete the line of {s} that calls `{p}`.",
    ),
    "code": (
        "Complete {s} from its header.",
        "Write the body of {s}.",
        "Implement {s} as the repository does.",
        "Write {s} in the style of this repository.",
        "Give the whole code of {s}, of which this is the beginning.",
    ),
    "callee_location": (
        "Where is the `{p}` that {s} calls defined?",
        "{s} calls `{p}`. In which file and lines does that stand?",
        "In which file and lines can the `{p}` used by {s} be found?",
        "Follow the call of `{p}` in {s}: where does it lead?",
        "Which place defines what {s} calls as `{p}`?",
    ),
    "callee_signature": (
        "What is the signature of the `{p}` that {s} calls?",
        "{s} calls `{p}`. How is that declared?",
        "How is the `{p}` used by {s} declared?",
        "Which signature must a call of `{p}` in {s} fit?",
        "Write down the header of what {s} calls as `{p}`.",
    ),
    "callee_raises": (
        "Which exceptions does the `{p}` that {s} calls {throw}?",
        "{s} calls `{p}`. Which exceptions might that {throw}?",
        "`{p}`, which {s} calls, {throws} which exceptions in its own body?",
        "What can go wrong in the `{p}` that {s} calls: which exceptions does it {throw}?",
        "With which errors may the `{p}` called by {s} fail?",
    ),
    "callee_default": (
        "What is the default value of `{p}` in the `{c}` that {s} calls?",
        "{s} calls `{c}`. Which default does its parameter `{p}` have?",
        "{s} calls `{c}`. Which default does `{p}` have there?",
        "Which value does the `{c}` used by {s} take for `{p}` by default?",
        "To what does `{p}` fall back in what {s} calls as `{c}`?",
    ),
    "callee_purpose": (
        "What is the purpose of the `{p}` that {s} calls?",
        "{s} calls `{p}`. What does that do?",
        "What does {s} use `{p}` for, according to the documentation of `{p}`?",
        "How does the documentation describe the `{p}` that is called in {s}?",
        "What is meant to happen when {s} calls `{p}`?",
    ),
    "base_location": (
        "Where is the base class `{p}` of {s} defined?",
        "In which file and lines does the class `{p}` stand that {s} extends?",
        "{s} extends `{p}`. Where can that be found?",
        "Which file and lines hold `{p}`, from which {s} inherits?",
        "Which place defines the ancestor `{p}` of {s}?",
    ),
    "overrides": (
        "Which method does {s} override?",
        "What does {s} redefine from its base class?",
        "Which inherited method is replaced by {s}?",
        "{s} overrides a method of a base class. Which one?",
        "Which method would run in place of {s} if that were removed?",
    ),
    "callers": (
        "Which functions call {s}?",
        "Who calls {s}?",
        "From where is {s} called?",
        "What are the callers of {s}?",
        "What depends on {s} by calling it?",
    ),
    "tests": (
        "Name a test that covers {s}.",
        "Name a test that exercises {s}.",
        "In which test is {s} used? Name one.",
        "How is {s} tested: which test calls it? Name one.",
        "Where in the tests is {s} put to use? The name of one test is enough.",
    ),
}

# Go has no exceptions: functions return errors, or panic.
QUESTIONS |= {
    "go_raises": (
        "Which named errors does {s} return?",
        "Which error values might {s} return itself?",
        "Which errors are returned by name in {s}?",
        "Which errors of its own does the body of {s} return?",
        "Which named errors does the body of {s} return by itself?",
    ),
    "go_guard": (
        "When does {s} return `{p}`?",
        "Under which condition does {s} return the error `{p}`?",
        "What does {s} check before it returns `{p}`?",
        "How does {s} decide that it must return `{p}`: which condition does it test?",
        "Which case makes {s} give the error `{p}` back?",
    ),
    "go_panic": (
        "When does {s} panic?",
        "Under which condition does {s} panic?",
        "What does {s} check before it panics?",
        "How does {s} decide that it must panic: which condition does it test?",
        "Which case makes {s} give up with a panic?",
    ),
    "go_callee_raises": (
        "Which named errors does the `{p}` that {s} calls return?",
        "{s} calls `{p}`. Which named errors might that return?",
        "`{p}`, which {s} calls, returns which named errors in its own body?",
        "What can go wrong in the `{p}` that {s} calls: which named errors does it return?",
        "With which named errors may the `{p}` called by {s} fail?",
    ),
}

_OVERLOADING = frozenset({"java", "typescript", "tsx", "cpp", "csharp", "kotlin", "scala", "swift"})
_RAISING = frozenset({"python", "ruby", "scala", "swift"})  # the others throw


def question_kind(fact: Fact, language: str) -> str:
    """The key in `QUESTIONS` of a fact about a block of some language."""
    if fact.kind == "annotation" and fact.subject == "return":
        return "return_annotation"
    if language == "go" and fact.kind == "guard" and fact.subject == "panic":
        return "go_panic"
    special = f"go_{fact.kind}"
    return special if language == "go" and special in QUESTIONS else fact.kind


def question(fact: Fact, named: str, phrasing: int, language: str) -> str:
    """The question for a fact, in one of its phrasings.

    Args:
        fact: what is asked for.
        named: the symbol, as `CorpusNames.symbol` writes it.
        phrasing: counted round over those that may be trained on; -1 is the one kept back.
        language: of the block; decides what it is called to raise an exception.
    """
    templates = QUESTIONS[question_kind(fact, language)]
    text = templates[-1] if phrasing == -1 else templates[phrasing % (len(templates) - 1)]
    callee, _, parameter = fact.subject.rpartition(".")
    throw, _ = throwing(language)
    asked = parameter if fact.kind == "callee_default" else fact.subject
    return fill(text, s=named, p=asked, c=callee, throw=throw, throws=f"{throw}s")


def fill(template: str, **words: str) -> str:
    """A template with its marks, e.g. "{s}", replaced; what a word holds is never a mark."""
    return re.sub(r"\{(\w+)\}", lambda match: words[match.group(1)], template)


def throwing(language: str) -> tuple[str, str]:
    """What a language calls it to raise an exception, and that one was raised."""
    if language == "go":
        return "return", "returned"
    return ("raise", "raised") if language in _RAISING else ("throw", "thrown")


class CorpusNames:
    """Which names are unique in a corpus, so that a question can name a block for certain."""

    def __init__(self, blocks: Iterable[CodeBlock]) -> None:
        self.known: set[str] = set()
        self._names: Counter[str] = Counter()
        self._places: Counter[tuple[str, str]] = Counter()
        self._typed: Counter[tuple[str, str]] = Counter()
        for block in blocks:
            self.known.add(block.name)
            if block.block_type == "module":  # asked about by its path
                continue
            self._names[block.qualified_name] += 1
            self._places[(block.path, block.qualified_name)] += 1
            types = parameter_types(block)
            if types is not None:
                self._typed[(block.path, block.qualified_name + types)] += 1

    def ambiguous(self, block: CodeBlock) -> bool:
        """Whether no question can tell the block from another one of its file."""
        return self._overloaded(block) and not self._told_apart(block)

    def _overloaded(self, block: CodeBlock) -> bool:
        return self._places[(block.path, block.qualified_name)] > 1

    def _told_apart(self, block: CodeBlock) -> bool:
        types = parameter_types(block)
        return types is not None and self._typed[(block.path, block.qualified_name + types)] == 1

    def label(self, block: CodeBlock) -> str:
        """The block's name without backticks: an overload is named with its parameters' types."""
        if block.block_type == "module":
            return block.path
        types = parameter_types(block) if self._overloaded(block) else None
        return block.qualified_name + (types or "")

    def unique(self, block: CodeBlock) -> bool:
        """Whether no other file has a block of this name."""
        places = self._places[(block.path, block.qualified_name)]
        return self._names[block.qualified_name] == places

    def symbol(self, block: CodeBlock) -> str:
        """How a question names the block: "`Cart.add`", with the path where others are so named."""
        if block.block_type == "module":
            return f"`{block.path}`"
        return f"`{self.label(block)}`" + ("" if self.unique(block) else f" ({block.path})")


def parameter_types(block: CodeBlock) -> str | None:
    """'(Object[], char)' where the language has overloads and every type is declared, else None."""
    if block.language not in _OVERLOADING or block.block_type not in ("function", "method"):
        return None
    types = []
    for row in block.metadata.get("parameters") or []:
        annotation = " ".join(str(row.get("annotation") or "").split())
        if not annotation or "`" in annotation:
            return None
        types.append(annotation.removeprefix("final "))
    return f"({', '.join(types)})"


def name_of(block: CodeBlock) -> str:
    """The block's name in reasoning, made harmless: a file's name is repository text too."""
    module = block.block_type == "module"
    return escape(block.path.rpartition("/")[2] if module else block.qualified_name)
