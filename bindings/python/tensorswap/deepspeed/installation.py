"""Puts the engine under DeepSpeed, and takes it away again."""

from __future__ import annotations

import re
import sys
import threading
import types
from typing import Any, Callable, Iterator, List, Mapping, Optional, Tuple, Type

from tensorswap.config import Config, ConfigLike
from tensorswap.deepspeed import process
from tensorswap.errors import UnsupportedError

__all__ = ["MINIMUM_VERSION", "DeepSpeedVersionError", "install", "installed", "uninstall"]

#: The first version whose swappers ask the handle, not the accelerator, for pinned memory.
MINIMUM_VERSION = "0.19.4"
#: Where DeepSpeed keeps its `pin_memory` operator for the whole process, from 0.19.5 on.
_PIN_MEMORY_ATTRIBUTE = "_deepspeed_pin_memory_op_module"
_MISSING = object()

_lock = threading.Lock()
#: What undoes the installation, last things first; None where there is none.
_undo: Optional[List[Callable[[], None]]] = None


class DeepSpeedVersionError(ImportError):
    """The DeepSpeed of this environment is too old."""


def install(config: ConfigLike = None, mend: bool = True) -> None:
    """Let DeepSpeed use this engine wherever it would load its `async_io` and `pin_memory` operators.

    `config` holds keys of the engine (`tensorswap.config_keys` lists them), as mapping or `Config`. Without
    `queue_depth` and `block_bytes` the section "aio" of DeepSpeed's configuration decides.

    With `mend` two defects of DeepSpeed above its engine are mended too. `load_checkpoint` restores all of an
    optimizer whose state is on NVMe: DeepSpeed drops Adam's moments and step, and the master weights of small
    groups. And reading ahead no longer fails on a parameter that is used twice.

    Call it before `deepspeed.initialize`; handles that DeepSpeed made before keep their engine. Twice is
    fine. Raises DeepSpeedVersionError for a DeepSpeed before 0.19.4, ImportError where there is none, and
    ConfigError for a key or value that is wrong; nothing is changed then.
    """
    global _undo
    keys = _keys_of(config)
    _check_version()
    with _lock:
        if _undo is not None and config is None:
            return
        if config is not None:
            process.configure(keys)
        if _undo is None:
            undo: List[Callable[[], None]] = []
            try:
                _put_in_place(undo)
                if mend:
                    _mend(undo)
            except BaseException:
                _run(undo)
                raise
            _undo = undo


def uninstall() -> None:
    """Give DeepSpeed its own operators back. Handles made meanwhile go on to work. Twice is fine."""
    global _undo
    with _lock:
        undo, _undo = _undo, None
        if undo is not None:
            _run(undo)


def installed() -> bool:
    """Whether DeepSpeed uses this engine."""
    return _undo is not None


def _run(undo: List[Callable[[], None]]) -> None:
    while undo:
        undo.pop()()


def _keys_of(config: ConfigLike) -> Mapping[str, Any]:
    """The keys that were given, after the library has checked them."""
    if config is None:
        return {}
    checked = Config(config)
    if isinstance(config, Config):
        return {key: value for key, value in config.items() if value != Config()[key]}
    return {key: checked[key] for key in config}


def _check_version() -> None:
    try:
        import deepspeed
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] == "deepspeed":
            raise ImportError("tensorswap.deepspeed: DeepSpeed is not installed") from None
        raise
    version = getattr(deepspeed, "__version__", "")
    if _numbers(version) < _numbers(MINIMUM_VERSION):
        raise DeepSpeedVersionError(
            f"tensorswap.deepspeed needs DeepSpeed {MINIMUM_VERSION} or later, this is {version or 'of no version'}"
        )


