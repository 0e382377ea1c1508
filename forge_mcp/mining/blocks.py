"""A file's definitions → rows of a corpus, with a score, and the reasons not to train on some.

Reasons: too_short and too_long (tokens), no_docstring (where it is required), trivial (getters,
setters, bodies that do nothing), private and test (where they are not asked for), license (not
one of project.allow_licenses), secret (it holds a private key), syntax_error (there is one in the
definition or around it, so that it may not be whole).

A class with too many tokens becomes a skeleton: its methods keep their signatures and docstrings
and lose their bodies, which stand in blocks of their own. A function is never cut.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from forge_mcp.mining.bindings import Bodies, hidden_names
from forge_mcp.mining.definitions import Definition, FileDefinitions, count_leaves
from forge_mcp.mining.languages import Language
from forge_mcp.mining.languages.base import Import
from forge_mcp.mining.licenses import allowed
from forge_mcp.mining.secrets import PRIVATE_KEY, Secret, redact, replace_secrets
from forge_mcp.mining.text import Text
from forge_mcp.settings import MiningSettings

INDEX_STEMS = ("__init__", "index")
SOURCE_ROOTS = ("src", "lib")


class Symbol(NamedTuple):
    """What dependencies.py must know of a block.

    kind: "declaration" for an overload, which its implementation stands for; "type" for what
        TypeScript knows beside a value of the same name; else the block's type.
    lexical: its name is bound where it stands, not assigned to some object.
    scopes: qualified names within which its bare names are looked up, the innermost first.
    hidden: names that parameters and local variables take.
    receiver, owner: the name by which it calls its own object, and that object's class.
    uses: the names that it calls, derives from and is decorated by.
    imports: those that are known in it alone.
    """

    id: str
    kind: str
    qualified_name: str
    bases: list[str]
    lexical: bool
    scopes: list[str]
    hidden: list[str]
    receiver: str
    owner: str
    uses: list[str]
    imports: list[Import]


class MinedBlock(NamedTuple):
    """A row of a corpus but for its dependencies, and why it is not trained on (nothing: it is)."""

    row: dict[str, Any]
    symbol: Symbol
    reasons: list[str]


def make_blocks(
    path: str,
    language: Language,
    decoded: Text,
    found: FileDefinitions,
    secrets: list[Secret],
    license_name: str | None,
    settings: MiningSettings,
    allow_licenses: list[str],
) -> list[MinedBlock]:
    """All blocks of a file in source order, the module's first.

    Args:
        path: from the repository's root, with forward slashes.
        language: of the file.
        decoded: the file's content.
        found: its definitions; their offsets refer to `decoded.utf8`.
        secrets: credentials of the file; they are replaced in every text of every block.
        license_name: SPDX expression or None.
        settings: the filters.
        allow_licenses: SPDX identifiers that may be trained on; empty for all.
    """
    test_file = language.is_test_file(path)
    licensed = not allow_licenses or allowed(license_name, allow_licenses)
    module = [found.module] if found.module is not None else []
    known = {definition.name for definition in found.definitions}
    known.update(imported.local.partition(".")[0] for imported in found.imported)
    bodies = Bodies(decoded.utf8)
    seen: Counter[str] = Counter()
    mined = []
    for definition in [*module, *found.definitions]:
        row = _row(path, language, decoded, definition, license_name, test_file)
        identity = row["id"]
        seen[identity] += 1
        if seen[identity] > 1:
            row["id"] = f"{identity}#{seen[identity]}"
        metadata = row["metadata"]
        if definition.kind == "class" and definition.tokens > settings.max_tokens:
            _skeleton(row, definition, found.definitions, decoded.utf8, language)
        row["quality_score"] = quality_score(row, settings)
        reasons = [
            reason
            for reason, applies in (
                ("too_short", row["tokens"] < settings.min_tokens),
                ("too_long", row["tokens"] > settings.max_tokens),
                ("no_docstring", settings.require_docstring and not row["docstring"]),
                ("trivial", definition.is_trivial),
                ("private", not settings.include_private and metadata["is_private"]),
                ("test", not settings.include_tests and metadata["is_test"]),
                ("license", not licensed),
                ("syntax_error", definition.has_error or definition.in_error),
            )
            if applies
        ]
        if secrets:
            reasons += _redact(row, secrets)
        row["content_hash"] = hashlib.sha256(row["source_code"].encode()).hexdigest()
        symbol = _symbol(row, definition, bodies, language.name, known)
        mined.append(MinedBlock(row, symbol, reasons))
    return mined


def _row(
    path: str,
    language: Language,
    decoded: Text,
    definition: Definition,
    license_name: str | None,
    test_file: bool,
) -> dict[str, Any]:
    name, qualified = definition.name, definition.qualified_name
    identity = f"{path}::{qualified}"
    if definition.kind == "module":
        name, qualified = _module_names(path)
        identity = f"{path}::<module>"
    described = definition.described
    start, end = definition.start_byte, definition.end_byte
    metadata = _metadata(definition, test_file)
    if decoded.encoding != "utf-8":
        metadata["encoding"] = decoded.encoding
    row = {
        "id": identity,
        "content_hash": "",
        "path": path,
        "language": language.name,
        "block_type": definition.kind,
        "name": name,
        "qualified_name": qualified,
        "parent": definition.parent_name,
        "signature": described.signature,
        "docstring": described.docstring,
        "source_code": decoded.utf8[start:end].decode(),
        "start_line": definition.start_row + 1,
        "end_line": definition.end_row + 1,
        "start_byte": decoded.file_offset(start),
        "end_byte": decoded.file_offset(end),
        "tokens": definition.tokens,
        "quality_score": 0.0,
        "license": license_name,
        "metadata": metadata,
    }
    for first_line, cell in decoded.cells:
        if first_line <= definition.start_row + 1:
            metadata["cell"] = cell
    return row


def _module_names(path: str) -> tuple[str, str]:
    """('core', 'app.core') of 'src/app/core.py'; a package's index file is named as its folder."""
    pure = PurePosixPath(path)
    parts = [*pure.parent.parts, pure.name.split(".")[0] or pure.name]
    if len(parts) > 1 and parts[-1] in INDEX_STEMS:
        parts.pop()
    if len(parts) > 1 and parts[0] in SOURCE_ROOTS:
        parts = parts[1:]
    return parts[-1], ".".join(parts)


