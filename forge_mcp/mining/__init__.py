"""Repository → CodeBlock, with tree-sitter. The public functions stand in `mining.miner`.

miner.py         the specification's functions: parse_repository, extract_functions, …
repository.py    all files of a repository: in parallel, through the cache, names resolved
files.py         which files are mined; patterns.py .gitignore and .gitattributes; git.py git
text.py          bytes → text: encodings, notebooks, what is minified or generated
languages/       what differs between languages: one small module each
definitions.py   one walk over a file's syntax tree → its definitions
comments.py      comments → docstrings
blocks.py        definitions → rows of a corpus, with a score and the reasons against training
dependencies.py  names that a block uses → blocks of the same repository, where that is certain
cache.py         what was mined the last time
secrets.py       credentials → typed placeholders; secret_rules.py their shapes
licenses.py      SPDX headers and licence files
"""
