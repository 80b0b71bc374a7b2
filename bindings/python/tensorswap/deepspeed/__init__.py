"""DeepSpeed's NVMe offload on the engine of this package.

    import tensorswap.deepspeed
    tensorswap.deepspeed.install()

From then on DeepSpeed loads this engine wherever it would load its own `async_io` and `pin_memory` operators:
for the optimizer's and the parameters' swappers, for fast checkpoints and for pinned memory. Nothing is
compiled. `TENSORSWAP_DEEPSPEED=1` in the environment does the same in every process that imports DeepSpeed,
so the ranks that its launcher starts need no change.

Importing this module imports neither torch nor DeepSpeed; `install` does.
"""

from __future__ import annotations

from tensorswap.deepspeed.installation import (
    MINIMUM_VERSION,
    DeepSpeedVersionError,
    install,
    installed,
    uninstall,
)
from tensorswap.deepspeed.process import engine

__all__ = [
    "MINIMUM_VERSION",
    "DeepSpeedVersionError",
    "engine",
    "install",
    "installed",
    "uninstall",
]
