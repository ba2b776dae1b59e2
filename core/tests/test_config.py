"""Defaults, file, environment and overrides; and what a wrong key is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli
from pydantic import BaseModel

from fastllm_core.config import Config, config_from, config_schema, load_config
from fastllm_core.config_text import starter, to_toml
from fastllm_core.errors import ConfigError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error(**sources: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(**{"environ": {}, **sources})  # type: ignore[arg-type]
    return str(caught.value)


def test_defaults() -> None:
    config = load_config(environ={})
    assert config == Config()
    assert (config.model, config.method, config.draft.length, config.draft.controller) == ("demo", "auto", 5, "auto")


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        'model = "a"\ndevice = "cpu"\n[draft]\nlength = 2\ncontroller = "fixed"\n[options.m]\nx = 1\ny = 2\n'
    )
    environ = {"FASTLLM_DRAFT__LENGTH": "3", "FASTLLM_OPTIONS__M__X": "5", "FASTLLM_DEVICE": ""}
    config = load_config(file, {"draft.length": 4, "sampling": {"top_p": 0.5}}, environ)
    assert (config.model, config.device) == ("a", "cpu")
    assert (config.draft.length, config.draft.controller) == (4, "fixed")
    assert config.options == {"m": {"x": 5, "y": 2}}
    assert config.sampling.top_p == 0.5
    assert load_config(file, None, environ).draft.length == 3


def test_a_plugins_hyphens_are_underscores_in_the_environment() -> None:
    config = load_config(environ={"FASTLLM_OPTIONS__PROMPT_LOOKUP__MAX_NGRAM": "3"})
    assert config.options == {"prompt-lookup": {"max_ngram": 3}}


def test_file_by_variable_or_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "fastllm.toml").write_text('model = "here"')
    (tmp_path / "other.toml").write_text('model = "there"')
    assert load_config(environ={}).model == "here"
    assert load_config(environ={"FASTLLM_CONFIG": "other.toml"}).model == "there"
    assert "nope.toml: cannot read" in error(path="nope.toml")


def test_texts_become_what_the_key_wants() -> None:
    texts = {"revision": "1234567", "draft.length": "3", "lossy": "true", "use": "a, b", "requires": '["x>=1"]'}
    texts |= {
        "options.m.ratio": "0.5",
        "options.m.name": "plain words",
        "options.m.list": "[1, 2]",
        "model": '"quoted"',
    }
    config = load_config(overrides=texts, environ={})
    assert (config.revision, config.draft.length, config.lossy, config.use) == ("1234567", 3, True, ["a", "b"])
    assert config.requires == ["x>=1"]
    assert config.options == {"m": {"ratio": 0.5, "name": "plain words", "list": [1, 2]}}
    assert config.model == "quoted"


def test_unknown_keys_say_what_was_meant(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("modle = 'x'\nlength = 3\n[draft]\nlenght = 3\n")
    lines = error(path=file).splitlines()
    assert f"modle: unknown key ({file}); did you mean 'model'?" in lines
    assert f"draft.lenght: unknown key ({file}); did you mean 'draft.length'?" in lines
    assert f"length: unknown key ({file}); did you mean 'draft.length'?" in lines


def test_wrong_values_are_all_told_with_their_source() -> None:
    environ = {"FASTLLM_ENGINE__MAX_ROWS": "0", "FASTLLM_ACCEPTANCE__RULE": "mach"}
    lines = error(environ=environ, overrides={"sampling.top_p": 7, "draft.length": "long"}).splitlines()
    assert len(lines) == 4
    assert any(line.startswith("engine.max_rows: ") and "FASTLLM_ENGINE__MAX_ROWS" in line for line in lines)
    assert any(line.startswith("acceptance.rule: ") and "'match'" in line for line in lines)
    assert any(line.startswith("draft.length: ") and line.endswith("not 'long' (override)") for line in lines)
    assert all(len(line) < 160 for line in lines)


def test_wrong_variables() -> None:
    message = error(environ={"FASTLLM_DRAFT__LENGHT": "3"})
    assert message == "FASTLLM_DRAFT__LENGHT: unknown environment variable; did you mean 'FASTLLM_DRAFT__LENGTH'?"
    reserved = {"FASTLLM_PLUGINS": "a", "FASTLLM_CACHE": "/x", "FASTLLM_TRACE_PLUGINS": "1", "OTHER": "x"}
    assert load_config(environ=reserved) == Config()


@pytest.mark.parametrize("key", ["trust_remote_code", "options.m.trust_remote_code"])
def test_trust_is_never_configured(key: str) -> None:
    message = error(overrides={key: True})
    assert message.startswith(f"{key}: never read from a configuration")
    assert "--trust-remote-code" in message


def test_value_where_a_table_belongs(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("draft = 5")
    assert "draft.length: 'draft' is a value and not a table" in error(path=file, overrides={"draft.length": 3})
    keys = "draft.controller, draft.length, draft.threshold, draft.acceptance"
    assert error(path=file) == f"draft: is a table, not 5 ({file}); its keys are {keys}"
    file.write_text("draft = ")
    assert "not valid TOML" in error(path=file)


def test_a_rule_takes_its_own_settings_and_no_others() -> None:
    assert config_from({"acceptance": {"rule": "typical", "epsilon": 0.2, "delta": 0.5}}).acceptance.epsilon == 0.2
    assert config_from({"acceptance": {"rule": "lenient", "lenience": 1.0}}).acceptance.lenience == 1
    for rule, key, reader in (
        ("auto", "epsilon", "typical"),
        ("lenient", "delta", "typical"),
        ("typical", "lenience", "lenient"),
    ):
        message = error(overrides={"acceptance.rule": rule, f"acceptance.{key}": 0.5})
        assert message == f'acceptance.{key}: must be unset unless acceptance.rule = "{reader}", not 0.5 (override)'


@pytest.mark.parametrize(
    ("rule", "key", "value"),
    [("typical", "epsilon", -0.1), ("typical", "epsilon", 1.0), ("typical", "delta", -1.0),
     ("lenient", "lenience", 0.0), ("lenient", "lenience", 1.1)],
)  # fmt: skip
def test_acceptance_settings_have_bounds(rule: str, key: str, value: float) -> None:
    message = error(overrides={"acceptance.rule": rule, f"acceptance.{key}": value})
    assert message.startswith(f"acceptance.{key}: should be ")


def test_config_is_frozen_and_strict() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().model = "x"  # type: ignore[misc]
    with pytest.raises(ConfigError, match=r"^draft\.length: should be a valid integer, not '5' \(config\)"):
        config_from({"draft": {"length": "5"}})


def models(model: type[BaseModel]) -> list[type[BaseModel]]:
    kinds = [field.annotation for field in model.model_fields.values()]
    return [model, *(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))]


def test_every_field_is_described_and_in_the_starter() -> None:
    for model in models(Config):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no description"
            assert f"{name} = " in starter() or f"[{name}" in starter()


def test_starter_states_the_defaults() -> None:
    assert config_from(tomli.loads(starter())) == Config()
    uncommented = "\n".join(
        line.removeprefix("# ") if line.startswith("# ") and " = " in line and "," not in line else line
        for line in starter().splitlines()
    )
    tomli.loads(uncommented)  # the hints for what is unset are values, too


def test_toml_round_trip() -> None:
    config = config_from({"model": 'a "b"\n', "use": ["x", "y"], "options": {"m-1": {"a": {"b": [1.5]}, "c": True}}})
    assert config_from(tomli.loads(to_toml(config))) == config


def test_schema_is_json_with_descriptions() -> None:
    schema = json.loads(json.dumps(config_schema()))
    assert schema["additionalProperties"] is False
    assert schema["properties"]["model"]["description"]
