"""From the settings to a retriever over some blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from forge_mcp.retrieval.bm25 import Retriever
from forge_mcp.retrieval.ranking import Ranking
from forge_mcp.schemas.code_blocks import CodeBlock

if TYPE_CHECKING:
    from forge_mcp.retrieval.encoder import Encoder
    from forge_mcp.retrieval.vectors import Reporting
    from forge_mcp.settings import Settings


def open_encoder(settings: Settings, repository: Path | None) -> Encoder | None:
    """The encoder that the settings name, or None where retrieval.method needs none.

    Args:
        settings: `retrieval` and `serving.ollama_host` count.
        repository: where a relative folder starts; the current folder by default.

    Raises:
        InvalidSettings, NotFound, UnsupportedModel, Unavailable: see `encoder.load_encoder`.
    """
    if settings.retrieval.method == "bm25":
        return None
    from forge_mcp.retrieval.encoder import load_encoder

    return load_encoder(
        settings.retrieval.encoder,
        ollama_host=settings.serving.ollama_host,
        relative_to=repository,
    )


def open_retriever(
    blocks: Sequence[CodeBlock],
    settings: Settings,
    encoder: Encoder | None,
    *,
    cache: Path,
    project: str,
    reporting: Reporting | None = None,
) -> Ranking:
    """The retriever of retrieval.method over some blocks.

    Args:
        blocks: what is searched.
        settings: `retrieval.method` counts.
        encoder: what `open_encoder` gave for these settings.
        cache: the folder of all indexes of vectors.
        project: whose indexes share vectors.
        reporting: how indexing tells of its work.

    Raises:
        Unavailable, OutOfSpace, ForgeError: see `vectors.block_vectors`.
    """
    if encoder is None or not blocks:  # of no blocks there is nothing to encode
        return Retriever(blocks)
    from forge_mcp.retrieval.dense import DenseRetriever, HybridRetriever
    from forge_mcp.retrieval.vectors import block_vectors

    vectors = block_vectors(blocks, encoder, cache, project, reporting)
    dense = DenseRetriever(blocks, vectors, encoder)
    if settings.retrieval.method == "dense":
        return dense
    return HybridRetriever(Retriever(blocks), dense)
