"""How fast secrets are found, against parsing the same files, and what is found.

    python benchmarks/secret_scan.py [FOLDER] [--show]

FOLDER is CPython's standard library by default (without site-packages). Each file is scanned and
parsed in turn, so that a machine that changes its speed changes both alike; CPU time counts.
Prints MB/s of both, their ratio, and the findings by placeholder; with --show every finding with
its line, so that false alarms can be counted. Findings per MB is the bound of false alarms per MB.
(The file is not named secrets.py: that would hide the standard library's module of that name.)
"""

from __future__ import annotations

import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

from forge_mcp.mining.languages import language
from forge_mcp.mining.secrets import Secret, find_secrets


def line_of(text: str, secret: Secret) -> str:
    """'12: the line', cut around the secret."""
    start = max(text.rfind("\n", 0, secret.start) + 1, secret.start - 50)
    line = text[start : secret.start + 50].split("\n")[0].strip()
    return f"{text.count(chr(10), 0, secret.start) + 1}: {line}"


def main(folder: Path, show: bool) -> None:
    """Scan and parse every Python file below a folder."""
    paths = sorted(
        path
        for path in folder.rglob("*.py")
        if "site-packages" not in path.relative_to(folder).parts and path.is_file()
    )
    parser = language("python")
    parser.parse(b"")  # the grammar is loaded
    kinds: Counter[str] = Counter()
    size, scanning, parsing = 0, 0.0, 0.0
    for path in paths:
        data = path.read_bytes()
        text = data.decode("utf-8", "replace")
        started = time.process_time()
        secrets = find_secrets(text)
        scanned = time.process_time()
        parser.parse(data)
        scanning += scanned - started
        parsing += time.process_time() - scanned
        size += len(data)
        kinds.update(secret.placeholder for secret in secrets)
        if show:
            for secret in secrets:
                where = f"{path.relative_to(folder)}:{line_of(text, secret)}"
                print(f"{secret.placeholder:<32} {where}")
    megabytes = size / 1e6
    print(f"{len(paths)} files, {megabytes:.1f} MB in {folder}")
    print(f"secrets      {scanning:6.2f} s  {megabytes / scanning:6.1f} MB/s")
    print(f"tree-sitter  {parsing:6.2f} s  {megabytes / parsing:6.1f} MB/s")
    print(f"secrets / tree-sitter: {scanning / parsing:.2f}")
    print(f"{kinds.total()} findings, {kinds.total() / megabytes:.2f} per MB")
    for placeholder, count in kinds.most_common():
        print(f"{count:6} {placeholder}")


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--show"]
    root = Path(words[0]) if words else Path(sysconfig.get_paths()["stdlib"])
    main(root, "--show" in sys.argv)
