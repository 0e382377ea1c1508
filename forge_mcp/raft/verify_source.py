"""Facts of JavaScript, TypeScript, Go and Java, derived from a syntax tree of the block alone.

verify_trees.py parses, verify_bodies.py says what a function does; here is what a definition
declares, and the interface that `verify` uses.
"""

from __future__ import annotations

import re
from functools import lru_cache

from tree_sitter import Node

from forge_mcp.raft.kinds import value_items
from forge_mcp.raft.verify_bodies import Body
from forge_mcp.raft.verify_text import documented
from forge_mcp.raft.verify_trees import (
    CLASSES,
    COMMENTS,
    DECORATORS,
    FUNCTIONS,
    Parsed,
    field_of,
    parameter_rows,
    parse,
    parts_of,
    text_of,
    tree_of,
    walk,
)
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import Fact

# -- the interface ----------------------------------------------------------------------------


def states(fact: Fact, block: CodeBlock) -> bool:
    """Whether a fact of one document follows from the block's source."""
    if fact.kind == "purpose":
        return documented(block, fact.value)
    parsed = tree_of(block)
    if parsed is None:
        return False
    items = list(value_items(fact))
    if fact.kind == "signature":
        return _squeeze(items[0]) == _squeeze(_signature(parsed))
    values = _values(fact, block, parsed)
    if values is None:
        return False
    if fact.kind in ("raises", "calls", "returns", "methods", "imports"):
        return sorted(items) == sorted(set(values))
    return items == values


def _values(fact: Fact, block: CodeBlock, parsed: Parsed) -> list[str] | None:
    """What the tree has for a fact, or None where it is not certain."""
    node = parsed.node
    if fact.kind == "decorators":
        return _decorators(parsed)
    if block.block_type == "module":
        if fact.kind == "imports":
            return _imports(node)
        return _constants(node, fact.subject) if fact.kind == "constant" else None
    if block.block_type == "class":
        if fact.kind == "bases":
            return _base_names(node)
        if fact.kind == "methods":
            return _methods(node)
        return _fields(node, fact.subject) if fact.kind == "constant" else None
    if fact.kind in ("parameters", "default", "annotation"):
        return _declared(fact, node)
    body = field_of(node, "body")
    if body is None:
        return None
    reading = Body(node, body, block.language)
    if fact.kind == "guard":
        return reading.guard(fact.subject)
    if fact.kind == "returns_when":
        return reading.returned_when(fact.subject)
    if fact.kind == "usage":
        return reading.usage(fact.subject)
    read = {"raises": reading.raises, "returns": reading.returns, "calls": reading.calls}
    return read[fact.kind]() if fact.kind in read else None


def bases(block: CodeBlock) -> list[str]:
    """What a class derives from, as it is written."""
    parsed = tree_of(block)
    return _base_names(parsed.node) if parsed is not None else []


def calls(block: CodeBlock, other: CodeBlock) -> bool:
    """Whether `block` calls `other` by its name, and nothing else of that name.

    A bare name must be no parameter or variable of `block` and be known there without a
    qualifier; a qualified one must be called on the block's own object, on the class of `other`,
    or on something that is no local name, as a module or a package is.
    """
    every, hidden, receiver = _calling(block.source_code, block.language, block.block_type)
    called = {name for name in every if name.rpartition(".")[2] == other.name}
    if len(called) != 1 or block.id == other.id:
        return False
    qualifier = called.pop().rpartition(".")[0]
    if not qualifier:
        if block.language == "java":
            return other.parent is not None or other.block_type == "class"
        return other.block_type != "method" and other.name not in hidden
    if qualifier in ("this", "super", receiver):
        return other.block_type == "method"
    owner = other.qualified_name.rpartition(".")[0].rpartition(".")[2]
    return qualifier.rpartition(".")[2] == owner or (
        other.block_type != "method" and qualifier.partition(".")[0] not in hidden
    )


