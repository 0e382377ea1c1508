#!/bin/sh
# Build the wheel, install it into a clean environment with nothing of this checkout in reach, and
# use it: doctor, and a short line on a small repository. Part of `make test-all`.
set -eu
python=${1:?usage: check_wheel.sh PYTHON}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m build --wheel --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 \
    || { cat "$work/build.log"; exit 1; }
"$python" -m venv "$work/clean"
"$work/clean/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$root/constraints.txt" "$work"/dist/*.whl
ls -l "$work"/dist/*.whl

cp -r "$root/tests/fixtures/sample_python_repo" "$work/repository"
cd "$work/repository"
export FORGE_HOME="$work/forge" FORGE_QUALITY__MIN_EXAMPLES=5 FORGE_TRAINING__MAX_STEPS=4
export FORGE_JUDGING__MAX_EXAMPLES=4 FORGE_JUDGING__PERPLEXITY_EXAMPLES=8
forge="$work/clean/bin/forge-mcp"

"$forge" --version
"$forge" doctor
"$forge" retrain . --json >"$work/line.json" || [ $? -eq 3 ]
"$work/clean/bin/python" - "$work/line.json" <<'PYTHON'
import json, pathlib, sys
import forge_mcp
package = pathlib.Path(forge_mcp.__file__).parent
line = json.loads(pathlib.Path(sys.argv[1]).read_text())
assert "site-packages" in str(package), package
for name in ("skills.yaml", "prompts/repo_guardian.md", "skills/forge-retrain/SKILL.md"):
    assert (package / "share" / name).is_file(), f"{name} is not in the wheel"
assert line["train"]["steps"] == 4, line
print("wheel: 1 passed, line", line["state"])
PYTHON
