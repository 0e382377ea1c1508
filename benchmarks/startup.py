"""How long a cold start takes: `forge-mcp --help`, and `forge-mcp serve` to an answered tools/list.

    python benchmarks/startup.py [RUNS]

Both are compared with a floor measured in the same run: an interpreter that only imports pydantic,
and a bare server of the MCP SDK with one tool. Prints medians in seconds and the ratios.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import anyio
from mcp import Client, StdioServerParameters

FORGE = str(Path(sys.executable).with_name("forge-mcp"))
BARE_SERVER = """
from mcp.server import MCPServer
server = MCPServer("bare")
@server.tool()
def ping() -> str:
    return "pong"
server.run()
"""


def seconds_of(command: list[str]) -> float:
    """Wall-clock seconds of one process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def seconds_to_tools(command: str, arguments: list[str]) -> float:
    """Wall-clock seconds from starting a server to its answer to tools/list."""

    async def listed() -> None:
        async with Client(StdioServerParameters(command=command, args=arguments)) as client:
            await client.list_tools()
            spent.append(time.perf_counter() - started)

    spent: list[float] = []
    started = time.perf_counter()
    anyio.run(listed)
    return spent[0]


def main(runs: int) -> None:
    """Measure in turn, so that a machine that changes its speed changes both alike."""
    rows: dict[str, list[float]] = {
        "python -c 'import pydantic'": [],
        "forge-mcp --help": [],
        "bare MCP server, tools/list": [],
        "forge-mcp serve, tools/list": [],
    }
    names = list(rows)
    for _ in range(runs):
        rows[names[0]].append(seconds_of([sys.executable, "-c", "import pydantic"]))
        rows[names[1]].append(seconds_of([FORGE, "--help"]))
        rows[names[2]].append(seconds_to_tools(sys.executable, ["-c", BARE_SERVER]))
        rows[names[3]].append(seconds_to_tools(FORGE, ["serve"]))
    for name, values in rows.items():
        print(f"{name:<30} {statistics.median(values):6.2f} s  (of {runs})")
    for mine, floor in ((names[1], names[0]), (names[3], names[2])):
        ratio = statistics.median(a / b for a, b in zip(rows[mine], rows[floor], strict=True))
        print(f"{mine} / {floor}: {ratio:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
