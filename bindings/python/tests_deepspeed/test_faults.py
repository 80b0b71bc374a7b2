"""Where DeepSpeed's own engine reports success, ends the process or hangs, ours raises and goes on."""

import ctypes
import errno
import gc
import os
import re
import resource
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from tensorswap.deepspeed.handle import aio_handle
from tensorswap.errors import (
    InvalidArgumentError,
    NoSpaceError,
    NotFoundError,
    SizeMismatchError,
    StorageError,
    UnsupportedError,
)


def run(program, **environment):
    """A program in a process of its own; a crash of it is not the end of the tests."""
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    return found.returncode, found.stdout, found.stderr


def test_a_missing_file_is_named(handle, tmp_path):
    path = str(tmp_path / "none")
    assert handle.async_pread(torch.zeros(10), path) == 0
    with pytest.raises(NotFoundError, match="none.*ENOENT") as raised:
        handle.wait()
    assert raised.value.errno == errno.ENOENT and raised.value.filename == path
    assert handle.wait() == 0


def test_a_file_that_is_too_short_is_named_with_offset_and_lengths(handle, tmp_path):
    path = tmp_path / "short"
    path.write_bytes(bytes(1000))
    with pytest.raises(SizeMismatchError, match=r"short at \d+: the file ends at \d+( or before)?, 1200 wanted"):
        handle.sync_pread(torch.zeros(300), str(path))
    with pytest.raises(SizeMismatchError):
        handle.read(torch.zeros(300), str(path), False)
    with pytest.raises(SizeMismatchError):
        handle.sync_pread(torch.zeros(1), str(path), 997)


def test_a_folder_that_is_not_there(handle, tmp_path):
    with pytest.raises(NotFoundError):
        handle.sync_pwrite(torch.zeros(10), str(tmp_path / "none" / "a"))


def test_the_first_of_several_errors_tells_how_many(handle, tmp_path):
    for name in "abc":
        handle.async_pread(torch.zeros(10), str(tmp_path / name))
    handle.async_pwrite(torch.ones(10), str(tmp_path / "fine"))
    with pytest.raises(NotFoundError, match="2 more operations failed"):
        handle.wait()
    assert (tmp_path / "fine").stat().st_size == 40


