"""Trains a small transformer with ZeRO-3, and writes down losses and what the engine moved.

One rank of a run; the DeepSpeed launcher starts as many as wanted. The data is a text of a language with a
simple grammar, made from a seed, so that every run sees the same. Nothing in here knows of tensorswap: it is
put under DeepSpeed by the environment, as a user would do it.
"""

import argparse
import json
import os
import sys

import deepspeed
import torch
from torch import nn

CONTEXT, VOCABULARY = 64, 256


class Block(nn.Module):
    """Attention and a feed-forward layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A language model of a few layers."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, 8) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens[:, :-1]) + self.places(torch.arange(tokens.shape[1] - 1))
        for block in self.blocks:
            x = block(x)
        return nn.functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1), tokens[:, 1:].flatten())


def batch_of(step: int, rank: int, size: int) -> torch.Tensor:
    """Sentences of step and rank: each token follows from the one before, with a little chance."""
    source = torch.Generator().manual_seed(1_000_003 * step + rank)
    rows = [torch.randint(VOCABULARY, (size,), generator=source)]
    for _ in range(CONTEXT):
        jump = torch.randint(4, (size,), generator=source)
        rows.append((rows[-1] * 5 + jump + 1) % VOCABULARY)
    return torch.stack(rows, dim=1)


def engine_figures() -> dict:
    """What the engine of this rank did; {} where DeepSpeed's own was used."""
    module = sys.modules.get("tensorswap.deepspeed")
    engine = module.engine() if module is not None else None
    return {} if engine is None else {**engine.stats()._asdict(), "backend": engine.describe()["backend"]}


def optimizer_for(model: nn.Module, name: str):
    if name == "deepspeed":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(model.parameters(), lr=1e-3)
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True, help="a DeepSpeed configuration")
    parser.add_argument("--out", required=True, help="a folder for <rank>.json")
    parser.add_argument("--steps", type=int, default=6, help="train until this step")
    parser.add_argument("--save", metavar="DIR", help="write a checkpoint at the end")
    parser.add_argument("--load", metavar="DIR", help="go on from a checkpoint")
    parser.add_argument("--optimizer", choices=["torch", "deepspeed"], default="torch")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--local_rank", type=int, default=0, help="given by the launcher")
    options = parser.parse_args()

    torch.manual_seed(1)
    torch.set_num_threads(1)
    deepspeed.init_distributed(dist_backend="gloo")
    rank = deepspeed.comm.get_rank()
    with open(options.config, encoding="utf-8") as file:
        config = json.load(file)
    with deepspeed.zero.Init(config_dict_or_path=config):
        model = Transformer(options.width, options.layers)
    engine, _, _, _ = deepspeed.initialize(
        model=model, optimizer=optimizer_for(model, options.optimizer), config=config
    )
    first = 0
    if options.load:
        _, state = engine.load_checkpoint(options.load)
        first = state["step"]

    losses = {}
    for step in range(first, options.steps):
        loss = engine(batch_of(step, rank, config["train_micro_batch_size_per_gpu"]))
        engine.backward(loss)
        engine.step()
        losses[step] = loss.item()
        if rank == 0:
            print(f"step {step}: loss {loss.item():.9f}", flush=True)
    if options.save:
        engine.save_checkpoint(options.save, client_state={"step": options.steps})

    os.makedirs(options.out, exist_ok=True)
    with open(os.path.join(options.out, f"{rank}.json"), "w", encoding="utf-8") as file:
        json.dump({"losses": losses, "engine": engine_figures(), "world": deepspeed.comm.get_world_size()}, file)
    deepspeed.comm.destroy_process_group()


if __name__ == "__main__":
    main()
