"""tensorswap keeps training state on NVMe.

It swaps NumPy arrays, torch tensors and any other memory out to files and back, through io_uring and without
a copy, and keeps an optimizer's state in a crash-consistent store. The engine is a Rust library; this package
is its Python face.

    import numpy, tensorswap

    with tensorswap.Engine() as engine:
        weights = engine.buffer(1 << 20).numpy("f32")     # pinned memory as an array
        engine.swap_out(weights, "weights.swp").wait()
        engine.swap_in(weights, "weights.swp").wait()
"""

from tensorswap.buffer import Buffer
from tensorswap.config import Config, ConfigKey, config_keys
from tensorswap.dtype import DType
from tensorswap.engine import Engine
from tensorswap.errors import (
    BadTicketError,
    BudgetError,
    BusyError,
    CancelledError,
    ChecksumError,
    ConfigError,
    CorruptError,
    DtypeMismatchError,
    Error,
    ForkedError,
    InternalError,
    InvalidArgumentError,
    InvalidFileError,
    LockedError,
    MemlockError,
    NoBuffersError,
    NoMemoryError,
    NoSpaceError,
    NotFoundError,
    PermissionDeniedError,
    PoisonedError,
    ShutDownError,
    SizeMismatchError,
    StorageError,
    TimedOutError,
    UnknownParameterError,
    UnsupportedError,
    UnsupportedFileError,
)
from tensorswap.log import set_log, to_logging
from tensorswap.memory import Memory
from tensorswap.optimizer import GradientNorm, Optimizer, ParameterInfo, Partition
from tensorswap.stats import EngineStats, OptimizerStats, SwapperStats, Timer, version
from tensorswap.step import Step
from tensorswap.swapper import Swapper
from tensorswap.tensor import Tensor
from tensorswap.ticket import Completion, Ticket
from tensorswap.view import ParameterView, StateViews

__version__ = version()

__all__ = [
    "BadTicketError",
    "BudgetError",
    "Buffer",
    "BusyError",
    "CancelledError",
    "ChecksumError",
    "Completion",
    "Config",
    "ConfigError",
    "ConfigKey",
    "CorruptError",
    "DType",
    "DtypeMismatchError",
    "Engine",
    "EngineStats",
    "Error",
    "ForkedError",
    "GradientNorm",
    "InternalError",
    "InvalidArgumentError",
    "InvalidFileError",
    "LockedError",
    "MemlockError",
    "Memory",
    "NoBuffersError",
    "NoMemoryError",
    "NoSpaceError",
    "NotFoundError",
    "Optimizer",
    "OptimizerStats",
    "ParameterInfo",
    "ParameterView",
    "Partition",
    "PermissionDeniedError",
    "PoisonedError",
    "ShutDownError",
    "SizeMismatchError",
    "StateViews",
    "Step",
    "StorageError",
    "Swapper",
    "SwapperStats",
    "Tensor",
    "Ticket",
    "TimedOutError",
    "Timer",
    "UnknownParameterError",
    "UnsupportedError",
    "UnsupportedFileError",
    "config_keys",
    "set_log",
    "to_logging",
    "version",
]
