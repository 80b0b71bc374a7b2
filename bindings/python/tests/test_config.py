"""Keys and values."""

import json
from pathlib import Path

import pytest
import tensorswap
from tensorswap import Config, ConfigError, Engine


def test_every_key_has_a_default_and_a_meaning() -> None:
    config = Config()
    for key in tensorswap.config_keys():
        assert config[key.name] == key.default and key.help.split(":")[0] in ("engine", "optimizer")
    assert len(config) == len(list(config)) == len(tensorswap.config_keys()) > 20


def test_keys_come_as_arguments_mappings_and_json() -> None:
    wanted = {"queue_depth": "8", "sqpoll": "true", "block_bytes": "2MiB"}
    for config in (
        Config(queue_depth=8, sqpoll=True, block_bytes="2MiB"),
        Config({"queue_depth": 8, "sqpoll": True}, block_bytes=2 << 20),
        Config.from_json(json.dumps({"queue_depth": 8, "sqpoll": True, "block_bytes": "2MiB"})),
        Config(Config(queue_depth=8, sqpoll="true", block_bytes="2097152")),
    ):
        assert {key: config[key] for key in wanted} == wanted
        assert repr(config).startswith("Config({")


def test_a_deepspeed_configuration_is_read() -> None:
    config = Config.from_json(b'{"train_batch_size": 8, "aio": {"queue_depth": 64, "block_size": 1048576}}')
    assert (config["queue_depth"], config["block_bytes"]) == ("64", "1MiB")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("queue_deth", 8, "queue_depth"),
        ("queue_depth", 0, "1"),
        ("queue_depth", "many", "queue_depth"),
        ("direct_io", "maybe", "require"),
        ("path", "a\0b", "NUL"),
        ("path", ["a", "b"], "list"),
        ("path", None, "NoneType"),
    ],
)
def test_an_unknown_key_or_value_is_refused(key: str, value: object, message: str) -> None:
    config = Config(queue_depth=7)
    with pytest.raises(ConfigError, match=message) as raised:
        config[key] = value
    assert "\n" not in str(raised.value) and config["queue_depth"] == "7"
    with pytest.raises(ValueError):
        Engine({key: value})


def test_a_key_that_is_not_there_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        Config()["nothing"]
    assert Config().get("nothing") is None and "queue_depth" in Config() and "nothing" not in Config()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"queue_depth": {}}', '{"nothing": 1}', "\0", "é"])
def test_a_text_that_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Config.from_json(text)


def test_a_path_is_a_value(tmp_path: Path) -> None:
    assert Config(path=tmp_path)["path"] == str(tmp_path)


def test_keys_on_top_of_a_configuration_do_not_change_it(tmp_path: Path) -> None:
    config = Config(queue_depth=4)
    with Engine(config, queue_depth=16) as engine:
        assert engine.describe()["queue_depth"] == 16
    assert config["queue_depth"] == "4"
