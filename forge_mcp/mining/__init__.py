"""Repository → CodeBlock, with tree-sitter."""
