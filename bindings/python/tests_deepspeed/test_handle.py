"""The surface of aio_handle: what DeepSpeed calls, with its names and defaults, and what it returns."""

import inspect
import os
import threading

import numpy
import pytest
import torch
from tensorswap.deepspeed.handle import aio_handle, aio_read, aio_write, deepspeed_memcpy, pin_handle
from tensorswap.errors import NotFoundError, SizeMismatchError


def random(numel, dtype=torch.float32):
    """Values that no other test has."""
    raw = torch.from_numpy(
        numpy.frombuffer(os.urandom(numel * torch.empty(0, dtype=dtype).element_size()), "u1").copy()
    )
    return raw.view(dtype)


def same(a, b):
    """Bit by bit, so that NaN is like itself."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def test_arguments_have_deepspeeds_names_and_defaults():
    made = aio_handle()
    assert made.get_block_size() == 1 << 20 and made.get_queue_depth() == 128
    assert made.get_single_submit() is False and made.get_overlap_events() is False
    assert made.get_intra_op_parallelism() == 1 and made.get_alignment() == 512
    made = aio_handle(block_size=4096, queue_depth=2, single_submit=True, overlap_events=True, intra_op_parallelism=3)
    assert (made.get_block_size(), made.get_queue_depth(), made.get_alignment()) == (4096, 2, 1536)
    assert made.get_single_submit() is True and made.get_overlap_events() is True
    assert aio_handle(4096, 2, True, True, 3).get_intra_op_parallelism() == 3
    for name in ("sync_pread", "sync_pwrite", "async_pread"):
        assert list(inspect.signature(getattr(made, name)).parameters) == ["buffer", "filename", "file_offset"]
    assert list(inspect.signature(made.read).parameters) == ["buffer", "filename", "validate", "file_offset"]


@pytest.mark.parametrize("pinned", [True, False])
def test_what_is_written_is_read(handle, tmp_path, pinned):
    path = str(tmp_path / "a")
    data = random(300_007)
    if pinned:
        locked = handle.new_cpu_locked_tensor(data.numel(), data)
        locked.copy_(data)
        data = locked
    assert handle.sync_pwrite(data, path) == 1
    assert os.path.getsize(path) == data.nbytes
    back = torch.zeros_like(data)
    assert handle.sync_pread(buffer=back, filename=path, file_offset=0) == 1
    assert same(back, data)
    assert handle.async_pread(torch.zeros_like(data), path) == 0
    assert handle.async_pwrite(buffer=data, filename=path + "2", file_offset=4096) == 0
    assert handle.wait() == 2
    assert os.path.getsize(path + "2") == data.nbytes + 4096


def test_every_call_with_every_way_to_give_its_arguments(handle, tmp_path):
    path = str(tmp_path / "a")
    data, back = random(5000), torch.zeros(5000)
    assert handle.pwrite(data, path, False, False) == 1
    assert handle.pwrite(data, path, False, True, 0) == 0
    assert handle.pwrite(data, path, validate=False, **{"async": True}) == 0
    assert handle.wait() == 2
    assert handle.pread(back, path, True, False, 0) == 1 and same(back, data)
    assert handle.pread(buffer=back, filename=path, validate=True, file_offset=400, **{"async": True}) == 0
    with pytest.raises(SizeMismatchError):  # 400 bytes are missing at the end
        handle.wait()
    back.zero_()
    assert handle.write(data, path, True) == 0 and handle.read(back, path, validate=True, file_offset=0) == 0
    assert same(back, data)
    back.zero_()
    assert aio_write(data, path, 1 << 20, 8, False, True, True) == 0
    assert aio_read(back, path, 1 << 20, 8, False, True, True) == 0
    assert same(back, data)
    assert handle.async_pwrite(data, filename=path.encode()) == 0
    assert handle.wait() == 1


def test_wait_counts_what_ended_since_the_last_wait(handle, tmp_path):
    assert handle.wait() == 0
    data = random(1000)
    for count in range(1, 70):
        assert handle.async_pwrite(data, str(tmp_path / str(count % 7))) == 0
    assert handle.wait() == 69
    assert handle.wait() == 0
    handle.async_pwrite(data, str(tmp_path / "b"))
    assert handle.sync_pwrite(data, str(tmp_path / "c")) == 2  # DeepSpeed's implies a wait for all


def test_handles_wait_for_their_own_operations(handle, tmp_path):
    other = aio_handle()
    handle.async_pwrite(random(100), str(tmp_path / "a"))
    assert other.wait() == 0
    assert handle.wait() == 1


@pytest.mark.parametrize("address", [0, 1, 2, 511, 513])
@pytest.mark.parametrize("nbytes", [1, 100, 511, 5600, (1 << 20) + 100])
@pytest.mark.parametrize("offset", [0, 1, 700, 4096])
def test_misaligned_address_length_and_offset_move_the_right_bytes(tmp_path, address, nbytes, offset):
    """DeepSpeed's own writes short files and reads wrong data here, and reports success."""
    made = aio_handle(intra_op_parallelism=8)
    path = str(tmp_path / "a")
    before = os.urandom(offset + nbytes + 777)
    with open(path, "wb") as file:
        file.write(before)
    whole = made.new_cpu_locked_tensor(address + nbytes + 600, torch.empty(0, dtype=torch.uint8))
    data = whole[address : address + nbytes]
    data.copy_(random(nbytes, torch.uint8))
    assert made.sync_pwrite(data, path, offset) == 1
    with open(path, "rb") as file:
        after = file.read()
    assert after == before[:offset] + data.numpy().tobytes() + before[offset + nbytes :]
    back = torch.full((nbytes + 2,), 7, dtype=torch.uint8)
    assert made.sync_pread(back[1:-1], path, offset) == 1
    assert same(back[1:-1], data) and back[0] == 7 and back[-1] == 7


