"""CodeBlock → RaftExample: facts, questions, reasoning, preferences."""

from forge_mcp.raft.api import (
    generate_chain_of_thought,
    generate_qa_pairs,
    retrieve_oracle_and_distractors,
)
from forge_mcp.raft.documents import example_documents
from forge_mcp.raft.generator import (
    GENERATOR_VERSION,
    Dataset,
    build_dataset,
    chat_row,
)
from forge_mcp.raft.pairs import QAPair, also_answers
from forge_mcp.raft.shares import difficulty_of
from forge_mcp.raft.verify import check

__all__ = [
    "GENERATOR_VERSION",
    "Dataset",
    "QAPair",
    "also_answers",
    "build_dataset",
    "chat_row",
    "check",
    "difficulty_of",
    "example_documents",
    "generate_chain_of_thought",
    "generate_qa_pairs",
    "retrieve_oracle_and_distractors",
]
