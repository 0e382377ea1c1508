"""The command line: grammar, JSON exactness, exit codes, interruption, projects, init, doctor."""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import forge_mcp.jobs.skills as job_skills
from forge_mcp.errors import BadInput, InvalidSettings
from forge_mcp.interfaces import terminal
from forge_mcp.interfaces.arguments import parse_setting
from forge_mcp.interfaces.cli import main
from forge_mcp.interfaces.config_file import read_config
from forge_mcp.pipeline.faults import in_words
from forge_mcp.pipeline.init import render
from forge_mcp.schemas.events import Event
from forge_mcp.settings import load_settings
from forge_mcp.workspace import Workspace

TOYS = Path(__file__).parents[1] / "fixtures" / "interfaces"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "forge"))
    stood_in = tmp_path / "stood-in"
    stood_in.mkdir()
    (stood_in / "forge.toml").write_text("")
    monkeypatch.chdir(stood_in)
    return tmp_path / "forge"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`forge-mcp` in this process, with the toy skills and init: (exit code, stdout, stderr)."""
    monkeypatch.syspath_prepend(str(TOYS))
    toy_skills = importlib.import_module("toy_skills")

    registry = {"init": job_skills.skills()["init"], **toy_skills.TOYS}
    monkeypatch.setattr(job_skills, "skills", lambda: registry)

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(one) for one in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


def start(home: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(TOYS / "toy_forge.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FORGE_HOME": str(home)},
        **options,
    )


# -- results and exit codes -------------------------------------------------------------------


def test_json_is_exactly_the_result(run: Run) -> None:
    code, out, err = run("count", 2, "--json")
    assert code == 0
    assert out == '{"counted":2,"seconds":0.5}\n'
    assert "count 2/2: counting" in err


def test_json_flag_may_stand_before_the_command(run: Run) -> None:
    assert run("--json", "count", 1)[1] == '{"counted":1,"seconds":0.5}\n'


def test_what_libraries_print_goes_to_stderr(home: Path) -> None:
    with start(home, "noisy", "--json") as process:
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == '{"answer":"ü \U0001f600"}\n'
    assert {"print", "write", "puts"} <= set(err.split())


def test_human_summary(run: Run) -> None:
    code, out, _ = run("count", 2)
    assert (code, out) == (0, "counted  2\nseconds  0.5 s\n")


def test_streamed_text_goes_to_stdout_and_logs_to_stderr(run: Run) -> None:
    code, out, err = run("say", "hello you")
    assert code == 0
    assert out.startswith("hello you ")
    assert err == "warning: said it\n"


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["judge"], 0, None),
        (["judge", "--no-passed"], 3, None),
        (["judge", "--raising"], 3, "refused"),
        (["fail", "ours"], 1, "unavailable"),
        (["fail", "bug"], 1, "failed"),
        (["fail", "memory"], 1, "failed"),
        (["fail", "disk"], 1, "out_of_space"),
        (["fail", "setting"], 2, "invalid_settings"),
        (["fail", "nonsense"], 2, "bad_input"),
        (["fail"], 2, "bad_input"),
        (["count", "x"], 2, "bad_input"),
        (["count", "-1"], 2, "bad_input"),
        (["count", "3", "--frobnicate"], 2, "bad_input"),
        (["count", "3", "--pau", "1"], 2, "bad_input"),
        (["unheard-of"], 2, "bad_input"),
        ([], 2, "bad_input"),
        (["judge", "--set", "training.rank"], 2, "bad_input"),
        (["judge", "--set", "training.rank=many"], 2, "invalid_settings"),
        (["judge", "--set", "nonsense.rank=1"], 2, "invalid_settings"),
        (["judge", "--project", "nobody"], 2, "not_found"),
        (["where", "/does/not/exist"], 2, "not_found"),
        (["use", "ds-none"], 2, "not_found"),
    ],
)
def test_exit_codes_and_json_errors(
    run: Run, arguments: list[str], code: int, error: str | None
) -> None:
    got, out, err = run(*arguments, "--json")
    assert got == code
    parsed = json.loads(out)  # exactly one object, or this raises
    if error is None:
        assert "error" not in parsed
    else:
        assert set(parsed) == {"error"}
        assert set(parsed["error"]) == {"code", "message", "cause", "next_step"}
        assert parsed["error"]["code"] == error
        assert parsed["error"]["message"]
    human, out, err = run(*arguments)
    assert human == code
    if error is not None:
        assert out == "" and err.startswith("error: ") and "Traceback" not in err


def test_a_bug_leaves_its_traceback_in_a_file(run: Run, home: Path) -> None:
    _, _, err = run("fail", "bug")
    (log,) = (home / "logs").iterdir()
    assert str(log) in err and "KeyError: 'nobody thought of this'" in err
    text = log.read_text()
    assert "Traceback" in text and "toy_skills.py" in text


def test_a_bug_is_told_even_where_no_log_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    error = in_words(KeyError("x"), "fail", tmp_path)
    assert "could not be saved" in error.next_step and "KeyError" in error.next_step


def test_lists_and_choices(run: Run) -> None:
    _, out, _ = run("judge", "--names", "a b", "--names", "c", "--level", "high", "--json")
    assert json.loads(out) == {
        "passed": True,
        "reasons": [],
        "names": ["a b", "c"],
        "level": "high",
    }


# -- help -------------------------------------------------------------------------------------


def test_help_and_version(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for word in ("count", "init", "serve", "--json", "--project", "--set", "130 cancelled"):
        assert word in out
    code, out, _ = run("count", "--help")
    assert code == 0
    for word in ("NUMBER", "How far to count.", "--pause", "Use this when", "forge-mcp count 3"):
        assert word in out
    assert run("--version") == (0, "forge-mcp 0.1.0\n", "")


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from forge_mcp.interfaces.cli import main; code = main(['--help']); "
        "heavy = {'mlx', 'mlx_lm', 'transformers', 'matplotlib', 'numpy', 'tree_sitter', 'mcp', "
        "'git', 'gguf', 'xllamacpp', 'ollama', 'httpx', 'tqdm', 'bm25s', 'dbos', 'sqlalchemy', "
        "'psutil'} & set(sys.modules); "
        "sys.exit(f'imported: {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_is_quick() -> None:
    seconds = []
    for _ in range(3):
        began = os.times()
        subprocess.run(
            [sys.executable, "-m", "forge_mcp.interfaces.cli", "--help"],
            check=True,
            capture_output=True,
        )
        ended = os.times()
        seconds.append(
            ended.children_user
            - began.children_user
            + ended.children_system
            - began.children_system
        )
    # CPU time of the child, so that other work on the machine does not decide; half a second is
    # what is wanted of an idle core, the rest is for instrumented runs.
    assert min(seconds) < 1.0, seconds


# -- interruption -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_signal_cancels_cleanly(home: Path, number: signal.Signals, as_json: bool) -> None:
    flags = ["--json"] if as_json else []
    with start(home, "count", "100000", "--pause", "0.02", *flags) as process:
        deadline = time.monotonic() + 20
        while not list((home / "staging").glob("*/begun")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in err and "count was cancelled." in err.splitlines()[-1]
    assert list((home / "staging").iterdir()) == []
    if as_json:
        assert json.loads(out)["error"]["code"] == "cancelled"
    else:
        assert out == ""


def test_ctrl_c_within_exec_ends_with_the_exit_code(tmp_path: Path) -> None:
    """CPython would end with the signal, though it was caught: imports of dataclasses exec text."""
    (tmp_path / "interrupted.py").write_text(
        "import os, signal, sys\n"
        "from forge_mcp.interfaces import cli\n"
        "cli._run = lambda *_: exec('os.kill(os.getpid(), signal.SIGINT)')\n"
        "sys.exit(cli.main([]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "Cancelled.\n")


def test_handlers_are_put_back(run: Run) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run("count", 1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("arguments", [["count", "3"], ["say", "word " * 1000]])
def test_a_closed_pipe_is_no_traceback(home: Path, arguments: list[str]) -> None:
    with start(home, *arguments) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
        assert process.wait(timeout=20) in (1, 130)


# -- projects ---------------------------------------------------------------------------------


def where(run: Run, *arguments: object) -> dict[str, Any]:
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    told: dict[str, Any] = json.loads(out)
    return told


def test_the_repository_stood_in(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "app"
    (repository / "src" / "deep").mkdir(parents=True)
    (repository / ".git").mkdir()
    monkeypatch.chdir(repository / "src" / "deep")
    assert where(run, "look")["repository"] == str(repository)
    assert where(run, "where")["repository"] == str(repository)
    assert where(run, "where", "../")["repository"] == str(repository / "src")


def test_name_and_settings_come_from_forge_toml(run: Run, tmp_path: Path) -> None:
    repository = tmp_path / "app"
    repository.mkdir()
    (repository / "forge.toml").write_text('[project]\nname = "mine"\n[training]\nrank = 4\n')
    expected = {"project": "mine", "repository": str(repository), "rank": 4}
    assert where(run, "where", repository) == expected
    assert where(run, "look", "--project", "mine") == expected
    assert where(run, "where", repository, "--set", "training.rank=9")["rank"] == 9
    assert where(run, "--set", "training.rank=9", "look", "--project", repository)["rank"] == 9


def test_settings_before_and_after_the_command_both_count(run: Run, tmp_path: Path) -> None:
    told = where(run, "--set", "training.rank=9", "look", "--set", "training.lora_alpha=3")
    assert told["rank"] == 9


def test_a_training_configuration_is_below_set_and_above_forge_toml(
    run: Run, tmp_path: Path
) -> None:
    repository = tmp_path / "app"
    repository.mkdir()
    (repository / "forge.toml").write_text("[training]\nrank = 4\n")
    config = tmp_path / "mine.yaml"
    config.write_text("pissa_config:\n  rank: 6\n  init_method: gaussian\n")
    assert where(run, "where", repository, "--config", config)["rank"] == 6
    assert where(run, "--config", config, "where", repository)["rank"] == 6
    told = where(run, "where", repository, "--set", "training.rank=9", "--config", config)
    assert told["rank"] == 9
    shipped = Path(str(files("forge_mcp"))) / "assets" / "pissa_config.yaml"
    assert where(run, "where", repository, "--config", shipped)["rank"] == 64


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("pissa_config:\n  rnak: 6\n", "rnak"),
        ("pissa_config:\n  rank: many\n", "training.rank"),
        ("pissa_config:\n  base_model: 3\n", "base_model"),
        ("pissa_config:\n", "no settings"),
        ("rank: 6\n", "pissa_config"),
        ("pissa_config: [\n", "cannot be used"),
        (None, "No such file"),
    ],
)
def test_a_training_configuration_that_is_wrong_is_named(
    run: Run, tmp_path: Path, text: str | None, named: str
) -> None:
    config = tmp_path / "mine.yaml"
    if text is not None:
        config.write_text(text)
    code, out, _ = run("where", tmp_path, "--config", config, "--json")
    assert code == 2
    assert named in json.dumps(json.loads(out)["error"])


def test_the_base_of_a_configuration_is_a_name_or_a_folder_beside_it(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("pissa_config:\n  base_model: bases/own\n")
    assert read_config(config)["project"] == {"base": "bases/own"}
    (tmp_path / "bases" / "own").mkdir(parents=True)
    assert read_config(config)["project"] == {"base": str(tmp_path / "bases" / "own")}


def test_an_artifact_knows_its_project(run: Run, tmp_path: Path, home: Path) -> None:
    workspace = Workspace(home)
    with workspace.stage("dataset", "elsewhere") as staged:
        dataset = staged.commit(id="ds-elsewhere-1234", inputs_hash="1234").id
    told = where(run, "use", dataset)
    assert (told["project"], told["repository"]) == ("elsewhere", None)
    assert "default settings count" in run("use", dataset)[2]
    code, out, _ = run("use", dataset, "--project", tmp_path / "stood-in", "--json")
    assert code == 2 and "it belongs to 'elsewhere'" in json.loads(out)["error"]["cause"]


def test_two_repositories_never_share_a_name(run: Run, tmp_path: Path) -> None:
    first, second = tmp_path / "one" / "app", tmp_path / "two" / "app"
    for repository in (first, second):
        repository.mkdir(parents=True)
    where(run, "where", first)
    code, out, _ = run("where", second, "--json")
    assert code == 2 and "already the project 'app'" in json.loads(out)["error"]["message"]
    first.rename(tmp_path / "moved")  # a repository that is gone gives its name free
    assert where(run, "where", second)["project"] == "app"


def test_repo_and_project_must_agree(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    where(run, "where", other)
    assert where(run, "where", other, "--project", "other")["project"] == "other"
    code, out, _ = run("where", tmp_path, "--project", "other", "--json")
    assert code == 2 and "two repositories" in json.loads(out)["error"]["message"]


def test_no_repository_anywhere(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    code, out, _ = run("look", "--json")
    assert code == 2 and "Which project" in json.loads(out)["error"]["message"]
    only = tmp_path / "only"
    only.mkdir()
    where(run, "where", only)
    assert where(run, "look")["project"] == "only"  # the only one known


# -- init -------------------------------------------------------------------------------------


def test_init_writes_valid_commented_settings(run: Run, tmp_path: Path) -> None:
    repository = tmp_path / "app"
    repository.mkdir()
    code, out, _ = run("init", repository, "--name", "my app", "--base", "some/base", "--json")
    assert code == 0
    path = repository / "forge.toml"
    assert json.loads(out) == {
        "project": "my app",
        "path": str(path),
        "repository": str(repository),
        "base": "some/base",
    }
    assert path.read_text().count("#") >= 8
    settings = load_settings(repository)
    assert settings.project.name == "my app" and settings.project.base == "some/base"
    plain = load_settings(None)
    assert settings.quality == plain.quality and settings.judging == plain.judging
    assert where(run, "look", "--project", "my app")["repository"] == str(repository)


def test_init_never_overwrites_without_force(run: Run, tmp_path: Path) -> None:
    repository = tmp_path / "app"
    repository.mkdir()
    (repository / "forge.toml").write_text("this is no toml")
    code, out, _ = run("init", repository, "--json")
    assert code == 2 and "is there already" in json.loads(out)["error"]["message"]
    assert (repository / "forge.toml").read_text() == "this is no toml"
    assert run("init", repository, "--force")[0] == 0
    assert load_settings(repository).project.name == "app"


def test_a_refused_init_changes_nothing(
    run: Run, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for repository in (first, second):
        repository.mkdir()
    assert run("init", first, "--name", "taken")[0] == 0
    code, out, _ = run("init", second, "--name", "taken", "--json")
    assert code == 2 and "already the project" in json.loads(out)["error"]["message"]
    assert not (second / "forge.toml").exists()

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("forge_mcp.pipeline.init.write_file", full)
    assert run("init", second, "--name", "free")[0] == 1
    names = Workspace(home).database.execute("SELECT name FROM projects").fetchall()
    assert [row["name"] for row in names] == ["taken"]


@given(name=st.text(min_size=1, max_size=40), base=st.text(min_size=1, max_size=40))
def test_init_round_trips_any_name_or_refuses_it(name: str, base: str) -> None:
    try:
        text = render(name, base, load_settings(None))
    except BadInput:
        return
    project = tomllib.loads(text)["project"]
    assert (project["name"], project["base"]) == (name, base)
    assert "/" not in name


# -- small parts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("training.rank=8", {"training": {"rank": 8}}),
        ("project.base=a=b", {"project": {"base": "a=b"}}),
        ('project.exclude=["a","b"]', {"project": {"exclude": ["a", "b"]}}),
        ("raft.preferences=false", {"raft": {"preferences": False}}),
        ("exporting.max_mean_kl.q8_0=0.5", {"exporting": {"max_mean_kl": {"q8_0": 0.5}}}),
    ],
)
def test_settings_are_json_or_text(text: str, parsed: dict[str, Any]) -> None:
    assert parse_setting(text) == parsed


@pytest.mark.parametrize("text", ["", "=", "rank=8", ".rank=8", "training.=8", "training.rank"])
def test_a_setting_of_no_such_form_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_setting(text)


def test_progress_bars_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    view = terminal.ProgressView(screen, None)

    def event(kind: Any, of_stage: str, /, **payload: Any) -> None:
        view(Event(time=0, stage=of_stage, kind=kind, payload=payload))

    event("state", "", stage="train", number=4, of=7)
    for done in (1, 2):
        event("progress", "train", done=done, total=2, message="epoch 1")
        event("metric", "train", loss=1.25, tokens_per_second=310.4, eta_seconds=130)
        time.sleep(0.25)
    event("log", "train", level="info", message="a word")
    view.close()
    shown = screen.getvalue()
    assert "[4/7] train" in shown and "train: epoch 1" in shown and "2/2" in shown
    assert "loss 1.250, 310 tokens/s, 2 min 10 s left" in shown and "a word" in shown


def test_a_stage_that_knows_tells_the_time_left() -> None:
    screen = io.StringIO()
    payload = {"done": 3, "total": 9, "message": "answered 1/4", "eta_seconds": 130}
    terminal.ProgressView(screen, None)(
        Event(time=0, stage="evaluate", kind="progress", payload=payload)
    )
    assert screen.getvalue() == "evaluate 3/9: answered 1/4 (2 min 10 s left)\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (12, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert terminal.describe_seconds(seconds) == text


def test_a_loss_is_told_once() -> None:
    metrics = "loss 1.300, valid loss 2.000, 310 tokens/s"
    told = terminal.describe_progress("train", 3, 4, "loss 1.200", metrics)
    assert told == f"train 3/4 ({metrics})"
    assert terminal.describe_progress("train", 3, None, "", metrics) == f"train 3 ({metrics})"


def test_faults_name_what_the_user_can_change(tmp_path: Path) -> None:
    assert isinstance(in_words(OSError(13, "denied", "/x"), "train", tmp_path), BadInput)
    assert in_words(KeyboardInterrupt(), "train", tmp_path).code == "cancelled"
    same = InvalidSettings("as it is")
    assert in_words(same, "train", tmp_path) is same
    assert "out of memory" in in_words(MemoryError(), "train", tmp_path).message
