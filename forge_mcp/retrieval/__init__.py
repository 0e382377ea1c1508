"""Which blocks of a corpus belong to a question."""
