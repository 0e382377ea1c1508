"""Parsers that this project did not write, and how the miner is held to what they say."""