def _metadata(definition: Definition, test_file: bool) -> dict[str, Any]:
    """What other rooms may quote: verbatim source text. Keys that do not apply are absent."""
    described, kind = definition.described, definition.kind
    metadata: dict[str, Any]
    if kind == "class":
        metadata = {
            "bases": described.bases,
            "methods": list(definition.methods),
            "decorators": described.decorators,
        }
    elif kind == "module":
        metadata = {
            "imports": definition.imports,
            "constants": [{"name": name, "value": value} for name, value in definition.constants],
        }
    else:
        metadata = {
            "parameters": [
                {
                    "name": parameter.name,
                    "annotation": parameter.annotation,
                    "default": parameter.default,
                    "kind": parameter.kind,
                }
                for parameter in described.parameters or ()
            ],
            "returns": described.returns,
            "raises": list(definition.raises),
            "return_expressions": list(definition.returns),
            "is_async": False,
            "decorators": described.decorators,
        }
    metadata["calls"] = list(definition.calls)
    metadata["complexity"] = 1 + definition.branches
    metadata["is_private"] = definition.is_private
    metadata["is_test"] = test_file or definition.is_test
    if definition.label:
        metadata["label"] = definition.label
    if described.extra:
        metadata.update(described.extra)
    return metadata


def _symbol(
    row: dict[str, Any], definition: Definition, bodies: Bodies, language: str, known: set[str]
) -> Symbol:
    described = definition.described
    decorators = [decorator.split("(")[0].strip() for decorator in described.decorators]
    uses = dict.fromkeys(decorators)
    uses.update(dict.fromkeys(map(base_name, described.bases)))
    uses.update(definition.calls)
    uses.pop("", None)
    overload = language in ("typescript", "tsx") and definition.body_byte < 0
    overload = overload or (
        language == "python" and any(d.rpartition(".")[2] == "overload" for d in decorators)
    )
    is_class = definition.kind == "class"
    hidden = hidden_names(definition, bodies, language, uses, known)
    # A decorator is looked up outside of the function.
    outer = {decorator.partition(".")[0] for decorator in decorators} - {
        call.partition(".")[0] for call in definition.calls
    }
    kind = "declaration" if overload and not is_class else row["block_type"]
    if is_class and definition.label in ("type", "interface") and language in ("typescript", "tsx"):
        kind = "type"
    imports = list(definition.local_imports)
    around = definition.parent
    while around is not None:
        imports += around.local_imports
        around = around.parent
    return Symbol(
        row["id"],
        kind,
        row["qualified_name"],
        described.bases,
        definition.is_lexical,
        # What a class derives from is not looked up in the class itself.
        [s for s in definition.scopes if not is_class or s != definition.qualified_name],
        [name for name in hidden if name not in outer],
        definition.receiver,
        definition.owner,
        list(uses),
        imports,
    )


