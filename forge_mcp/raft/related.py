"""Facts that several blocks give together: callees, base classes, overrides, callers, tests.

Which block a name means was resolved by mining; here its answers are put together over a whole
corpus. A list of callers is given only where nothing else in the corpus can be one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from forge_mcp.raft.derivation import derive_kind
from forge_mcp.raft.kinds import FUNCTIONS, RELATED, make_fact, value_items
from forge_mcp.raft.scan import mask
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import Fact

_CALLED = re.compile(r"([A-Za-z_$][\w$]*)\s*(?:<[\w\s,.?&\[\]]*>\s*)?\(")
# How a method's own code calls the one that it overrides.
_SUPER = {
    "python": r"\bsuper\([^()]*\)\.{name}\s*\(",
    "javascript": r"\bsuper\.{name}\s*\(",
    "typescript": r"\bsuper\.{name}\s*\(",
    "tsx": r"\bsuper\.{name}\s*\(",
}

Related = tuple[Fact, list[CodeBlock]]


def overlapping(one: CodeBlock, other: CodeBlock) -> bool:
    """Whether two blocks share code of one file, as a class and its method do."""
    return (
        one.path == other.path
        and one.start_byte < other.end_byte
        and other.start_byte < one.end_byte
    )


def _only(code: str, block: CodeBlock, name: str, qualifier: str) -> bool:
    """Whether every `name(` of a text, its own header aside, stands behind the same qualifier."""
    spots = [m.start() for m in re.finditer(rf"(?<![\w$]){re.escape(name)}\s*\(", code)]
    for spot in spots[block.name == name :]:
        before = code[max(0, spot - len(qualifier) - 1) : spot]
        if not before.endswith(qualifier) or re.match(r"[\w$.]$", before.removesuffix(qualifier)):
            return False
    return True


class CorpusIndex:
    """What the blocks of a corpus say of each other.

    Args:
        blocks: what is trained on; callees, bases and callers are taken from them.
        others: the rest of the repository (rejected rows): tests are taken from them, and a
            caller among them keeps a list of callers from being complete.
    """

    def __init__(self, blocks: Iterable[CodeBlock], others: Iterable[CodeBlock] = ()) -> None:
        self._blocks = {block.id: block for block in blocks}
        self._others = {block.id: block for block in others if block.id not in self._blocks}
        self._places: dict[tuple[str, str], int] = defaultdict(int)
        self._users: dict[str, list[str]] = defaultdict(list)  # block id → ids of those that use it
        self._callers: dict[str, list[str]] = defaultdict(list)  # name → ids of those with `name(`
        for block in self._everything():
            self._places[(block.path, block.qualified_name)] += 1
            for used in block.dependencies:
                self._users[used].append(block.id)
            if block.block_type == "class":  # its methods are blocks of their own
                named = {str(call).rpartition(".")[2] for call in block.metadata.get("calls") or ()}
            else:
                named = set(_CALLED.findall(block.source_code))
            for name in named:
                self._callers[name].append(block.id)

    def _everything(self) -> Iterator[CodeBlock]:
        yield from self._blocks.values()
        yield from self._others.values()

    def block(self, block_id: str) -> CodeBlock | None:
        """A block of the corpus, trained on or not."""
        return self._blocks.get(block_id) or self._others.get(block_id)

    def ambiguous(self, block: CodeBlock) -> bool:
        """Whether two blocks of one file share the qualified name."""
        return self._places[(block.path, block.qualified_name)] > 1

    def callees(self, block: CodeBlock) -> list[CodeBlock]:
        """The blocks that are trained on and that `block` calls for certain, in its order."""
        return [other for other in self._used(block) if self._called_as(block, other)]

    def related(self, block: CodeBlock) -> list[Related]:
        """Every fact of several documents about a block, with its oracles, `block` first."""
        if self.ambiguous(block):
            return []
        found: list[Related] = []
        for other in self._used(block):
            if self._called_as(block, other):
                found += self._callee(block, other)
            found += self._base(block, other)
        found += self._overrides(block)
        found += self._called_by(block)
        found += self._tested(block)
        return found

    def _used(self, block: CodeBlock) -> Iterator[CodeBlock]:
        for other_id in block.dependencies:
            other = self._blocks.get(other_id)
            if other is None or other.language != block.language or overlapping(block, other):
                continue
            if not self.ambiguous(other):
                yield other

    @staticmethod
    def _called_as(block: CodeBlock, other: CodeBlock) -> bool:
        """Whether everything of the name that `block` calls is one thing, which means `other`."""
        if block.block_type not in FUNCTIONS:
            return False
        calls = [str(call) for call in block.metadata.get("calls") or ()]
        named = [call for call in calls if call.rpartition(".")[2] == other.name]
        if len(named) != 1:
            return False
        qualifier = named[0].removesuffix(other.name)
        return _only(block.source_code, block, other.name, qualifier) or _only(
            mask(block.source_code, block.language), block, other.name, qualifier
        )

    @staticmethod
    def _callee(block: CodeBlock, other: CodeBlock) -> Iterator[Related]:
        for kind in ("location", "signature", "raises", "purpose", "default"):
            for fact in derive_kind(other, kind):
                subject = f"{other.name}.{fact.subject}" if kind == "default" else other.name
                twin = make_fact(f"callee_{kind}", block, value_items(fact), subject)
                if twin is not None:
                    yield twin, [block, other]

    @staticmethod
    def _base(block: CodeBlock, other: CodeBlock) -> Iterator[Related]:
        if block.block_type != "class" or other.block_type != "class":
            return
        bases = [str(base) for base in block.metadata.get("bases") or ()]
        if len(bases) != 1 or re.split(r"[<\[(]", bases[0])[0].rpartition(".")[2] != other.name:
            return
        for fact in derive_kind(other, "location"):
            twin = make_fact("base_location", block, value_items(fact), other.name)
            if twin is not None:
                yield twin, [block, other]

    def _overrides(self, block: CodeBlock) -> Iterator[Related]:
        owner = self.block(f"{block.path}::{block.parent}")
        if block.block_type != "method" or owner is None or not self._says_override(block):
            return
        other = self._inherited(owner, block.name, set())
        if other is None or other.id == block.id or self.ambiguous(other):
            return
        fact = make_fact("overrides", block, (other.qualified_name,), other.name)
        if fact is not None:
            yield fact, [block, other]

    @staticmethod
    def _says_override(block: CodeBlock) -> bool:
        if block.language == "java":
            return "Override" in (block.metadata.get("decorators") or ())
        pattern = _SUPER.get(block.language)
        if pattern is None:
            return False
        stated = block.language != "python" and re.search(r"\boverride\b", block.signature)
        named = pattern.replace("{name}", re.escape(block.name))
        return bool(stated or re.search(named, mask(block.source_code, block.language)))

    def _inherited(self, owner: CodeBlock, name: str, seen: set[str]) -> CodeBlock | None:
        """The method that a class inherits; None where a base is not of this corpus.

        Only single inheritance is followed: with several bases, another one might come first.
        """
        bases = [str(base) for base in owner.metadata.get("bases") or ()]
        if len(bases) != 1 or owner.id in seen:
            return None
        base = re.split(r"[<\[(]", bases[0])[0].rpartition(".")[2]
        known = (self.block(used) for used in owner.dependencies)
        classes = [b for b in known if b is not None and b.block_type == "class" and b.name == base]
        if len(classes) != 1:
            return None
        held = classes[0]
        own = f"{held.path}::{held.qualified_name}.{name}"
        if self.block(own) is not None:
            return self._blocks.get(own)
        if name in (held.metadata.get("methods") or ()):
            return None
        return self._inherited(held, name, seen | {owner.id})

    def _called_by(self, block: CodeBlock) -> Iterator[Related]:
        if block.block_type not in FUNCTIONS:
            return
        users = set(self._users[block.id]) - {block.id}
        callers = [self._blocks[used] for used in users if used in self._blocks]
        if not users or len(callers) < len(users) or len(callers) > RELATED["callers"]:
            return
        if any(caller.language != block.language for caller in callers):
            return
        possible = set(self._callers[block.name]) - {block.id}
        for caller in callers:
            if caller.block_type not in FUNCTIONS or self.ambiguous(caller):
                return
            if overlapping(block, caller) or not self._called_as(caller, block):
                return
        if any(overlapping(a, b) for a in callers for b in callers if a is not b):
            return
        if possible != users:  # another `name(`, however it is meant
            return
        callers.sort(key=lambda caller: (caller.path, caller.start_byte))
        names = tuple(caller.qualified_name for caller in callers)
        fact = make_fact("callers", block, names)
        if fact is not None and len(set(names)) == len(names):
            yield fact, [block, *callers]

    def _tested(self, block: CodeBlock) -> Iterator[Related]:
        """The test that calls a block; of several, the one whose name is nearest to its own."""
        tests = []
        for used in self._users[block.id]:
            test = self._others.get(used)
            if test is None or test.language != block.language:
                continue
            if test.block_type not in FUNCTIONS or not test.metadata.get("is_test"):
                continue
            if self._named_test(test) and self._called_as(test, block) and not self.ambiguous(test):
                tests.append(test)
        if not tests:
            return
        tests.sort(
            key=lambda test: (
                block.name.lower() not in test.name.lower(),
                len(test.source_code),
                test.id,
            )
        )
        fact = make_fact("tests", block, (tests[0].qualified_name,))
        if fact is not None:
            yield fact, [block, tests[0]]

    @staticmethod
    def _named_test(test: CodeBlock) -> bool:
        """A test itself, not a helper beside it."""
        reasons = set(getattr(test, "reasons", ()))
        named = re.match(r"(?i)_*(?:test|should|it)|.*[tT]est", test.name)
        marked = any("Test" in str(mark) for mark in test.metadata.get("decorators") or ())
        return bool(named or marked) and reasons <= {"test", "too_short", "private", "trivial"}
