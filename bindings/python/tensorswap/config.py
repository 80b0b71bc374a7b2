"""Configuration: keys and values as text, checked by the library when they are set."""

from __future__ import annotations

import os
from typing import Any, Iterator, List, Mapping, NamedTuple, Optional, Union

from tensorswap._library import check, destructor, ffi, grown_text, lib, text_of
from tensorswap.errors import ConfigError, NoMemoryError


class ConfigKey(NamedTuple):
    """One key of the configuration."""

    name: str
    default: str
    #: One line: which object takes the key, and what it does.
    help: str


def config_keys() -> List[ConfigKey]:
    """Every key there is."""
    return [
        ConfigKey(
            text_of(lib.tsw_config_key_name(index)),
            text_of(lib.tsw_config_key_default(index)),
            text_of(lib.tsw_config_key_help(index)),
        )
        for index in range(lib.tsw_config_keys())
    ]


def _text(value: Any) -> str:
    """A value as the library writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    raise ConfigError(f"a value must be text, a number, a bool or a path, not {type(value).__name__}")


def _c_text(text: str, what: str) -> bytes:
    encoded = text.encode("utf-8", "surrogateescape")
    if b"\0" in encoded:
        raise ConfigError(f"a {what} cannot hold a NUL: {text!r}")
    return encoded


class Config(Mapping[str, str]):
    """Keys and values for engines and optimizers.

        Config(queue_depth=32, direct_io="require")
        Config({"path": "/mnt/nvme", "cache_bytes": "2GiB"}, sync="none")

    Reading a key that was not set gives its default. One configuration may be given to every object: each
    takes the keys that are its own, and a copy of them. Unknown keys and illegal values raise ConfigError,
    which names the nearest key or what is legal. Used by one thread at a time.
    """

    def __init__(self, values: Optional[Mapping[str, Any]] = None, **more: Any) -> None:
        handle = lib.tsw_config_new()
        if handle == ffi.NULL:
            raise NoMemoryError("no memory for a configuration")
        self._handle = ffi.gc(handle, destructor(lib.tsw_config_free))
        self.update(values, **more)

    @classmethod
    def from_json(cls, text: Union[str, bytes]) -> Config:
        """A configuration of a JSON text: our own flat object, or a whole DeepSpeed configuration."""
        config = cls()
        config.load_json(text)
        return config

    def load_json(self, text: Union[str, bytes]) -> None:
        """Take the values of a JSON text, all or none."""
        encoded = text.encode("utf-8") if isinstance(text, str) else bytes(text)
        check(lib.tsw_config_load_json(self._handle, encoded, len(encoded)))

    def update(self, values: Optional[Mapping[str, Any]] = None, **more: Any) -> None:
        """Set several keys, one after the other."""
        for key, value in {**(values or {}), **more}.items():
            self[key] = value

    def __setitem__(self, key: str, value: Any) -> None:
        check(lib.tsw_config_set(self._handle, _c_text(str(key), "key"), _c_text(_text(value), "value")))

    def __getitem__(self, key: str) -> str:
        name = _c_text(str(key), "key")
        if lib.tsw_config_get(self._handle, name, ffi.NULL, 0) == 2**64 - 1:
            raise KeyError(key)
        return grown_text(lambda memory, cap: int(lib.tsw_config_get(self._handle, name, memory, cap)))

    def __iter__(self) -> Iterator[str]:
        return iter([key.name for key in config_keys()])

    def __len__(self) -> int:
        return int(lib.tsw_config_keys())

    def __repr__(self) -> str:
        changed = {key.name: self[key.name] for key in config_keys() if self[key.name] != key.default}
        return f"Config({changed!r})"


#: Anything that tells a configuration.
ConfigLike = Union[Config, Mapping[str, Any], None]


def config_of(config: ConfigLike, more: Mapping[str, Any]) -> Any:
    """The handle of a configuration and some keys on top, or NULL for none. The caller keeps the result."""
    if not more and (config is None or isinstance(config, Config)):
        return ffi.NULL if config is None else config._handle
    return Config({**(config or {}), **more})._handle
