"""A file's definitions → `CodeBlock`, with a score, and the reasons not to train on some.

Reasons: too_short and too_long (tokens), no_docstring (where it is required), trivial (getters,
setters, bodies that do nothing), private and test (where they are not asked for), license (not
one of project.allow_licenses), secret (it holds a private key).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from forge_mcp.mining.definitions import Definition, FileDefinitions
from forge_mcp.mining.files import Text
from forge_mcp.mining.languages import Language
from forge_mcp.mining.secrets import PRIVATE_KEY, Secret, redact, replace_secrets
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.settings import MiningSettings

INDEX_STEMS = ("__init__", "index")
SOURCE_ROOTS = ("src", "lib")


@dataclass(frozen=True)
class MinedBlock:
    """A block, and why it is not trained on (nothing: it is)."""

    block: CodeBlock
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
        license_name: SPDX identifier or None.
        settings: the filters.
        allow_licenses: SPDX identifiers that may be trained on; empty for all.
    """
    test_file = language.is_test_file(path)
    module = [found.module] if found.module is not None else []
    seen: Counter[str] = Counter()
    mined = []
    for definition in [*module, *found.definitions]:
        block = _block(path, language, decoded, definition, license_name, test_file)
        seen[block.id] += 1
        if seen[block.id] > 1:
            block.id = f"{block.id}#{seen[block.id]}"
        block.quality_score = quality_score(block, settings)
        reasons = _reasons(block, definition, settings, allow_licenses)
        if secrets:
            reasons += _redact(block, secrets)
        block.content_hash = hashlib.sha256(block.source_code.encode()).hexdigest()
        mined.append(MinedBlock(block, reasons))
    return mined


def _block(
    path: str,
    language: Language,
    decoded: Text,
    definition: Definition,
    license_name: str | None,
    test_file: bool,
) -> CodeBlock:
    name, qualified = definition.name, definition.qualified_name
    identity = f"{path}::{qualified}"
    if definition.kind == "module":
        name, qualified = _module_names(path)
        identity = f"{path}::<module>"
    described = definition.described
    return CodeBlock(
        id=identity,
        content_hash="",
        path=path,
        language=language.name,
        block_type=definition.kind,
        name=name,
        qualified_name=qualified,
        parent=definition.parent_name,
        signature=described.signature,
        docstring=described.docstring,
        source_code=decoded.utf8[definition.start_byte : definition.end_byte].decode(),
        start_line=definition.start_row + 1,
        end_line=definition.end_row + 1,
        start_byte=definition.start_byte + decoded.offset,
        end_byte=definition.end_byte + decoded.offset,
        tokens=definition.tokens,
        license=license_name,
        metadata=_metadata(definition, test_file),
    )


def _module_names(path: str) -> tuple[str, str]:
    """('core', 'app.core') of 'src/app/core.py'; a package's index file is named as its folder."""
    pure = PurePosixPath(path)
    parts = [*pure.parent.parts, pure.name.split(".")[0]]
    if len(parts) > 1 and parts[-1] in INDEX_STEMS:
        parts.pop()
    if len(parts) > 1 and parts[0] in SOURCE_ROOTS:
        parts = parts[1:]
    return parts[-1], ".".join(parts)


def _metadata(definition: Definition, test_file: bool) -> dict[str, Any]:
    """What other rooms may quote: verbatim source text. Keys that do not apply are absent."""
    described = definition.described
    metadata: dict[str, Any] = {}
    if definition.kind in ("function", "method"):
        parameters = described.parameters or []
        metadata["parameters"] = [parameter._asdict() for parameter in parameters]
        metadata["returns"] = described.returns
        metadata["raises"] = list(definition.raises)
        metadata["return_expressions"] = list(definition.returns)
        metadata["is_async"] = False
    if definition.kind == "class":
        metadata["bases"] = described.bases
        metadata["methods"] = list(definition.methods)
    if definition.kind == "module":
        metadata["imports"] = definition.imports
        metadata["constants"] = [
            {"name": name, "value": value} for name, value in definition.constants
        ]
    else:
        metadata["decorators"] = described.decorators
    metadata["calls"] = list(definition.calls)
    metadata["complexity"] = 1 + definition.branches
    metadata["is_private"] = definition.is_private
    metadata["is_test"] = test_file or definition.is_test
    if definition.label:
        metadata["label"] = definition.label
    return metadata | described.extra


def _reasons(
    block: CodeBlock, definition: Definition, settings: MiningSettings, allow_licenses: list[str]
) -> list[str]:
    tests = {
        "too_short": block.tokens < settings.min_tokens,
        "too_long": block.tokens > settings.max_tokens,
        "no_docstring": settings.require_docstring and not block.docstring,
        "trivial": definition.is_trivial,
        "private": not settings.include_private and block.metadata["is_private"],
        "test": not settings.include_tests and block.metadata["is_test"],
        "license": bool(allow_licenses) and block.license not in allow_licenses,
    }
    return [reason for reason, applies in tests.items() if applies]


def quality_score(block: CodeBlock, settings: MiningSettings) -> float:
    """How much there is to learn from a block, 0 to 1: the mean of four parts.

    documented    1 with a docstring, else 0
    docstring     its words, 1 from 20 words on
    complexity    cyclomatic complexity (McCabe 1976), 1 from 5 on
    length        tokens, 1 from four times the minimum up to half of the maximum, then falling
    """
    words = len(block.docstring.split())
    long_enough = max(4 * settings.min_tokens, 1)
    half = max(settings.max_tokens / 2, 1)
    if block.tokens <= half:
        length = min(1.0, block.tokens / long_enough)
    else:
        length = max(0.0, 2 - block.tokens / half)
    parts = (
        1.0 if words else 0.0,
        min(1.0, words / 20),
        min(1.0, (block.metadata["complexity"] - 1) / 4),
        length,
    )
    return round(sum(parts) / len(parts), 4)


def _redact(block: CodeBlock, secrets: list[Secret]) -> list[str]:
    """Replace credentials in every text of a block; ['secret'] where one was a private key."""
    inside = [secret for secret in secrets if secret.text in block.source_code]
    if not inside:
        return []
    block.source_code = replace_secrets(block.source_code, inside)
    # Cleaning took the indentation from a docstring: a key of several lines is looked for again.
    block.docstring = redact(replace_secrets(block.docstring, inside))[0]
    block.signature = replace_secrets(block.signature, inside)
    block.metadata = _replaced(block.metadata, inside)
    block.metadata["secrets_redacted"] = len(inside)
    return ["secret"] if any(secret.placeholder == PRIVATE_KEY for secret in inside) else []


def _replaced(value: Any, secrets: list[Secret]) -> Any:
    if isinstance(value, str):
        return replace_secrets(value, secrets)
    if isinstance(value, list):
        return [_replaced(item, secrets) for item in value]
    if isinstance(value, dict):
        return {key: _replaced(item, secrets) for key, item in value.items()}
    return value
