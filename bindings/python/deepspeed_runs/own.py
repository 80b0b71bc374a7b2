"""Our own swapper and optimizer on the work that bench.py gives to DeepSpeed's."""

import time

import torch

import tensorswap

MIB = 1 << 20
#: Elements from one mark to the next: one in each page.
PAGE = 4096 // 4


def values(seed: int, numel: int) -> torch.Tensor:
    """Random bits, as floats."""
    source = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31 - 1, (numel,), dtype=torch.int32, generator=source)
    return bits.view(torch.float32)


def marks(memory) -> torch.Tensor:
    """The elements of a tensor that change from round to round, as integers."""
    return memory.view(torch.int32)[::PAGE]


class Swap:
    """The swapper writes tensors out through as many buffers as DeepSpeed has; they are read back straight
    into pinned memory, as DeepSpeed reads them."""

    def __init__(self, folder, tensors, paths, drive) -> None:
        self.tensors, self.paths, self.drive = tensors, paths, drive
        self.numel = tensors[0].numel()
        self.engine = tensorswap.Engine()
        room = max(4 * tensors[0].nbytes, 16 * MIB)
        self.swapper = tensorswap.Swapper(self.engine, buffers=[self.engine.buffer(room) for _ in range(4)])
        self.places = [self.engine.buffer(room).torch("f32") for _ in range(4)]

    def round(self, number):
        for index, tensor in enumerate(self.tensors):
            marks(tensor)[:] = number * 100_003 + index
        counters, began = self.drive.counters(), time.perf_counter()
        self.swapper.swap_out_many(list(zip(self.tensors, self.paths)))
        self.swapper.flush()
        out, out_depth = time.perf_counter() - began, self.drive.depth(counters)

        places = [part for place in self.places for part in place.split(self.numel) if part.numel() == self.numel]
        counters, back = self.drive.counters(), 0.0
        for first in range(0, len(self.tensors), len(places)):
            wanted = self.tensors[first : first + len(places)]
            taken = places[: len(wanted)]
            began = time.perf_counter()
            self.engine.swap_in_many(list(zip(taken, self.paths[first : first + len(places)]))).wait()
            back += time.perf_counter() - began
            same = [torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(taken, wanted)]
            if not all(same):
                raise SystemExit(f"wrong data in {same.count(False)} of {len(wanted)} tensors")
        moved = sum(tensor.nbytes for tensor in self.tensors)
        return {"out": [moved / out, out_depth], "in": [moved / back, self.drive.depth(counters)]}


class Step:
    """The optimizer, with its gradients on storage as DeepSpeed's are, without syncs as DeepSpeed is, but with
    its checksums, which DeepSpeed has not."""

    def __init__(self, folder, count, numel, drive, **keys) -> None:
        self.count, self.numel, self.drive, self.rounds = count, numel, drive, 0
        self.engine = tensorswap.Engine()
        self.optimizer = tensorswap.Optimizer(self.engine, path=folder, sync="none", gradients="disk", **keys)
        for name in ("master", "exp_avg", "exp_avg_sq"):
            self.optimizer.add_state(name)
        for index in range(count):
            self.optimizer.add_parameter(index, numel)
        for index in range(count):
            self.optimizer.initialize({index: values(index, numel)})
            moments = values(1000 + index, numel)
            self.optimizer.write_state(index, "exp_avg", moments)
            self.optimizer.write_state(index, "exp_avg_sq", moments)
        self.gradient = values(count, numel)

    def round(self, number):
        counters, began = self.drive.counters(), time.perf_counter()
        for index in range(self.count):
            marks(self.gradient)[:] = number * 100_003 + index
            self.optimizer.swap_out_gradient(index, self.gradient)
        self.optimizer.flush_gradients()
        for parameter in self.optimizer.step():
            expected = number * 100_003 + parameter.id
            if not bool((marks(parameter.gradient.torch()) == expected).all()):
                raise SystemExit(f"the gradient of parameter {parameter.id} is wrong in round {number}")
            for state in parameter.states:
                tensor = state.torch()
                if number > 1 and not bool((marks(tensor) == number - 1).all()):
                    raise SystemExit(f"the state of parameter {parameter.id} is not that of round {number - 1}")
                marks(tensor)[:] = number
        took = time.perf_counter() - began
        self.rounds = number
        return {"step": [self.count * self.numel * 4 * 8 / took, self.drive.depth(counters)]}

    def check(self):
        """Compare every byte of what the store holds with what must be there."""
        found = torch.empty(self.numel)
        for index in range(self.count):
            for name, seed in (("master", index), ("exp_avg", 1000 + index), ("exp_avg_sq", 1000 + index)):
                wanted = values(seed, self.numel)
                marks(wanted)[:] = self.rounds
                self.optimizer.read_state(index, name, found)
                if not torch.equal(found.view(torch.int32), wanted.view(torch.int32)):
                    raise SystemExit(f"{name} of parameter {index} is not what was written")