@lru_cache(maxsize=32768)
def _calling(
    source: str, language: str, block_type: str
) -> tuple[frozenset[str], frozenset[str], str]:
    """What a function calls, the names that it gives a meaning of its own, and its receiver.

    A block is asked about once for each of its callees: only the names are kept, not the tree.
    """
    parsed = parse(source, language, block_type)
    body = field_of(parsed.node, "body") if parsed is not None else None
    if parsed is None or body is None:
        return frozenset(), frozenset(), ""
    reading = Body(parsed.node, body, language)
    listed = parts_of(field_of(parsed.node, "receiver"))  # of a Go method
    receiver = text_of(field_of(listed[0], "name")) if listed else ""
    return frozenset(reading.every_call()), frozenset(reading.local_names()), receiver


def overrides(block: CodeBlock) -> bool:
    """Whether a method says that it overrides: `@Override`, `override`, or a call on `super`."""
    parsed = tree_of(block)
    if parsed is None:
        return False
    if "@Override" in _decorators(parsed):
        return True
    if any(child.type == "override_modifier" for child in parsed.node.children):
        return True
    return f"super.{block.name}" in _calling(block.source_code, block.language, "method")[0]


def mentions(source: str, language: str, name: str) -> bool:
    """Whether a definition calls something of a name."""
    every = {
        called
        for block_type in ("function", "method")
        for called in _calling(source, language, block_type)[0]
    }
    return any(called.rpartition(".")[2] == name for called in every)


def parses(source: str, language: str, block_type: str) -> bool:
    """Whether a source is one whole definition."""
    return parse(source, language, block_type) is not None


# -- declarations -----------------------------------------------------------------------------


def _squeeze(code: str) -> str:
    """Code without white space and trailing commas, so that line breaks do not matter."""
    return re.sub(r",(?=[)\]}])", "", re.sub(r"\s+", "", code)).rstrip("{;")


def _leading(parsed: Parsed) -> list[Node]:
    """Comments and decorators, by their places, that stand before the definition's name."""
    found, stack = [], [parsed.tree.root_node]
    until = (field_of(parsed.node, "body") or parsed.node).start_byte
    while stack:
        node = stack.pop()
        if node.end_byte <= parsed.start or node.start_byte > until:
            continue
        if node.type in DECORATORS | COMMENTS:
            found.append(node)
        else:
            stack += node.children
    return sorted(found, key=lambda node: node.start_byte)


def _signature(parsed: Parsed) -> str:
    """From the first word that is neither comment nor decorator to the body."""
    at = parsed.start
    for node in _leading(parsed):
        if not parsed.source[at : node.start_byte].strip() and node.start_byte >= at:
            at = node.end_byte
    body = field_of(parsed.node, "body")
    end = body.start_byte if body is not None else parsed.node.end_byte
    return parsed.source[at:end].decode()


def _decorators(parsed: Parsed) -> list[str]:
    """Decorators of the definition itself, not those of its types and parameters."""
    around = {parsed.node.id}
    outer = parsed.node.parent
    while outer is not None:
        around.add(outer.id)
        outer = outer.parent
    found = []
    for node in _leading(parsed):
        holder = node.parent
        if holder is not None and holder.type == "modifiers":
            holder = holder.parent
        elif node.type != "decorator":  # Java's stand behind type parameters, too: of the type
            continue
        if node.type in DECORATORS and holder is not None and holder.id in around:
            found.append(text_of(node))
    return found


def _declared(fact: Fact, node: Node) -> list[str] | None:
    if fact.kind == "annotation" and fact.subject == "return":
        if node.type in ("method_declaration", "annotation_type_element_declaration") and field_of(
            node, "type"
        ):
            returned = field_of(node, "type")  # Java
        else:
            returned = field_of(node, "return_type", "result")
        stated = text_of(returned).removeprefix(":").strip()
        return [stated] if stated else None
    rows = parameter_rows(node)
    if rows is None:
        return None
    if fact.kind == "parameters":
        return [name for name, _, _ in rows]
    found = [row[2 if fact.kind == "default" else 1] for row in rows if row[0] == fact.subject]
    return found if len(found) == 1 and found[0] else None