def test_a_gradient_read_to_an_unaligned_place_is_right(handle, tmp_path):
    """How DeepSpeed's swappers read a gradient: into the middle of a flat buffer."""
    gradient = random(300_000)
    handle.sync_pwrite(gradient, str(tmp_path / "g"))
    flat = handle.new_cpu_locked_tensor(1_000_000, torch.zeros(1))
    assert handle.sync_pread(flat.narrow(0, 300_050, 300_000), str(tmp_path / "g")) == 1
    assert same(flat[300_050:600_050], gradient)
    assert not flat[:300_050].any() and not flat[600_050:].any()


def test_tensors_with_gaps_are_gathered_and_filled(handle, tmp_path):
    path = str(tmp_path / "a")
    wide = random(6000).view(60, 100)
    assert handle.sync_pwrite(wide.t(), path) == 1
    with open(path, "rb") as file:
        assert file.read() == wide.t().contiguous().numpy().tobytes()
    back = torch.zeros(60, 100)
    handle.async_pread(back.t(), path)
    assert handle.wait() == 1
    assert same(back, wide)
    strided = torch.zeros(12_000)[::2]
    handle.sync_pread(strided, path)
    assert same(strided, wide.t().reshape(-1))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
def test_every_type(handle, tmp_path, dtype):
    locked = handle.new_cpu_locked_tensor(1001, torch.empty(0, dtype=dtype))
    assert locked.dtype == dtype and locked.numel() == 1001 and handle.is_pinned(locked)
    if dtype == torch.bool:
        locked.copy_(torch.rand(1001) > 0.5)
    else:
        locked.copy_(torch.arange(1001).to(dtype))
    handle.sync_pwrite(locked, str(tmp_path / "a"))
    back = torch.zeros(1001, dtype=dtype)
    handle.sync_pread(back, str(tmp_path / "a"))
    assert same(back, locked)


def test_empty_tensors_move_nothing_and_count(handle, tmp_path):
    assert handle.sync_pwrite(torch.empty(0), str(tmp_path / "a")) == 1
    assert os.path.getsize(tmp_path / "a") == 0
    assert handle.sync_pread(torch.empty(0), str(tmp_path / "a")) == 1
    assert handle.new_cpu_locked_tensor(0, torch.empty(0)).numel() == 0


def test_leaves_and_rebound_tensors(handle, tmp_path):
    """Parameters are filled in place; `tensor.data = ...` meanwhile does not take the memory away."""
    data = random(100_000)
    handle.sync_pwrite(data, str(tmp_path / "a"))
    parameter = torch.nn.Parameter(torch.zeros(100_000))
    handle.sync_pread(parameter, str(tmp_path / "a"))
    assert same(parameter.detach(), data)
    gone = data.clone()
    for _ in range(50):
        handle.async_pwrite(gone, str(tmp_path / "b"))
        gone.data = torch.empty(0)
        gone = data.clone()
    assert handle.wait() == 50
    back = torch.zeros_like(data)
    handle.sync_pread(back, str(tmp_path / "b"))
    assert same(back, data)


def test_pinned_tensors_views_and_their_end():
    first, second, pins = aio_handle(), aio_handle(), pin_handle()
    locked = first.new_cpu_locked_tensor(num_elem=1000, example_tenosr=torch.zeros(1, dtype=torch.float16))
    assert not locked.any() and locked.dtype == torch.float16 and locked.dim() == 1
    assert second.is_pinned(locked) and pins.is_pinned(locked[999:]) and first.is_pinned(locked.view(10, 100).t())
    assert not first.is_pinned(torch.zeros(1000))
    beyond = torch.as_strided(locked, (500,), (1,)).view(torch.uint8)
    assert first.is_pinned(beyond)
    part = locked[10:]
    part.fill_(3)
    assert first.free_cpu_locked_tensor(part) is False  # only the whole of it
    assert second.free_cpu_locked_tensor(tensor=locked) is True
    assert first.free_cpu_locked_tensor(locked) is False
    assert not first.is_pinned(locked)
    del locked
    assert bool((part == 3).all())  # the memory goes with its last view


