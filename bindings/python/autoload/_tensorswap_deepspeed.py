"""Puts the engine under DeepSpeed in every process that has TENSORSWAP_DEEPSPEED=1 in its environment.

Python reads tensorswap_deepspeed.pth when it starts, and that calls `prepare` where the variable is set; where
it is not, nothing of this package is loaded. Even then nothing happens before the program imports DeepSpeed.
What is wrong is told there, as an exception of `import deepspeed`: training on another engine than the one
asked for would go unnoticed.
"""

import os
import sys
from importlib.machinery import PathFinder

VARIABLE = "TENSORSWAP_DEEPSPEED"
CONFIG_VARIABLE = "TENSORSWAP_DEEPSPEED_CONFIG"
OFF = ("", "0", "false", "off", "no")
ON = ("1", "true", "on", "yes")


def prepare():
    """Wait for the import of DeepSpeed, if the variable says so."""
    if os.environ.get(VARIABLE, "").lower() not in OFF:
        sys.meta_path.insert(0, _Finder)


class _Finder:
    """Finds DeepSpeed where everybody does, and adds to what its import does."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "deepspeed":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            _install()

        spec.loader.exec_module = exec_module
        return spec


def _install():
    value = os.environ.get(VARIABLE, "")
    if value.lower() in OFF:
        return
    if value.lower() not in ON:
        raise ImportError(f"{VARIABLE} must be 1 or 0, not {value!r}")
    import tensorswap.deepspeed

    tensorswap.deepspeed.install(_config())


def _config():
    """The keys in the JSON file that the environment names."""
    name = os.environ.get(CONFIG_VARIABLE, "")
    if not name:
        return None
    import json

    try:
        with open(name, encoding="utf-8") as file:
            keys = json.load(file)
    except (OSError, ValueError) as error:
        raise ImportError(f"{CONFIG_VARIABLE}: {name} cannot be read: {error}") from None
    if not isinstance(keys, dict):
        raise ImportError(f"{CONFIG_VARIABLE}: {name} must hold one JSON object")
    return keys
