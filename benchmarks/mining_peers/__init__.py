"""Chunkers of other projects, measured in an environment of their own."""
