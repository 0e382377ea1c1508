"""The walks that find a text's data flow.

They follow the order of the text; branches are walked apart and their ends joined, loops are walked
twice. What is followed in each language is what the `codebleu` package 0.7.0 follows, to the
letter, so that its numbers and ours can be compared. That is less than one would think: not
JavaScript's plain assignments, not Go's short declarations, not the declarations of C and C++
(which are walked by rules that were written for C#), and of a Rust function nothing but that its
name comes from its parameters. Beyond the package: TypeScript, walked as JavaScript.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tree_sitter import Node, Tree

from forge_mcp.judging.codebleu.rules import RULES, Rules

COMES_FROM, COMPUTED_FROM = "comesFrom", "computedFrom"
# Strings are one token, whatever the grammar finds in them.
_STRINGS = frozenset({"string_literal", "string", "character_literal"})

States = dict[str, tuple[int, ...]]  # name → the tokens at which it may have got its value


@dataclass(frozen=True)
class Edge:
    """The token of number `at`, which is `name`, gets its value from other tokens.

    `sources` are their names and `origins` their numbers; both empty where a name appears first.
    """

    name: str
    at: int
    relation: str
    sources: tuple[str, ...]
    origins: tuple[int, ...]

    @classmethod
    def joined(cls, edges: Sequence[Edge]) -> Edge:
        """Edges of one token as one, of the last one's relation; a single one stays as it is."""
        last = edges[-1]
        if len(edges) == 1:
            return last
        sources = dict.fromkeys(name for edge in edges for name in edge.sources)
        origins = {origin for edge in edges for origin in edge.origins}
        return cls(last.name, last.at, last.relation, tuple(sources), tuple(sorted(origins)))


Visit = tuple[Node, States, list[Edge]]  # a node to walk next, with what its walk reads and writes
Walked = tuple[States, list[Edge]]  # the states after a loop, and its edges


class Incomplete(Exception):
    """A node lacks a child without which it cannot be walked, or a token has come apart.

    The latter is so where Python's `a.b = "c"` is assigned item by item: both sides have three.
    """


def walk(tree: Tree, source: bytes, language: str) -> list[Edge]:
    """All edges of a text, those of loops joined by token and relation.

    Raises:
        Incomplete: see there.
    """
    if language == "python":
        return _PythonWalk(tree, source).edges()
    return _RuledWalk(tree, source, RULES[language]).edges()


