"""Gives the optimizer its state back when DeepSpeed loads a checkpoint with state on NVMe.

DeepSpeed saves the swap files and, in `..._optim_states.pt`, all that is not in them: Adam's step, states and
master weights too small to be swapped, learning rates, the loss scale. When it loads it copies the files back
and reads nothing of the rest, so that training goes on with a new optimizer and with old weights where they
are small. Here the rest is read too, at the moment at which DeepSpeed has copied the files.

What is not done: another number of ranks, and universal checkpoints.
"""

from __future__ import annotations

import contextvars
import errno
import functools
import inspect
import os
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import torch

from tensorswap.errors import CorruptError, NotFoundError, UnsupportedError

__all__ = ["loader", "resetter"]


class _Loading(NamedTuple):
    engine: Any
    folder: str
    tag: str


#: The checkpoint that this thread loads.
_loading: contextvars.ContextVar[Optional[_Loading]] = contextvars.ContextVar("loading", default=None)


def loader(own: Callable[..., Any]) -> Callable[..., Any]:
    """DeepSpeedEngine.load_checkpoint, with a note of what it loads."""

    signature = inspect.signature(own)

    @functools.wraps(own)
    def load_checkpoint(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        wanted = given.arguments["load_optimizer_states"] and not given.arguments["load_module_only"]
        token = None
        if wanted and self.zero_nvme_offload_optimizer() and not self.load_universal_checkpoint():
            folder = given.arguments["load_dir"]
            tag = _tag_of(folder, given.arguments["tag"])
            token = None if tag is None else _loading.set(_Loading(self, folder, tag))
        try:
            return own(self, *args, **kwargs)
        finally:
            if token is not None:
                _loading.reset(token)

    return load_checkpoint


def resetter(own: Callable[..., Any]) -> Callable[..., Any]:
    """DeepSpeedZeroOptimizer_Stage3.reset_swap_buffers, after the optimizer has its state again.

    DeepSpeed calls it when the swap files are in their place, to take over the weights that are in them.
    """

    @functools.wraps(own)
    def reset_swap_buffers(self: Any) -> Any:
        loading = _loading.get()
        if loading is not None and loading.engine.optimizer is self:
            _restore(self, loading)
        return own(self)

    return reset_swap_buffers


def _tag_of(load_dir: Any, tag: Any) -> Optional[str]:
    """The tag, or that of the latest checkpoint; None where there is none, as DeepSpeed will tell."""
    if tag is not None:
        return str(tag)
    latest = os.path.join(load_dir, "latest")
    if not os.path.isfile(latest):
        return None
    with open(latest, encoding="utf-8") as file:
        return file.read().strip()


def _restore(optimizer: Any, loading: _Loading) -> None:
    """Take over what a checkpoint tells besides the swap files."""
    saved = _saved_state(optimizer, loading)
    inner = saved["optimizer_state_dict"]
    optimizer.loss_scaler = saved["loss_scaler"]
    optimizer.dynamic_loss_scale = saved["dynamic_loss_scale"]
    optimizer.overflow = saved["overflow"]
    # DeepSpeed numbers the parameters of its optimizer only while it saves.
    optimizer._set_fp32_optimizer_param_groups()
    try:
        groups = optimizer.optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        counts = [len(group["params"]) for group in groups]
    finally:
        optimizer._clear_fp32_optimizer_param_groups()
    if counts != [len(group["params"]) for group in inner["param_groups"]]:
        raise CorruptError(f"{loading.folder}/{loading.tag}: the checkpoint is of another partition of parameters")
    for group, old in zip(groups, inner["param_groups"]):
        group.update({key: value for key, value in old.items() if key != "params"})

    masters = {id(mine): old for mine, old in zip(optimizer.fp32_partitioned_groups_flat, saved["fp32_flat_groups"])}
    swapper = optimizer.optimizer_swapper
    for index, parameter in enumerate(parameters):
        state = inner["state"].get(index, {})
        info = swapper.swap_params_info.get(getattr(parameter, "ds_id", None))
        if info is not None:
            _restore_swapped(optimizer.optimizer, parameter, info, state)
            continue
        with torch.no_grad():
            parameter.data.copy_(masters[id(parameter)].data)
        optimizer.optimizer.state[parameter] = {
            key: value.clone() if torch.is_tensor(value) else value for key, value in state.items()
        }


def _saved_state(optimizer: Any, loading: _Loading) -> Dict[str, Any]:
    """What this rank saved of its optimizer."""
    engine = loading.engine
    place = f"{loading.folder}/{loading.tag}"
    before, now = engine.loaded_checkpoint_dp_world_size, engine.seq_dp_world_size
    if before != now:
        raise UnsupportedError(f"{place} is of {before} ranks, these are {now}: state on NVMe needs as many")
    shards = engine._get_all_zero_checkpoints(loading.folder, loading.tag)
    if shards is None:
        raise NotFoundError(f"{place} holds no optimizer state", errno.ENOENT)
    rank = torch.distributed.get_rank(group=optimizer.dp_process_group)
    found: Dict[str, Any] = shards[rank]
    return found


def _restore_swapped(inner: Any, parameter: Any, info: Any, state: Dict[str, Any]) -> None:
    """Let the swapper know of the states that lie in files, and the optimizer of those that do not."""
    mine = inner.state[parameter]
    swapped: List[Any] = []
    for key, value in state.items():
        name = f"{key}-{parameter.ds_id}"
        path = os.path.join(info.swap_folder, f"{name}.tensor.swp")
        if not torch.is_tensor(value) or value.dim() == 0:
            mine[key] = value.clone() if torch.is_tensor(value) else value
        elif not os.path.isfile(path):
            raise NotFoundError(
                f"{path} is not in the checkpoint, but the state {key} should be there", errno.ENOENT, path
            )
        elif not info.has_state_tensors:
            # Empty until it is swapped in, as every state is between two steps.
            mine[key] = torch.empty(0, dtype=value.dtype)
            mine[key].ds_id = name
            swapped.append(mine[key])
    if swapped:
        info.add_state_tensors(swapped)
