"""CodeBlock → RaftExample: facts, questions, reasoning, preferences."""

from forge_mcp.raft.documents import example_documents, retrieve_oracle_and_distractors
from forge_mcp.raft.generator import (
    GENERATOR_VERSION,
    Dataset,
    build_dataset,
    chat_row,
    generate_chain_of_thought,
    generate_qa_pairs,
)
from forge_mcp.raft.verify import check

__all__ = [
    "GENERATOR_VERSION",
    "Dataset",
    "build_dataset",
    "chat_row",
    "check",
    "example_documents",
    "generate_chain_of_thought",
    "generate_qa_pairs",
    "retrieve_oracle_and_distractors",
]