def _base_names(node: Node) -> list[str]:
    """What a class derives from, as it is written; `extends` keeps type arguments apart."""
    found: list[Node] = []
    for child in node.named_children:
        if child.type in ("superclass", "super_interfaces", "extends_interfaces"):
            for part in parts_of(child):
                found += parts_of(part) if part.type == "type_list" else [part]
        elif child.type == "class_heritage":
            clauses = [
                c for c in parts_of(child) if c.type in ("extends_clause", "implements_clause")
            ]
            for clause in clauses or [child]:
                found += [c for c in parts_of(clause) if c.type != "type_arguments"]
        elif child.type == "extends_type_clause":
            found += parts_of(child)
    kind = field_of(node, "type") if node.type in ("type_spec", "type_alias") else None
    for child in (
        parts_of(kind)
        if kind is not None and kind.type in ("struct_type", "interface_type")
        else []
    ):
        if child.type == "field_declaration_list":
            fields = [c for c in parts_of(child) if c.type == "field_declaration"]
            found += [
                t for f in fields if field_of(f, "name") is None and (t := field_of(f, "type"))
            ]
        elif child.type == "type_elem":
            found.append(child)
    return [text_of(base) for base in found]


def _methods(node: Node) -> list[str]:
    """Names of the methods that stand in a class body, functions in fields counted."""
    found = []
    for member in _members(node):
        value = field_of(member, "value")
        if member.type in FUNCTIONS or member.type == "method_elem":
            found.append(text_of(field_of(member, "name")))
        elif member.type in ("field_definition", "public_field_definition") and value is not None:
            while value.type in ("parenthesized_expression", "as_expression"):
                value = parts_of(value)[0]
            if value.type in FUNCTIONS:
                found.append(text_of(field_of(member, "property", "name")))
    return found


def _members(node: Node) -> list[Node]:
    """What stands in a class body; Java's enumerations hold theirs behind their constants."""
    members = parts_of(field_of(node, "body", "type"))
    for part in [m for m in members if m.type == "enum_body_declarations"]:
        members += parts_of(part)
    return members


def _imports(root: Node) -> list[str]:
    """Modules that a file's own statements import, re-export or require."""
    found = []
    for node in walk(root, frozenset()):
        if node.type in ("import_statement", "export_statement"):
            for clause in [
                node,
                *(c for c in node.named_children if c.type == "import_require_clause"),
            ]:
                if (source := field_of(clause, "source")) is not None:
                    found.append(text_of(source).strip("'\"`"))
        elif node.type == "call_expression" and text_of(field_of(node, "function")) == "require":
            given = parts_of(field_of(node, "arguments"))
            found.append(
                text_of(given[0]).strip("'\"`") if given and given[0].type == "string" else "?"
            )
        elif node.type == "import_declaration" and node.named_children:  # Java; Go holds specs
            if node.named_children[0].type in ("scoped_identifier", "identifier"):
                stated = re.sub(r"^import\s+(?:static\s+)?", "", text_of(node))
                found.append(re.sub(r"[\s;]+", "", stated))
        elif node.type == "import_spec":
            found.append(text_of(field_of(node, "path")).strip('"`'))
    return found


def _constants(root: Node, name: str) -> list[str] | None:
    """The value of a constant that the file's top level declares once."""
    values = []
    for node in walk(root, FUNCTIONS | CLASSES):
        if (
            node.type in ("variable_declarator", "const_spec")
            and text_of(field_of(node, "name")) == name
        ):
            around = node.parent
            constant = node.type == "const_spec" or (
                around is not None and text_of(around).startswith("const")
            )
            values.append(text_of(field_of(node, "value")) if constant else "")
    return values if len(values) == 1 and values[0] else None


def _fields(node: Node, name: str) -> list[str] | None:
    """The value of a Java class's `static final` field."""
    values = []
    for member in _members(node):
        if member.type != "field_declaration":
            continue
        modifiers = {c.type for m in member.children if m.type == "modifiers" for c in m.children}
        for declared in parts_of(member):
            if (
                declared.type == "variable_declarator"
                and text_of(field_of(declared, "name")) == name
            ):
                constant = {"static", "final"} <= modifiers
                values.append(text_of(field_of(declared, "value")) if constant else "")
    return values if len(values) == 1 and values[0] else None
