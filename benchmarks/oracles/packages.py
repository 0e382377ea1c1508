"""Code to compare and parsers to read it with, fetched by package managers in fixed versions."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from forge_mcp.errors import Unavailable

Manager = Literal["interpreter", "pip", "npm", "deb", "deb-src"]


@dataclass(frozen=True)
class Package:
    """A package with its version. Debian versions are those of bookworm (12).

    Attributes:
        manager: "interpreter" is the standard library of the Python that runs.
        folder: only what lies below it is compared; a glob, where the package names a version.
    """

    manager: Manager
    name: str
    version: str
    folder: str = "."

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.manager})"


def standard_library() -> Package:
    """The running interpreter's own standard library."""
    return Package("interpreter", "python-stdlib", sys.version.split()[0])


def fetch(package: Package, cache_folder: Path) -> Path:
    """The unpacked package's folder, fetched where the cache does not hold it yet.

    Raises:
        Unavailable: its manager is not installed, or cannot deliver this version.
    """
    version = package.version.replace(":", "_")
    target = cache_folder / package.manager / f"{package.name.replace('/', '_')}-{version}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            unpacked = Path(temporary) / "unpacked"
            unpacked.mkdir()
            _FETCHERS[package.manager](package, Path(temporary), unpacked)
            unpacked.rename(target)  # a fetch that was cut short leaves nothing that looks whole
    found = sorted(target.glob(package.folder)) if package.folder != "." else [target]
    if len(found) != 1:
        raise Unavailable(
            f"{package} has {len(found)} folders {package.folder}, not one.",
            cause="its layout is not what benchmarks/oracles/catalogue.py says",
            next_step=f"Look into {target} and correct the folder.",
        )
    return found[0]


def _fetch_interpreter(package: Package, work: Path, unpacked: Path) -> None:
    """A copy: where the interpreter lies in a git repository, git would decide about its files."""
    source = Path(sysconfig.get_path("stdlib"))
    ignored = shutil.ignore_patterns("site-packages", "dist-packages", "__pycache__", "*.so", "*.a")
    shutil.copytree(source, unpacked, ignore=ignored, dirs_exist_ok=True)


def _fetch_pip(package: Package, work: Path, unpacked: Path) -> None:
    wanted = f"{package.name}=={package.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    _run(package, [*pip, "--dest", str(work), wanted], work)
    _unpack(package, work, "*.tar.gz", unpacked)


def _fetch_npm(package: Package, work: Path, unpacked: Path) -> None:
    _run(package, ["npm", "pack", "--silent", f"{package.name}@{package.version}"], work)
    _unpack(package, work, "*.tgz", unpacked)


def _fetch_deb(package: Package, work: Path, unpacked: Path) -> None:
    _run(package, ["apt-get", "download", f"{package.name}={package.version}"], work)
    _run(package, ["dpkg-deb", "-x", str(next(work.glob("*.deb"))), str(unpacked)], work)


def _fetch_deb_source(package: Package, work: Path, unpacked: Path) -> None:
    """The authors' tarball, without Debian's patches."""
    command = ["source", "--download-only", "--only-source", "--tar-only"]
    options = _source_options(work.parent)
    _run(package, ["apt-get", *options, *command, f"{package.name}={package.version}"], work)
    _unpack(package, work, "*.orig.tar.*", unpacked)


@cache
def _source_options(folder: Path) -> list[str]:
    """Options with which apt-get knows source packages, whatever the machine's settings say."""
    fields = "deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)"
    targets = ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]
    lines = _run(None, targets, folder).splitlines()
    lists = folder / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (lists / part).mkdir(parents=True, exist_ok=True)
    sources = lists / "sources.list"
    sources.write_text("\n".join(dict.fromkeys(lines)) + "\n")
    options = {
        "Dir::Etc::sourcelist": str(sources),
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": str(lists / "lists"),
        "Dir::Cache": str(lists / "cache"),
    }
    given = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    _run(None, ["apt-get", *given, "update"], folder)
    return given


_FETCHERS = {
    "interpreter": _fetch_interpreter,
    "pip": _fetch_pip,
    "npm": _fetch_npm,
    "deb": _fetch_deb,
    "deb-src": _fetch_deb_source,
}


def _unpack(package: Package, work: Path, pattern: str, unpacked: Path) -> None:
    archives = sorted(work.glob(pattern))
    if len(archives) != 1:
        raise Unavailable(
            f"{package} came as {len(archives)} archives {pattern}, not one.",
            cause=", ".join(path.name for path in archives) or "nothing was downloaded",
            next_step="Choose another version in benchmarks/oracles/catalogue.py.",
        )
    with tarfile.open(archives[0]) as archive:
        archive.extractall(unpacked, filter="data")


def _run(package: Package | None, command: list[str], folder: Path) -> str:
    """Standard output of a package manager.

    Raises:
        Unavailable: it is not installed, or it failed.
    """
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise Unavailable(
            f"{command[0]} is not installed.",
            cause=f"it fetches {package or 'Debian sources'}",
            next_step="Install it, or compare other languages with --language.",
        ) from error
    except subprocess.CalledProcessError as error:
        raise Unavailable(
            f"{package or 'The list of Debian sources'} could not be fetched.",
            cause=error.stderr.strip()[-400:],
            next_step="Check the network, or whether this version is still offered.",
        ) from error
    return done.stdout