class _Walk(ABC):
    """One walk over a tree.

    A visitor is a generator: it yields the nodes that are to be walked before it goes on. `edges`
    does that with a stack of its own, since generated code nests as deep as it likes.
    """

    def __init__(self, tree: Tree, source: bytes) -> None:
        self._root = tree.root_node
        self._tokens: dict[tuple[int, int], tuple[int, str]] = {}
        for number, node in enumerate(_leaves(tree.root_node)):
            place = (node.start_byte, node.end_byte)
            # The package puts a token together from its lines, so that one that ends a line is "".
            self._tokens[place] = (number, source[slice(*place)].decode().replace("\n", ""))
        # What a loop does depends on the states before it only. Without this, the walks of n nested
        # loops, each walked twice, would be 2^n.
        self._loops: dict[tuple[int, frozenset[tuple[str, tuple[int, ...]]]], Walked] = {}

    def edges(self) -> list[Edge]:
        """The edges of the whole tree."""
        edges: list[Edge] = []
        stack = [self._visit((self._root, {}, edges))]
        while stack:
            following = next(stack[-1], None)
            if following is None:
                stack.pop()
            else:
                stack.append(self._visit(following))
        return edges

    def _visit(self, visit: Visit) -> Iterator[Visit]:
        node, states, edges = visit
        if _is_token(node):
            self._use(node, states, edges)
            return iter(())
        return self._walk(node, states, edges)

    @abstractmethod
    def _walk(self, node: Node, states: States, edges: list[Edge]) -> Iterator[Visit]:
        """Add the edges of `node`, no token, to `edges`; bring `states` to what they are after."""

    @abstractmethod
    def _walk_loop(self, node: Node, states: States, edges: list[Edge]) -> Iterator[Visit]:
        """The same for a loop, all its rounds."""

    def _use(self, node: Node, states: States, edges: list[Edge]) -> None:
        """A token by itself: a name that is known comes from where it got its value."""
        number, text = self._token(node)
        if text == node.type:  # an operator, bracket or keyword
            return
        if text in states:
            edges.append(Edge(text, number, COMES_FROM, (text,), states[text]))
            return
        if node.type == "identifier":
            states[text] = (number,)
        edges.append(Edge(text, number, COMES_FROM, (), ()))

    def _loop(self, node: Node, states: States, edges: list[Edge]) -> Iterator[Visit]:
        """A loop, or what the same loop did when it was met in the same states before."""
        key = (node.id, frozenset(states.items()))
        if key not in self._loops:
            found: list[Edge] = []
            yield from self._walk_loop(node, states, found)
            groups: dict[tuple[str, int, str], list[Edge]] = {}
            for edge in found:
                groups.setdefault((edge.name, edge.at, edge.relation), []).append(edge)
            joined = [Edge.joined(group) for group in groups.values()]
            self._loops[key] = (dict(states), joined)
        after, joined = self._loops[key]
        states.update(after)
        edges.extend(joined)

    def _define(
        self, name: Node | None, value: Node | None, states: States, edges: list[Edge]
    ) -> Iterator[Visit]:
        """A name that begins here, with a value or without."""
        if value is None:
            for number, text in self._names(name):
                edges.append(Edge(text, number, COMES_FROM, (), ()))
                states[text] = (number,)
        else:
            yield value, states, edges
            self._link(name, value, COMES_FROM, states, edges)

    def _link(
        self,
        left: Node | None,
        right: Node | None,
        relation: str,
        states: States,
        edges: list[Edge],
    ) -> None:
        """Every name on the left gets its value from every name on the right: an edge each."""
        names, values = self._names(left), self._names(right)
        for number, text in names:
            edges += [Edge(text, number, relation, (name,), (origin,)) for origin, name in values]
            states[text] = (number,)

    def _names(self, node: Node | None) -> list[tuple[int, str]]:
        """The tokens in a node with their numbers, operators, brackets and keywords left out."""
        tokens = [(leaf.type, self._token(leaf)) for leaf in _leaves(_present(node))]
        return [token for kind, token in tokens if token[1] != kind]

    def _token(self, node: Node) -> tuple[int, str]:
        found = self._tokens.get((node.start_byte, node.end_byte))
        if found is None:
            raise Incomplete
        return found


class _PythonWalk(_Walk):
    """The walk of Python: tuples are taken apart; of a comprehension, its `for` is read first."""

    def _walk(self, node: Node, states: States, edges: list[Edge]) -> Iterator[Visit]:
        kind = node.type
        if kind == "default_parameter":
            name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
            yield from self._define(name, value, states, edges)
        elif kind == "for_in_clause":
            left, right = node.child_by_field_name("left"), node.children[-1]
            yield from self._assign([_present(left)], [right], states, edges)
        elif kind in ("assignment", "augmented_assignment"):
            if node.child_by_field_name("right") is not None:
                yield from self._assign(*_sides(node), states, edges)
        elif kind == "if_statement":
            yield from self._branch(node, states, edges)
        elif kind in ("for_statement", "while_statement"):
            yield from self._loop(node, states, edges)
        else:
            for child in sorted(node.children, key=lambda child: child.type != "for_in_clause"):
                yield child, states, edges

    def _assign(
        self, lefts: list[Node], rights: list[Node], states: States, edges: list[Edge]
    ) -> Iterator[Visit]:
        """Every name of a left side is computed from all of its right side: one edge a name."""
        for right in rights:
            yield right, states, edges
        for left, right in zip(lefts, rights, strict=True):
            names, values = self._names(left), self._names(right)
            sources = tuple(name for _, name in values)
            origins = tuple(origin for origin, _ in values)
            for number, text in names:
                edges.append(Edge(text, number, COMPUTED_FROM, sources, origins))
                states[text] = (number,)

    def _branch(self, node: Node, states: States, edges: list[Edge]) -> Iterator[Visit]:
        before, outcomes = dict(states), []
        for child in node.children:
            if child.type in ("elif_clause", "else_clause"):
                outcome = dict(before)
                yield child, outcome, edges
                outcomes.append(outcome)
            else:
                yield child, states, edges
        if all(child.type != "else_clause" for child in node.children):
            outcomes.append(before)
        _join(states, outcomes)

    def _walk_loop(self, node: Node, states: States, edges: list[Edge]) -> Iterator[Visit]:
        if node.type == "while_statement":
            for child in node.children * 2:
                yield child, states, edges
            return
        body = node.children[-1]
        for _ in range(2):
            yield from self._assign(*_sides(node), states, edges)
            if body.type == "block":
                yield body, states, edges