def test_pin_handle_has_deepspeeds_names():
    pins = pin_handle()
    locked = pins.new_cpu_locked_tensor(num_elem=7, example_tensor=torch.zeros(1))
    assert locked._base is None  # DeepSpeed ties the end of the memory to this very tensor
    assert pins.is_pinned(buffer=locked[3:])
    assert pins.free_cpu_locked_tensor_by_ptr(address=locked.data_ptr() + 4) is False
    assert pins.free_cpu_locked_tensor_by_ptr(locked.data_ptr()) is True
    again = pins.new_cpu_locked_tensor(7, torch.zeros(1))
    assert pins.free_cpu_locked_tensor(locked_tensor=again) is True


def test_dropped_pinned_memory_is_given_back():
    """DeepSpeed's own keeps it for ever."""
    from tensorswap.deepspeed import engine

    made = aio_handle()
    before = engine().stats().pinned_bytes
    for _ in range(50):
        made.new_cpu_locked_tensor(1 << 20, torch.zeros(1))
    assert engine().stats().pinned_bytes <= before + (4 << 20)


def test_memcpy():
    source, target = random(100_000), torch.zeros(100_000)
    assert deepspeed_memcpy(target, source) == 0
    assert same(target, source)
    part = torch.zeros(10)
    assert deepspeed_memcpy(dest=part, src=source) == 0 and same(part, source[:10])
    with pytest.raises(ValueError):
        deepspeed_memcpy(target, source[:-1])
    with pytest.raises(ValueError):
        deepspeed_memcpy(target, source.double())


def test_threads_share_a_handle(handle, tmp_path):
    def work(number):
        data = torch.full((50_000,), float(number))
        back = torch.zeros(50_000)
        path = str(tmp_path / str(number))
        for _ in range(20):
            handle.async_pwrite(data, path)
            handle.wait()
            handle.async_pread(back, path)
            handle.wait()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    handle.wait()
    for number in range(4):
        back = torch.zeros(50_000)
        handle.sync_pread(back, str(tmp_path / str(number)))
        assert bool((back == number).all())


def test_other_threads_run_while_one_waits(handle, tmp_path):
    """The counting thread gets nowhere where the waiting one keeps the interpreter."""
    data = torch.zeros(32 << 20, dtype=torch.uint8)
    turns, stop = [0], threading.Event()

    def count():
        while not stop.is_set():
            turns[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(5):
            handle.async_pwrite(data, str(tmp_path / "a"))
        before = turns[0]
        assert handle.wait() == 5
        assert turns[0] > before
    finally:
        stop.set()
        thread.join()


def test_a_descriptor_is_written_at_an_offset_and_may_be_closed_at_once(handle, tmp_path):
    path = tmp_path / "a"
    data = random(70_001)
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    assert handle.async_pwrite(data, descriptor) == 0
    assert handle.async_pwrite(buffer=data, fd=descriptor, file_offset=data.nbytes) == 0
    os.close(descriptor)
    reused = os.open(tmp_path / "b", os.O_CREAT | os.O_WRONLY)  # the number now leads to another file
    assert reused == descriptor
    assert handle.wait() == 2
    os.close(reused)
    assert path.read_bytes() == data.numpy().tobytes() * 2
    assert (tmp_path / "b").stat().st_size == 0


def test_a_descriptor_of_a_deleted_file_still_leads_to_it(handle, tmp_path):
    descriptor = os.open(tmp_path / "a", os.O_CREAT | os.O_RDWR)
    os.unlink(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"another file")
    data = random(5000)
    handle.async_pwrite(data, descriptor)
    assert handle.wait() == 1
    assert os.pread(descriptor, 30_000, 0) == data.numpy().tobytes()
    os.close(descriptor)
    assert (tmp_path / "a").read_bytes() == b"another file"


def test_no_descriptor_leaks(handle, tmp_path):
    data = random(100)
    descriptor = os.open(tmp_path / "a", os.O_CREAT | os.O_WRONLY)
    handle.async_pwrite(data, descriptor)
    handle.wait()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        handle.async_pwrite(data, descriptor)
        handle.wait()
        with pytest.raises(NotFoundError):
            handle.sync_pread(data, str(tmp_path / "none"))
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(descriptor)
