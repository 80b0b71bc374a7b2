"""What an optimizer exports is what others read, and what they write it begins with."""

import json
import struct
from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np
import pytest
import tensorswap
from tensorswap import Engine, Optimizer

SIZES = {10: 1000, 11: 3, 20: 70_001}
#: By the format's names; bf16 as the bits that it has.
DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


def opened(engine: Engine, path: Path) -> Optimizer:
    optimizer = Optimizer(engine, path=path)
    optimizer.add_state("master")
    optimizer.add_state("momentum", disk_dtype="bf16")
    for id, numel in SIZES.items():
        optimizer.add_parameter(id, numel, None if id == 11 else f"layer{id}")
    return optimizer


def values(seed: int, numel: int) -> Any:
    return np.random.default_rng(seed).standard_normal(numel, np.float32)


def read(path: Path) -> Tuple[Dict[str, Any], Dict[str, str]]:
    """The tensors and the metadata of a file, read by nothing but its format."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    tensors = {}
    for name, info in header.items():
        start, end = (8 + length + offset for offset in info["data_offsets"])
        tensors[name] = np.frombuffer(data[start:end], DTYPES[info["dtype"]])
        assert list(tensors[name].shape) == info["shape"]
    return tensors, metadata


def write(path: Path, tensors: Dict[str, Tuple[str, Any]]) -> None:
    header, data = {}, b""
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": (len(data), len(data) + array.nbytes)}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def expected(optimizer: Optimizer) -> Dict[str, Any]:
    found = {}
    for id, numel in SIZES.items():
        name = f"layer{id}" if id != 11 else "parameter.11"
        for state, key in (("master", name), ("momentum", f"{name}.momentum")):
            array: Any = np.empty(numel, np.float32)
            optimizer.read_state(id, state, array)
            # What is kept as bf16 is exact in f32: its upper half.
            found[key] = array if state == "master" else (array.view("<u4") >> 16).astype("<u2")
    return found


def test_an_export_holds_every_state_and_initializes_another_store(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with opened(engine, tmp_path / "first") as optimizer:
        optimizer.initialize({id: values(id, numel) for id, numel in SIZES.items()})
        for id, numel in SIZES.items():
            optimizer.write_state(id, "momentum", values(id + 100, numel))
        whole = expected(optimizer)
        optimizer.export_safetensors(file)
        tensors, metadata = read(file)
        assert metadata == {"format": "pt", "step": "0", "tensorswap": tensorswap.__version__}
        assert tensors.keys() == whole.keys()
        assert all((tensors[name] == array).all() for name, array in whole.items())

        optimizer.export_safetensors(str(file), shard_bytes_max=100_000)
        index = json.loads((tmp_path / "model.safetensors.index.json").read_bytes())
        assert index["weight_map"].keys() == whole.keys()
        shards = set(index["weight_map"].values())
        assert shards == {f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)}
        for name, shard in index["weight_map"].items():
            assert (read(tmp_path / shard)[0][name] == whole[name]).all()

    with opened(engine, tmp_path / "second") as optimizer:
        for source in (file, tmp_path / "model.safetensors.index.json"):
            optimizer.initialize({id: np.zeros(numel, np.float32) for id, numel in SIZES.items()})
            optimizer.initialize_from_safetensors(source, list(SIZES))
            found = expected(optimizer)
            assert all((found[name] == whole[name]).all() for name in found if "momentum" not in name)
            assert not found["layer10.momentum"].any()


def test_masters_come_from_tensors_of_other_names_shapes_and_types(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    first, second = values(1, 1000), values(2, 3)
    narrow = first.astype("<f2")
    write(file, {"a.weight": ("F16", narrow.reshape(10, 100)), "layer10": ("F32", second), "w": ("F64", np.zeros(3))})
    with opened(engine, tmp_path / "store") as optimizer:
        optimizer.initialize_from_safetensors(file, {10: "a.weight", 11: "layer10"})
        found = expected(optimizer)
        assert (found["layer10"] == narrow.astype(np.float32)).all()
        assert (found["parameter.11"] == second).all()
        with pytest.raises(tensorswap.SizeMismatchError, match="tensor layer10 has 3 elements"):
            optimizer.initialize_from_safetensors(file, {10: None})
        with pytest.raises(tensorswap.NotFoundError, match="it has no tensor layer20"):
            optimizer.initialize_from_safetensors(file, [20])
        with pytest.raises(tensorswap.DtypeMismatchError, match="tensor w"):
            optimizer.initialize_from_safetensors(file, {11: "w"})
        file.write_bytes(b"no model at all")
        with pytest.raises(tensorswap.CorruptError, match="weights.safetensors"):
            optimizer.initialize_from_safetensors(file, [10])


def test_the_safetensors_package_reads_an_export_and_writes_what_is_read_here(engine: Engine, tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    pytest.importorskip("ml_dtypes", reason="without ml_dtypes NumPy has no bf16")
    file = tmp_path / "model.safetensors"
    with opened(engine, tmp_path / "store") as optimizer:
        optimizer.initialize({id: values(id, numel) for id, numel in SIZES.items()})
        optimizer.write_state(20, "momentum", values(5, SIZES[20]))
        optimizer.export_safetensors(file)
        loaded = package.load_file(file)
        whole = expected(optimizer)
        assert loaded.keys() == whole.keys()
        for name, array in whole.items():
            found = loaded[name]
            assert (found.view(array.dtype) == array).all(), name
        package.save_file({"weight": values(9, 1000).reshape(8, 125)}, tmp_path / "other.safetensors")
        optimizer.initialize_from_safetensors(tmp_path / "other.safetensors", {10: "weight"})
        assert (expected(optimizer)["layer10"] == values(9, 1000)).all()