class _RuledWalk(_Walk):
    """The walk of every other language, by its rules."""

    def __init__(self, tree: Tree, source: bytes, rules: Rules) -> None:
        super().__init__(tree, source)
        self._rules = rules

    def _walk(self, node: Node, states: States, edges: list[Edge]) -> Iterator[Visit]:
        rules, kind, field = self._rules, node.type, node.child_by_field_name
        if kind in rules.definitions:
            yield from self._define(field("name"), field("value"), states, edges)
        elif kind in rules.functions:
            name, value = [*node.children[1:3], None, None][:2]
            yield from self._define(name, value, states, edges)
        elif kind in rules.assignments:
            yield from self._assign(field("left"), field("right"), states, edges)
        elif kind in rules.parameters and field("value") is not None:
            yield from self._assign(field("pattern"), field("value"), states, edges)
        elif kind in rules.updates:
            self._link(node, node, COMPUTED_FROM, states, edges)
        elif kind in rules.branches:
            yield from self._branch(node, states, edges)
        elif kind in rules.loops or kind in rules.each_loops or kind in rules.while_loops:
            yield from self._loop(node, states, edges)
        else:
            for child in node.children:
                yield child, states, edges

    def _assign(
        self, left: Node | None, right: Node | None, states: States, edges: list[Edge]
    ) -> Iterator[Visit]:
        yield _present(right), states, edges
        self._link(left, right, COMPUTED_FROM, states, edges)

    def _branch(self, node: Node, states: States, edges: list[Edge]) -> Iterator[Visit]:
        """What follows the first branch is walked from the states before it; the ends are joined.

        Only Java's and Go's grammars have the `else`, and what follows it, side by side with the
        first branch. Elsewhere they are one node, which is walked as if it followed that branch.
        """
        before, outcomes, first = dict(states), [], True
        for child in node.children:
            first = first and child.type not in self._rules.branches
            outcome = states if first else dict(before)
            yield child, outcome, edges
            if not first:
                outcomes.append(outcome)
        if self._rules.skippable or all("else" not in child.type for child in node.children):
            outcomes.append(before)
        _join(states, outcomes)

    def _walk_loop(self, node: Node, states: States, edges: list[Edge]) -> Iterator[Visit]:
        rules, field = self._rules, node.child_by_field_name
        if node.type in rules.each_loops:
            body = _present(field("body"))
            for _ in range(2):
                yield from self._assign(field("name"), field("value"), states, edges)
                yield body, states, edges
            return
        for child in node.children:
            yield child, states, edges
        for child in self._again(node):
            yield child, states, edges

    def _again(self, node: Node) -> list[Node]:
        """What a loop's second round walks: all of a `while`; of a `for`, what follows its head."""
        children = node.children
        if node.type in self._rules.while_loops:
            return children
        for i, child in enumerate(children):
            if child.type == self._rules.loop_head:
                update = child.child_by_field_name("update")
                return [*([update] if update else []), *children[i + 1 :]]
        return []


def _is_token(node: Node) -> bool:
    return (not node.child_count or node.type in _STRINGS) and node.type != "comment"


def _leaves(node: Node) -> Iterator[Node]:
    """The tokens in a node, in the order of the text."""
    waiting = [node]
    while waiting:
        here = waiting.pop()
        if _is_token(here):
            yield here
        else:
            waiting.extend(reversed(here.children))


def _present(node: Node | None) -> Node:
    if node is None:
        raise Incomplete
    return node


def _sides(node: Node) -> tuple[list[Node], list[Node]]:
    """Left and right of an assignment or a `for`: item by item where they have as many items.

    Items are children other than commas: of tuples and lists, but of any other expression too.
    """
    left = _present(node.child_by_field_name("left"))
    right = _present(node.child_by_field_name("right"))
    lefts = [child for child in left.children if child.type != ","]
    rights = [child for child in right.children if child.type != ","]
    return (lefts, rights) if lefts and len(lefts) == len(rights) else ([left], [right])


def _join(states: States, outcomes: list[States]) -> None:
    """Add to `states`, one end of a branch, what every name may be at the other ends."""
    for outcome in outcomes:
        for name, places in outcome.items():
            states[name] = tuple(sorted({*states.get(name, ()), *places}))
