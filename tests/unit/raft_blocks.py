"""CodeBlocks for the tests of raft, retrieval and quality, made from text with `ast`.

They look as mining writes them, without needing mining.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from forge_mcp.schemas.code_blocks import BlockType, CodeBlock

Function = ast.FunctionDef | ast.AsyncFunctionDef


def blocks_of(files: Mapping[str, str]) -> list[CodeBlock]:
    """Every function, method and class of some Python files, in order."""
    return [block for path, text in files.items() for block in _file_blocks(path, text)]


def _file_blocks(path: str, text: str) -> Iterator[CodeBlock]:
    tree = ast.parse(text)
    top = {n.name: f"{path}::{n.name}" for n in tree.body if isinstance(n, Function | ast.ClassDef)}
    yield from _walk(tree, "", path, text, top)


def _walk(
    node: ast.AST, prefix: str, path: str, text: str, top: Mapping[str, str]
) -> Iterator[CodeBlock]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            yield _block(child, prefix, isinstance(node, ast.ClassDef), path, text, top)
            yield from _walk(child, f"{prefix}{child.name}.", path, text, top)


def _block(
    node: Function | ast.ClassDef,
    prefix: str,
    in_class: bool,
    path: str,
    text: str,
    top: Mapping[str, str],
) -> CodeBlock:
    lines = text.splitlines(keepends=True)
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    assert node.end_lineno is not None
    start = (
        len("".join(lines[: first - 1])) + len(lines[first - 1]) - len(lines[first - 1].lstrip())
    )
    end = len("".join(lines[: node.end_lineno - 1])) + (node.end_col_offset or 0)
    source = text[start:end]
    kind: BlockType = "class"
    metadata: dict[str, Any] = {"decorators": [_text(d, text) for d in node.decorator_list]}
    signature, calls = f"class {node.name}", []
    if isinstance(node, ast.ClassDef):
        metadata["bases"] = [_text(b, text) for b in node.bases]
        metadata["methods"] = [n.name for n in node.body if isinstance(n, Function)]
        calls = [b.split("(")[0] for b in metadata["bases"]]
    else:
        kind = "method" if in_class else "function"
        word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        signature = f"{word} {node.name}({ast.unparse(node.args)}){returns}"
        metadata |= _function_metadata(node, text, in_class)
        calls = metadata["calls"]
    names = [call.removeprefix("self.") for call in calls]
    own_class = f"{path}::{prefix}"
    resolved = [
        top.get(n, f"{own_class}{n}") if c == n or c == f"self.{n}" else n
        for c, n in zip(calls, names, strict=True)
    ]
    return CodeBlock(
        id=f"{path}::{prefix}{node.name}",
        content_hash=hashlib.sha256(source.encode()).hexdigest(),
        path=path,
        language="python",
        block_type=kind,
        name=node.name,
        qualified_name=f"{prefix}{node.name}",
        parent=prefix.rstrip(".") or None,
        signature=signature,
        docstring=ast.get_docstring(node) or "",
        source_code=source,
        start_line=first,
        end_line=node.end_lineno,
        start_byte=start,
        end_byte=end,
        tokens=len(source.split()),
        dependencies=list(dict.fromkeys(resolved)),
        quality_score=0.5 if ast.get_docstring(node) else 0.1,
        metadata=metadata,
    )


def _function_metadata(node: Function, text: str, in_class: bool) -> dict[str, Any]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    rows = [(a, d) for a, d in zip(positional, defaults, strict=True)]
    rows += [(arguments.vararg, None)] if arguments.vararg else []
    rows += list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    rows += [(arguments.kwarg, None)] if arguments.kwarg else []
    parameters = [
        {
            "name": a.arg,
            "annotation": _text(a.annotation, text),
            "default": _text(d, text),
            "kind": "positional_or_keyword",
        }
        for a, d in rows
    ]
    inner = list(ast.walk(node))
    raised = [n.exc for n in inner if isinstance(n, ast.Raise) and n.exc is not None]
    called = [n for n in inner if isinstance(n, ast.Call)]
    called.sort(key=lambda n: (n.lineno, n.col_offset))
    returned = [n for n in inner if isinstance(n, ast.Return) and n.value]
    returned.sort(key=lambda n: n.lineno)
    return {
        "parameters": parameters[1:] if in_class else parameters,
        "returns": _text(node.returns, text),
        "raises": [_text(r.func if isinstance(r, ast.Call) else r, text) for r in raised],
        "return_expressions": [_text(n.value, text) for n in returned],
        "calls": list(dict.fromkeys(ast.unparse(n.func) for n in called)),
    }


def _text(node: ast.AST | None, text: str) -> str:
    return (ast.get_source_segment(text, node) or "") if node is not None else ""


SHOP = {
    "shop/cart.py": '''\
"""The shopping cart."""


class Cart(Basket):
    """A cart that holds items until they are paid."""

    def __init__(self, owner, limit: int = 20):
        self.owner = owner
        self.limit = limit
        self.items = []

    def add(self, item: Item, count: int = 1) -> int:
        """Put an item into the cart. Returns how many there are."""
        if count < 1:
            raise ValueError("count must be positive")
        self.check_room(count)
        self.items.extend([item] * count)
        return len(self.items)

    def check_room(self, count: int) -> None:
        """Refuse more items than the limit."""
        if len(self.items) + count > self.limit:
            raise CartFull(self.limit)

    @property
    def total(self) -> float:
        """Sum of the prices of all items."""
        return sum(item.price for item in self.items)


class Basket:
    """Something that can be carried."""

    def lift(self, hands=2, *, carefully: bool = True):
        """Lift the basket with both hands."""
        return hands * carefully
''',
    "shop/prices.py": '''\
def parse_price(text: str, currency: str = "EUR") -> float:
    """Read a price such as 12.50 from a text."""
    if not text:
        raise ValueError("empty price")
    return round(float(text.strip()), 2)


def discount(price: float, percent: float = 10.0) -> float:
    """Lower a price by some percent."""
    return apply_rate(price, 1 - percent / 100)


def apply_rate(price: float, rate: float) -> float:
    """Multiply a price by a rate and round it."""
    if rate < 0:
        raise RateError(rate)
    return round(price * rate, 2)
''',
    "shop/store.py": '''\
class Store:
    """Keeps carts by the name of their owner."""

    def __init__(self, path="carts.json"):
        self.path = path
        self.carts = {}

    def add(self, name: str, cart: Cart) -> None:
        """Remember the cart of a customer."""
        if name in self.carts:
            raise KeyError(name)
        self.carts[name] = cart

    def load(self, encoding: str = "utf-8") -> dict:
        """Read all carts from the file."""
        with open(self.path, encoding=encoding) as file:
            self.carts = decode(file.read())
        return self.carts


def decode(text: str, strict: bool = False) -> dict:
    """Turn the text of a file into carts."""
    rows = text.splitlines()
    return {row: strict for row in rows}
''',
    "shop/mail.py": '''\
async def send(address: str, subject: str = "Your order", retries: int = 3) -> bool:
    """Send a message and wait for the answer."""
    for attempt in range(retries):
        answer = await post(address, subject)
        if answer:
            return True
    raise ConnectionError(address)


async def post(address: str, body: str) -> bool:
    """Hand a message to the post office."""
    if "@" not in address:
        raise AddressError(address)
    return await deliver(address, body)
''',
    "shop/report.py": '''\
class Report(Table):
    """A table of what was sold."""

    rows = 10

    @cached
    def header(self, title: str, width: int = 40) -> str:
        """The first line of the table."""
        return title.center(width, "-")

    def add(self, row: tuple, *cells: str, **options: int) -> None:
        """Put a row below the last one."""
        self.lines.append(row)
        self.lines.sort(key=len)
''',
}
