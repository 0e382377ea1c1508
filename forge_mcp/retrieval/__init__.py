"""Finding the blocks that a question is about: BM25 over identifiers."""

from forge_mcp.retrieval.bm25 import Retriever, subtokens

__all__ = ["Retriever", "subtokens"]
