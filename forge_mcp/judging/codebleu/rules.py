"""Which nodes of a language's grammar change where values come from, for `walks.py`.

They are those that the `codebleu` package 0.7.0 knows, less the types that today's grammars do not
have and the `for` loops of C, C++ and Rust, which it walks once, as anything else; `parameters` are
ours, for TypeScript. Python has a walk of its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """The node types of a language that change where values come from; by their field names."""

    definitions: frozenset[str] = frozenset()  # fields name, value
    assignments: frozenset[str] = frozenset()  # fields left, right
    parameters: frozenset[str] = frozenset()  # fields pattern, value: as assignments
    updates: frozenset[str] = frozenset()  # i++
    functions: frozenset[str] = frozenset()  # second and third child: as a definition
    branches: frozenset[str] = frozenset()
    skippable: bool = False  # what was before a branch stays possible, even if it has an else
    loops: frozenset[str] = frozenset()
    loop_head: str = ""  # the child of a for loop after which its children are walked again
    each_loops: frozenset[str] = frozenset()  # fields name, value, body
    while_loops: frozenset[str] = frozenset()  # walked twice as a whole


def _kinds(names: str) -> frozenset[str]:
    return frozenset(names.split())


_JAVASCRIPT = Rules(
    definitions=_kinds("variable_declarator"),
    assignments=_kinds("assignment_pattern augmented_assignment_expression"),
    parameters=_kinds("required_parameter optional_parameter"),  # TypeScript's grammars only
    updates=_kinds("update_expression"),
    branches=_kinds("if_statement else"),
    skippable=True,
    loops=_kinds("for_statement"),
    loop_head="variable_declaration",
    while_loops=_kinds("while_statement"),
)
_C = Rules(
    assignments=_kinds("assignment_expression"),
    branches=_kinds("if_statement else"),
    while_loops=_kinds("while_statement"),
)
RULES: dict[str, Rules] = {
    "javascript": _JAVASCRIPT,
    "typescript": _JAVASCRIPT,
    "tsx": _JAVASCRIPT,
    "go": Rules(
        definitions=_kinds("var_spec"),
        assignments=_kinds("assignment_statement"),
        updates=_kinds("inc_statement"),
        branches=_kinds("if_statement else"),
        skippable=True,
        loops=_kinds("for_statement"),
        loop_head="for_clause",
    ),
    "java": Rules(
        definitions=_kinds("variable_declarator"),
        assignments=_kinds("assignment_expression"),
        updates=_kinds("update_expression"),
        branches=_kinds("if_statement else"),
        loops=_kinds("for_statement"),
        loop_head="local_variable_declaration",
        each_loops=_kinds("enhanced_for_statement"),
        while_loops=_kinds("while_statement"),
    ),
    "rust": Rules(
        assignments=_kinds("assignment_expression compound_assignment_expr"),
        functions=_kinds("function_item"),
        branches=_kinds("if_expression match_expression else"),
        while_loops=_kinds("while_expression loop_expression"),
    ),
    "c": _C,
    "cpp": _C,
}