def limited(path, limit):
    """Let no file grow beyond a limit, and the excess be an error rather than the end of the process."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_file_beyond_the_limit_of_the_process_is_an_error(handle, tmp_path):
    """EFBIG in the middle of a transfer: DeepSpeed reports success for a file that is cut off."""
    path = tmp_path / "big"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    limited(path, 1 << 20)
    try:
        data = handle.new_cpu_locked_tensor(1 << 20, torch.zeros(1))
        handle.async_pwrite(data, str(path))
        with pytest.raises(StorageError, match="big") as raised:
            handle.wait()
        assert raised.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert handle.sync_pwrite(data, str(path)) == 1
    assert path.stat().st_size == data.nbytes


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB. Only root can mount one."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = tmp_path / "small"
    place.mkdir()
    if libc.mount(b"tensorswap-test", os.fsencode(place), b"tmpfs", 0, b"size=8m") != 0:
        if "mount" in os.environ.get("TSW_TEST_REQUIRE", ""):
            pytest.fail("no file system can be mounted here")
        pytest.skip("no file system can be mounted here")
    yield place
    libc.umount2(os.fsencode(place), 2)


def test_a_full_disk_is_an_error_and_room_mends_it(handle, small_disk):
    data = torch.randint(255, (6 << 20,), dtype=torch.uint8)
    assert handle.sync_pwrite(data, str(small_disk / "a")) == 1
    handle.async_pwrite(data, str(small_disk / "b"))
    with pytest.raises(NoSpaceError, match="/small/b.*ENOSPC") as raised:
        handle.wait()
    assert raised.value.errno == errno.ENOSPC
    with pytest.raises(OSError):  # never half of it as if it were all
        handle.sync_pread(torch.zeros_like(data), str(small_disk / "b"))
    os.unlink(small_disk / "a")
    assert handle.sync_pwrite(data, str(small_disk / "b")) == 1
    back = torch.zeros_like(data)
    handle.sync_pread(back, str(small_disk / "b"))
    assert torch.equal(back, data)


def test_validate_tells_a_file_that_is_not_what_memory_holds(handle, tmp_path):
    """Memory changes while it is written: the file then has either form, and the comparison tells."""
    path = tmp_path / "a"
    data = torch.arange(1000.0)
    assert handle.pwrite(data, str(path), True, False) == 1
    handle.pwrite(data, str(path), True, True)
    data[500] = -1.0  # what a program must not do
    try:
        found = handle.wait()
    except StorageError as error:
        assert re.search(r"validate .* at 200[0-3]:", str(error))
    else:  # the change was in time to be written
        assert found == 1 and path.read_bytes() == data.numpy().tobytes()
    path.write_bytes(bytes(4000))
    handle.pread(data, str(path), True, False)
    assert not data.any()


def test_a_comparison_that_cannot_be_made_ends_its_operation_all_the_same(handle, tmp_path):
    path = tmp_path / "a"
    handle.pwrite(torch.arange(1000.0), str(path), True, True)
    while not path.exists():
        time.sleep(0.001)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        handle.wait()
    assert handle.wait() == 0
    assert handle.sync_pwrite(torch.arange(1000.0), str(path)) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"block_size": 0}, ValueError), ({"block_size": -1}, ValueError), ({"queue_depth": 0}, ValueError),
        ({"intra_op_parallelism": 0}, ValueError), ({"queue_depth": 2**40}, ValueError),
        ({"block_size": 1.5}, TypeError), ({"queue_depth": "8"}, TypeError), ({"single_submit": "false"}, TypeError),
        ({"overlap_events": 1}, TypeError), ({"threads": 1}, TypeError),
    ],
)  # fmt: skip
def test_a_handle_refuses_what_makes_no_sense(arguments, error):
    with pytest.raises(error):
        aio_handle(**arguments)


def test_calls_refuse_what_makes_no_sense_before_anything_is_written(handle, tmp_path):
    path, data = str(tmp_path / "a"), torch.zeros(10)
    wrong = [
        (TypeError, lambda: handle.sync_pwrite([1, 2], path)),
        (TypeError, lambda: handle.sync_pwrite(data, 5)),
        (TypeError, lambda: handle.sync_pwrite(data, None)),
        (TypeError, lambda: handle.async_pwrite(data)),
        (TypeError, lambda: handle.async_pwrite(data, path, 0, 0)),
        (TypeError, lambda: handle.async_pwrite(data, True)),
        (TypeError, lambda: handle.async_pwrite(data, fd=path)),
        (TypeError, lambda: handle.async_pwrite(data, path, fd=1)),
        (TypeError, lambda: handle.pwrite(data, path, False)),
        (TypeError, lambda: handle.pwrite(data, path, False, 1)),
        (TypeError, lambda: handle.pread(data, path, False, True, 0, 0)),
        (TypeError, lambda: handle.write(data, path, 1)),
        (TypeError, lambda: handle.is_pinned(5)),
        (TypeError, lambda: handle.new_cpu_locked_tensor(10)),
        (TypeError, lambda: handle.new_cpu_locked_tensor(1.5, data)),
        (TypeError, lambda: handle.sync_pwrite(data, path, 0.5)),
        (ValueError, lambda: handle.sync_pwrite(data, path, -1)),
        (ValueError, lambda: handle.sync_pwrite(data, path, 2**63)),
        (ValueError, lambda: handle.sync_pwrite(data, path + "\0")),
        (ValueError, lambda: handle.new_cpu_locked_tensor(-1, data)),
        (UnsupportedError, lambda: handle.sync_pwrite(torch.zeros(3, device="meta"), path)),
        (UnsupportedError, lambda: handle.sync_pwrite(torch.eye(3).to_sparse(), path)),
    ]
    for error, call in wrong:
        with pytest.raises(error):
            call()
    assert handle.wait() == 0 and os.listdir(tmp_path) == []


def test_descriptors_that_cannot_be_written_are_refused(handle, tmp_path):
    data = torch.zeros(10)
    (tmp_path / "a").write_bytes(b"as it was")
    readable = os.open(tmp_path / "a", os.O_RDONLY)
    with pytest.raises(StorageError, match="not open for writing") as raised:
        handle.async_pwrite(data, readable)
    assert raised.value.errno == errno.EBADF
    os.close(readable)
    with pytest.raises(StorageError) as raised:
        handle.async_pwrite(data, readable)
    assert raised.value.errno == errno.EBADF
    inner, outer = os.pipe()
    with pytest.raises(UnsupportedError, match="no offsets"):
        handle.async_pwrite(data, outer)
    os.close(inner), os.close(outer)
    assert handle.wait() == 0 and (tmp_path / "a").read_bytes() == b"as it was"


def test_no_memory_is_an_exception(handle):
    with pytest.raises(MemoryError):
        handle.new_cpu_locked_tensor(1 << 58, torch.zeros(1, dtype=torch.uint8))
    with pytest.raises((MemoryError, InvalidArgumentError)):
        handle.new_cpu_locked_tensor(1 << 70, torch.zeros(1, dtype=torch.float64))


def test_a_handle_dropped_with_operations_under_way(tmp_path):
    """DeepSpeed's own ends the process. The writes still reach their files, from memory that is held."""
    made = aio_handle()
    for number in range(20):
        made.async_pwrite(torch.full((1 << 20,), number, dtype=torch.uint8), str(tmp_path / str(number)))
    del made
    gc.collect()
    for number in range(20):
        assert (tmp_path / str(number)).read_bytes() == bytes([number]) * (1 << 20)


