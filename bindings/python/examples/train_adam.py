#!/usr/bin/env python3
"""Trains a small torch model with Adam whose state lives in a store, and can be killed and resumed.

    python train_adam.py DIRECTORY [--steps 40] [--compare]

The model's weights stay in torch. Their master copies and Adam's two moments are in a store in DIRECTORY,
and are in memory only while they are updated, by plain torch code in a loop. Run it again to go on where the
last run stopped, however that ended. With --compare the same training runs with torch.optim.Adam in memory
too, and every weight must be equal to it bit for bit.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Dict

import tensorswap
import torch
from torch import nn


class StoredAdam:
    """Adam (Kingma and Ba 2015), with the operations of torch.optim.Adam in their order."""

    def __init__(self, model: nn.Module, engine: tensorswap.Engine, directory: Path, lr: float = 1e-2) -> None:
        self.lr, self.betas, self.eps = lr, (0.9, 0.999), 1e-8
        # The number of a parameter must be the same in every run; its place in the model is.
        self.parameters: Dict[int, nn.Parameter] = dict(enumerate(model.parameters()))
        self.store = tensorswap.Optimizer(engine, path=directory)
        for state in ("master", "exp_avg", "exp_avg_sq"):
            self.store.add_state(state)
        for number, (name, parameter) in enumerate(model.named_parameters()):
            self.store.add_parameter(number, parameter.numel(), name)
        if self.store.user_data:
            for number, parameter in self.parameters.items():
                self.store.read_state(number, "master", parameter.detach())
        else:
            self.store.initialize({number: parameter.detach() for number, parameter in self.parameters.items()})
            self.store.user_data = json.dumps({"lr": lr}).encode()
            self.store.commit()

    @property
    def step_number(self) -> int:
        return self.store.step_number

    @torch.no_grad()
    def step(self) -> None:
        for number, parameter in self.parameters.items():
            if parameter.grad is not None:
                self.store.swap_out_gradient(number, parameter.grad)
                parameter.grad = None
        step = self.store.step_number + 1
        beta1, beta2 = self.betas
        step_size = self.lr / (1 - beta1**step)
        correction2_sqrt = (1 - beta2**step) ** 0.5
        for view in self.store.step():
            if view.gradient is None:
                view.changed = False
                continue
            master, exp_avg, exp_avg_sq = (state.torch() for state in view.states)
            gradient = view.gradient.torch()
            exp_avg.lerp_(gradient, 1 - beta1)
            exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            denominator = (exp_avg_sq.sqrt() / correction2_sqrt).add_(self.eps)
            master.addcdiv_(exp_avg, denominator, value=-step_size)
            parameter = self.parameters[view.id]
            parameter.copy_(master.view_as(parameter))

    def close(self) -> None:
        self.store.commit()
        self.store.close()


def model_of(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(32, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1))


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    """The loss of a step's batch, which depends on the number of the step alone."""
    batch = torch.randn(64, 32, generator=torch.Generator().manual_seed(step))
    wanted = torch.sin(batch.sum(dim=1, keepdim=True))
    return nn.functional.mse_loss(model(batch), wanted)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="where the store is, or is made")
    parser.add_argument("--steps", type=int, default=40, help="the number of the last step")
    parser.add_argument("--compare", action="store_true", help="compare with torch.optim.Adam, bit for bit")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    with tensorswap.Engine() as engine:
        model = model_of()
        try:
            adam = StoredAdam(model, engine, arguments.directory)
        except tensorswap.Error as error:
            print(f"train_adam.py: {error}", file=sys.stderr)
            return 1
        if adam.step_number > 0:
            print(f"resumed after step {adam.step_number}")
        while adam.step_number < arguments.steps:
            loss = loss_of(model, adam.step_number + 1)
            loss.backward()
            adam.step()
            if adam.step_number % 10 == 0:
                print(f"step {adam.step_number}: loss {loss.item():.6f}")
        adam.close()

    if arguments.compare:
        reference = model_of()
        in_memory = torch.optim.Adam(reference.parameters(), lr=adam.lr, foreach=False)
        for step in range(1, arguments.steps + 1):
            in_memory.zero_grad()
            loss_of(reference, step).backward()
            in_memory.step()
        for name, expected in reference.state_dict().items():
            if not torch.equal(model.state_dict()[name], expected):
                print(f"train_adam.py: {name} differs from torch.optim.Adam", file=sys.stderr)
                return 1
        print(f"step {arguments.steps}: every weight equals that of torch.optim.Adam, bit for bit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
