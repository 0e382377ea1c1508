"""Finding the blocks that a question is about: BM25, a dense encoder, both."""

from forge_mcp.retrieval.bm25 import Retriever
from forge_mcp.retrieval.text import subtokens

__all__ = ["Retriever", "subtokens"]