def test_a_program_that_ends_with_operations_under_way(tmp_path):
    code, _out, err = run(f"""
        import torch
        from tensorswap.deepspeed.handle import aio_handle
        handle = aio_handle()
        for number in range(20):
            handle.async_pwrite(torch.full((1 << 20,), number, dtype=torch.uint8), "{tmp_path}/%d" % number)
        handle.async_pread(torch.zeros(5), "{tmp_path}/none")
    """)
    assert code == 0, err
    for number in range(20):
        assert (tmp_path / str(number)).read_bytes() == bytes([number]) * (1 << 20)
    assert "nobody waited" in err and "none" in err


def test_a_forked_child_has_an_engine_of_its_own(tmp_path):
    code, out, err = run(f"""
        import os, torch
        import tensorswap.deepspeed as ours
        from tensorswap.deepspeed.handle import aio_handle
        handle = aio_handle()
        mine = handle.new_cpu_locked_tensor(1000, torch.zeros(1))
        mine.fill_(7)
        handle.async_pwrite(mine, "{tmp_path}/parent")
        child = os.fork()
        if child == 0:
            assert ours.engine() is None and handle.wait() == 0
            assert bool((mine == 7).all()) and not handle.is_pinned(mine)
            own = handle.new_cpu_locked_tensor(10, mine)
            assert handle.sync_pwrite(mine, "{tmp_path}/child") == 1 and handle.is_pinned(own)
            del mine, own, handle
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert handle.wait() == 1
        print("both fine")
    """)
    assert (code, out) == (0, "both fine\n"), err
    assert (tmp_path / "parent").read_bytes() == (tmp_path / "child").read_bytes()


def test_ctrl_c_interrupts_a_wait_and_loses_nothing(tmp_path):
    code, out, err = run(f"""
        import _thread, threading, torch
        from tensorswap.deepspeed.handle import aio_handle
        handle = aio_handle()
        data = torch.zeros(64 << 20, dtype=torch.uint8)
        interrupted = 0
        for turn in range(5):
            for number in range(4):
                handle.async_pwrite(data, "{tmp_path}/%d" % number)
            try:
                # It may strike before this has returned.
                threading.Timer(0.01, _thread.interrupt_main).start()
                count = handle.wait()
                while True: pass
            except KeyboardInterrupt:
                interrupted += 1
            handle.wait()
        print(interrupted, handle.wait())
    """)
    assert code == 0 and out == "5 0\n", err
    for number in range(4):
        assert (tmp_path / str(number)).stat().st_size == 64 << 20