def base_name(text: str) -> str:
    """`Base` of `Base[T]`, `Base<T>` or `*Base`."""
    for mark in "[(<":
        text = text.partition(mark)[0]
    return text.lstrip("*").strip()


def quality_score(row: dict[str, Any], settings: MiningSettings) -> float:
    """How much there is to learn from a block, 0 to 1: the mean of four parts.

    documented    1 with a docstring, else 0
    docstring     its words, 1 from 20 words on
    complexity    cyclomatic complexity (McCabe 1976), 1 from 5 on
    length        tokens, 1 from four times the minimum (half of the maximum, if that is less)
                  up to half of the maximum, then falling
    """
    tokens: int = row["tokens"]
    docstring: str = row["docstring"]
    words = len(docstring.split()) if docstring else 0
    half = max(settings.max_tokens / 2, 1)
    if tokens <= half:
        length = min(1.0, tokens / max(min(4 * settings.min_tokens, half), 1))
    else:
        length = max(0.0, 2 - tokens / half)
    complexity: float = min(1.0, (row["metadata"]["complexity"] - 1) / 4)
    return round(((1.0 if words else 0.0) + min(1.0, words / 20) + complexity + length) / 4, 4)


# -- skeletons -------------------------------------------------------------------------------


def _skeleton(
    row: dict[str, Any],
    definition: Definition,
    definitions: list[Definition],
    source: bytes,
    language: Language,
) -> None:
    """Take the bodies of its methods, and of those of its inner classes, out of a class.

    `metadata.skeleton` says where its lines stand: [line of the text from 0, line of the file].
    """
    parts: list[bytes] = []
    lines: list[list[int]] = []
    at, line, text_line = definition.start_byte, definition.start_row + 1, 0

    def keep(end: int, instead: bytes) -> None:
        nonlocal line, text_line
        lines.append([text_line, line])
        kept = source[at:end] + instead
        parts.append(kept)
        text_line += kept.count(b"\n")

    for method in definitions[definitions.index(definition) + 1 :]:
        if method.start_byte >= definition.end_byte:
            break
        if method.kind == "class" or method.body_byte < at:  # what stands in a body goes with it
            continue
        braces = source[method.body_byte : method.body_byte + 1] == b"{"
        documented = method.described.documented_to
        keep(
            documented or method.body_byte,
            b"{ ... }" if braces else _indented(source, method, documented),
        )
        line += source.count(b"\n", at, method.end_byte)
        at = method.end_byte
    if not lines:
        return
    keep(definition.end_byte, b"")
    text = b"".join(parts)
    row["source_code"] = text.decode()
    row["tokens"] = count_leaves(language.parse(language.fragment_prefix + text).root_node)
    row["metadata"]["skeleton"] = lines


def _indented(source: bytes, method: Definition, documented: int) -> bytes:
    """`...` in place of a body, on a line of its own behind a docstring."""
    if not documented:
        return b"..."
    line = source[source.rfind(b"\n", 0, method.body_byte) + 1 : method.body_byte]
    return b"\n" + line + b"..." if not line.strip() else b"; ..."


# -- secrets ---------------------------------------------------------------------------------


def _redact(row: dict[str, Any], secrets: list[Secret]) -> list[str]:
    """Replace credentials in every text of a block; ['secret'] where one was a private key."""
    inside = [secret for secret in secrets if secret.text in row["source_code"]]
    if not inside:
        return []
    row["source_code"] = replace_secrets(row["source_code"], inside)
    # Cleaning took the indentation from a docstring: a key of several lines is looked for again.
    row["docstring"] = redact(replace_secrets(row["docstring"], inside))[0]
    row["signature"] = replace_secrets(row["signature"], inside)
    row["metadata"] = _replaced(row["metadata"], inside)
    row["metadata"]["secrets_redacted"] = len(inside)
    return ["secret"] if any(secret.placeholder == PRIVATE_KEY for secret in inside) else []


def _replaced(value: Any, secrets: list[Secret]) -> Any:
    if isinstance(value, str):
        return replace_secrets(value, secrets)
    if isinstance(value, list):
        return [_replaced(item, secrets) for item in value]
    if isinstance(value, dict):
        return {key: _replaced(item, secrets) for key, item in value.items()}
    return value
