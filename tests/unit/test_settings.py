"""defaults.yaml < forge.toml < environment < call."""

from pathlib import Path

import pytest

from forge_mcp.errors import InvalidSettings
from forge_mcp.settings import Settings, defaults, forge_home, load_settings, merge


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in os.environ:
        if name.startswith("FORGE_"):
            monkeypatch.delenv(name)


def test_defaults_hold_exactly_the_settings_that_exist() -> None:
    sections = {
        name: set(field.annotation.model_fields)  # type: ignore[union-attr]
        for name, field in Settings.model_fields.items()
    }
    assert {name: set(keys) for name, keys in defaults().items()} == sections


def test_each_layer_wins_over_the_one_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings(tmp_path).training.rank == defaults()["training"]["rank"]
    (tmp_path / "forge.toml").write_text("[training]\nrank = 3\nseed = 4\n")
    assert load_settings(tmp_path).training.rank == 3
    monkeypatch.setenv("FORGE_TRAINING__RANK", "5")
    assert load_settings(tmp_path).training.rank == 5
    called = load_settings(tmp_path, {"training": {"rank": 7}})
    assert called.training.rank == 7
    assert called.training.seed == 4


def test_nested_tables_are_merged_and_lists_replaced() -> None:
    low = {"a": {"x": 1, "y": [1, 2]}, "b": 1}
    assert merge(low, {"a": {"y": [3]}}) == {"a": {"x": 1, "y": [3]}, "b": 1}
    assert low == {"a": {"x": 1, "y": [1, 2]}, "b": 1}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[training]\nrnak = 3\n", "training.rnak"),
        ("[trainnig]\nrank = 3\n", "trainnig"),
        ("[training]\nrank = -1\n", "training.rank"),
        ("[raft]\noracle_absent_share = 2\n", "raft.oracle_absent_share"),
        ("[training\n", "forge.toml"),
    ],
)
def test_a_wrong_project_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "forge.toml").write_text(text)
    with pytest.raises(InvalidSettings) as caught:
        load_settings(tmp_path)
    assert named in str(caught.value)
    assert caught.value.next_step


def test_a_wrong_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_TRAINING__RANK", "many")
    with pytest.raises(InvalidSettings, match=r"training\.rank"):
        load_settings()
    monkeypatch.setenv("FORGE_TRAINING__RANK", "8")
    monkeypatch.setenv("FORGE_EXPORTING__MAX_MEAN_KL", "{not json")
    with pytest.raises(InvalidSettings, match="environment"):
        load_settings()


def test_a_variable_of_an_unknown_section_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_TRAINNG__RANK", "8")
    with pytest.raises(InvalidSettings, match="FORGE_TRAINNG__RANK sets nothing"):
        load_settings()


@pytest.mark.parametrize(
    "host", ["http://models.example.com:11434", "10.0.0.7:11434", "http://127.0.0.1@evil.com", ""]
)
def test_a_repository_may_not_send_models_to_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    (tmp_path / "forge.toml").write_text(f'[serving]\nollama_host = "{host}"\n')
    with pytest.raises(InvalidSettings, match=r"serving\.ollama_host"):
        load_settings(tmp_path)
    called = load_settings(tmp_path, {"serving": {"ollama_host": host}})
    assert called.serving.ollama_host == host
    monkeypatch.setenv("FORGE_SERVING__OLLAMA_HOST", "http://mine.example.com")
    assert load_settings(tmp_path).serving.ollama_host == "http://mine.example.com"


@pytest.mark.parametrize("host", ["localhost:1234", "http://127.0.0.2", "https://[::1]:11434"])
def test_a_repository_may_name_an_ollama_of_this_machine(tmp_path: Path, host: str) -> None:
    (tmp_path / "forge.toml").write_text(f'[serving]\nollama_host = "{host}"\n')
    assert load_settings(tmp_path).serving.ollama_host == host


def test_home_is_a_variable_or_a_folder_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "elsewhere"))
    assert forge_home() == (tmp_path / "elsewhere").resolve()
    monkeypatch.delenv("FORGE_HOME")
    assert forge_home() == Path("~/.forge").expanduser().resolve()


def test_a_repository_cannot_have_problems_fetched(tmp_path: Path) -> None:
    address = "https://data.example.com/HumanEval.jsonl.gz"
    (tmp_path / "forge.toml").write_text(f'[judging]\nhumaneval = "{address}"\n')
    with pytest.raises(InvalidSettings, match=r"judging\.humaneval"):
        load_settings(tmp_path)
    called = load_settings(tmp_path, {"judging": {"humaneval": address}})
    assert called.judging.humaneval == address
    (tmp_path / "forge.toml").write_text('[judging]\nhumaneval = "problems/HumanEval.jsonl"\n')
    assert load_settings(tmp_path).judging.humaneval == "problems/HumanEval.jsonl"