def _numbers(version: str) -> Tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def _put_in_place(undo: List[Callable[[], None]]) -> None:
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops.op_builder.builder import OpBuilder

    from tensorswap.deepspeed import handle

    async_io = _operator("async_io", handle.aio_handle, handle.aio_read, handle.aio_write, handle.deepspeed_memcpy)
    pin_memory = _operator("pin_memory", handle.pin_handle)
    _replace(undo, sys, _PIN_MEMORY_ATTRIBUTE, pin_memory)
    # DeepSpeed looks here before it looks for a built operator, or builds one.
    for root in {OpBuilder, *_roots(get_accelerator())}:
        for module in (async_io, pin_memory):
            _replace_item(undo, root._loaded_ops, module.__name__.rpartition(".")[2], module)
        for builder in set(_subclasses(root)):
            name = getattr(builder, "NAME", None)
            if name in ("async_io", "pin_memory"):
                _replace(undo, builder, "is_compatible", _compatible(builder))
            elif name == "gds":
                _replace(undo, builder, "load", _no_gds)


def _mend(undo: List[Callable[[], None]]) -> None:
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.swap_tensor.partitioned_param_swapper import AsyncPartitionedParameterSwapper
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    from tensorswap.deepspeed import checkpoint, prefetch

    loader = checkpoint.loader(DeepSpeedEngine.load_checkpoint)
    resetter = checkpoint.resetter(DeepSpeedZeroOptimizer_Stage3.reset_swap_buffers)
    _replace(undo, DeepSpeedEngine, "load_checkpoint", loader)
    _replace(undo, DeepSpeedZeroOptimizer_Stage3, "reset_swap_buffers", resetter)
    swap_in = prefetch.once_each(AsyncPartitionedParameterSwapper.swap_in)
    _replace(undo, AsyncPartitionedParameterSwapper, "swap_in", swap_in)


def _operator(name: str, *contents: Any) -> types.ModuleType:
    """A module in the place of a compiled operator. It has no `__file__`: there is no library to load."""
    module = types.ModuleType(f"tensorswap.deepspeed.{name}", "DeepSpeed's operator on the engine of tensorswap.")
    for item in contents:
        setattr(module, item.__name__, item)
    return module


def _roots(accelerator: Any) -> Iterator[Type[Any]]:
    """The classes whose list of loaded operators the accelerator's builders look at."""
    for name in ("AsyncIOBuilder", "PinMemoryBuilder"):
        builder = accelerator.get_op_builder(name)
        for base in getattr(builder, "__mro__", ()):
            if "_loaded_ops" in vars(base):
                yield base


def _subclasses(root: Type[Any]) -> Iterator[Type[Any]]:
    for child in root.__subclasses__():
        yield child
        yield from _subclasses(child)


def _compatible(builder: Type[Any]) -> Callable[..., bool]:
    """Tells DeepSpeed that the operator is to be had: there is nothing to build."""
    own = builder.is_compatible
    name = builder.NAME

    def is_compatible(self: Any, verbose: bool = False) -> bool:
        # GPUDirect's builder is derived from this one, and is to ask for itself.
        return True if self.name == name else bool(own(self, verbose))

    return is_compatible


def _no_gds(_self: Any, verbose: bool = False) -> Any:
    raise UnsupportedError(
        "tensorswap.deepspeed: GPUDirect Storage is not done by this engine; set use_gds in the section aio to "
        "false, or call tensorswap.deepspeed.uninstall()"
    )


def _replace(undo: List[Callable[[], None]], owner: Any, name: str, value: Any) -> None:
    """Set an attribute, and note how to undo that."""
    before = vars(owner).get(name, _MISSING)

    def restore() -> None:
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    setattr(owner, name, value)
    undo.append(restore)


def _replace_item(undo: List[Callable[[], None]], owner: Any, name: str, value: Any) -> None:
    """Set an entry of a dictionary, and note how to undo that."""
    before = owner.get(name, _MISSING)

    def restore() -> None:
        if before is _MISSING:
            owner.pop(name, None)
        else:
            owner[name] = before

    owner[name] = value
    undo.append(restore)
