"""Repository → CodeBlock, with tree-sitter. The public functions stand in `mining.miner`.

files.py         which files of a repository are mined, and how their bytes are decoded
languages/       what differs between languages: one small module each
definitions.py   one walk over a file's syntax tree → its definitions
blocks.py        definitions → CodeBlock, with a score and the reasons against training on it
dependencies.py  callee texts → block ids of the same repository, where that is unambiguous
secrets.py       credentials → typed placeholders
licenses.py      SPDX identifiers and licence files
miner.py         all of it together, in parallel by file
"""
