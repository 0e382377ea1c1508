"""CodeBlock → RaftExample: facts, questions, reasoning, preferences."""
