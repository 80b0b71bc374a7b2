"""Requests and their tickets, on real files."""

import errno
import os
import select
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorswap
from tensorswap import Engine, Tensor


def test_what_goes_out_comes_in(any_engine: Engine, tmp_path: Path) -> None:
    sent = np.random.default_rng(1).bytes(3_000_001)
    done = any_engine.swap_out(sent, tmp_path / "file", tag=7).wait()
    assert (done.status, done.bytes_done, done.tag, done.failed_index, done.message) == (0, 3_000_001, 7, None, "")
    assert done.elapsed_ns > 0
    received = bytearray(len(sent))
    any_engine.swap_in(received, tmp_path / "file").wait()
    assert received == sent


@pytest.mark.parametrize("path", ["text", b"bytes", Path("path")])
def test_a_path_is_text_bytes_or_a_path(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    engine.swap_out(b"1234", path).wait()
    assert (tmp_path / os.fsdecode(path)).read_bytes() == b"1234"


def test_a_path_need_not_be_utf8(engine: Engine, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe"
    engine.swap_out(b"1234", path).wait()
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff\xfe"]
    with pytest.raises(tensorswap.NotFoundError) as raised:
        engine.swap_in(bytearray(4), path + b"x").wait()
    assert os.fsencode(raised.value.filename) == path + b"x"


def test_offset_and_keep_length_decide_the_length_of_the_file(any_engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "file"
    received = bytearray(12)
    any_engine.swap_out(b"0123456789", path).wait()
    any_engine.swap_out(b"ab", path, 10).wait()
    any_engine.swap_out(b"cd", path, keep_length=True).wait()
    any_engine.swap_in(received, path).wait()
    assert received == b"cd23456789ab"
    any_engine.swap_out(b"xyz", path).wait()
    any_engine.swap_in(memoryview(received)[:3], path).wait()
    assert received[:3] == b"xyz"
    with pytest.raises(tensorswap.SizeMismatchError):
        any_engine.swap_in(received, path).wait()


def test_many_tensors_go_as_one_request(any_engine: Engine, tmp_path: Path) -> None:
    sent = [np.full(100 + i, i, np.int32) for i in range(50)]
    paths = [tmp_path / f"file{i % 5}" for i in range(50)]
    offsets = [i // 5 * 1000 for i in range(50)]
    done = any_engine.swap_out_many(zip(sent, paths, offsets)).wait()
    assert done.bytes_done == sum(values.nbytes for values in sent)
    received = [np.zeros_like(values) for values in sent]
    any_engine.swap_in_many([Tensor(*entry) for entry in zip(received, paths, offsets)]).wait()
    assert all((a == b).all() for a, b in zip(sent, received))
    assert any_engine.swap_out_many([]).wait().bytes_done == 0


def test_an_error_tells_which_tensor_it_was(engine: Engine, tmp_path: Path) -> None:
    engine.swap_out(bytes(10), tmp_path / "a").wait()
    ticket = engine.swap_in_many([(bytearray(10), tmp_path / "a"), Tensor(bytearray(10), tmp_path / "b", tag=9)])
    with pytest.raises(FileNotFoundError) as raised:
        ticket.wait()
    error = raised.value
    assert isinstance(error, tensorswap.NotFoundError)
    assert error.path == error.filename == str(tmp_path / "b")
    assert error.errno == errno.ENOENT and error.status == -42 and not error.retryable
    assert str(error) == f"swap_in {tmp_path}/b: ENOENT (opening the file)"
    assert ticket.error() is not None and ticket.done()
    with pytest.raises(FileNotFoundError):  # it tells the same once more
        ticket.wait()


def test_errors_of_files_are_those_python_knows(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"short")
    for path, expected in (
        (tmp_path / "none" / "file", FileNotFoundError),
        (tmp_path, OSError),
        ("/dev/null", OSError),
        (tmp_path / "file" / "below", OSError),
        (tmp_path / ("x" * 300), OSError),
        ("", ValueError),
    ):
        with pytest.raises(expected) as raised:
            engine.swap_out(bytes(8), path).wait()
        assert isinstance(raised.value, tensorswap.Error) and "\n" not in str(raised.value)
    with pytest.raises(tensorswap.SizeMismatchError, match="the file ends at 5, 8 wanted"):
        engine.swap_in(bytearray(8), tmp_path / "file").wait()
    assert (tmp_path / "file").read_bytes() == b"short"


def test_a_file_that_must_not_be_written_is_a_permission_error(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    path.chmod(0o400)
    if os.geteuid() == 0 and os.system(f"chattr +i {path} 2>/dev/null") != 0:
        pytest.skip("root may write everything, and the file system has no immutable files")
    try:
        with pytest.raises(PermissionError) as raised:
            engine.swap_out(bytes(8), path).wait()
        assert isinstance(raised.value, tensorswap.PermissionDeniedError) and raised.value.filename == str(path)
    finally:
        if os.geteuid() == 0:
            os.system(f"chattr -i {path}")
    assert path.read_bytes() == b"12345678"


def test_a_full_file_system_is_told_as_such(engine: Engine, tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m tmpfs {mount} 2>/dev/null") != 0:
        pytest.skip("may not mount a small file system")
    try:
        with pytest.raises(tensorswap.NoSpaceError) as raised:
            engine.swap_out(bytes(4 << 20), mount / "file").wait()
        assert raised.value.errno == errno.ENOSPC and raised.value.retryable
        assert isinstance(raised.value, OSError)
    finally:
        engine.close()
        assert os.system(f"umount {mount}") == 0


@pytest.mark.parametrize(
    ("path", "offset", "tag"), [("a\0b", 0, 0), ("file", -1, 0), ("file", 2**64, 0), ("file", 0, -1), ("file", 2**63, 0)]
)
def test_arguments_that_cannot_be_start_nothing(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, offset: int, tag: int
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(tensorswap.InvalidArgumentError):
        engine.swap_out(bytes(8), path, offset, tag=tag)
    with pytest.raises(tensorswap.InvalidArgumentError):
        engine.swap_out_many([Tensor(bytes(8), path, offset, tag=tag)])
    assert list(tmp_path.iterdir()) == []
    assert engine.stats().requests_count == 0


def test_ranges_that_overlap_are_refused(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(tensorswap.InvalidArgumentError):
        engine.swap_out_many([(bytes(8), path), (bytes(8), path, 4)])
    assert not path.exists()


def sparse(path: Path, nbytes: int) -> Path:
    """A file that takes long to read and no room."""
    with path.open("wb") as file:
        file.truncate(nbytes)
    return path


def slow_requests(engine: Engine, path: Path) -> Any:
    """Requests that keep the engine busy for seconds, on little memory; they are cancelled after use."""
    memory = bytearray(32 << 20)
    sparse(path, len(memory))
    return [engine.swap_in(memory, path) for _ in range(500)]


def cancel_all(tickets: Any) -> None:
    for ticket in tickets:
        ticket.cancel()
    for ticket in tickets:
        try:
            ticket.wait()
        except tensorswap.CancelledError:
            pass


def test_a_wait_ends_with_its_time_and_may_be_repeated(engine: Engine, tmp_path: Path) -> None:
    tickets = slow_requests(engine, tmp_path / "file")
    for timeout in (0, 0.01, 0.12):
        started = time.monotonic()
        with pytest.raises(TimeoutError) as raised:
            tickets[-1].wait(timeout)
        assert isinstance(raised.value, tensorswap.TimedOutError) and raised.value.retryable
        assert time.monotonic() - started >= timeout
    with pytest.raises(tensorswap.TimedOutError):
        engine.wait_all(0.01)
    done, total = tickets[-1].progress()
    assert 0 <= done <= total == 32 << 20
    cancel_all(tickets)
    with pytest.raises(tensorswap.BadTicketError):
        tickets[-1].progress()
    for timeout in (-1, float("nan"), float("inf"), 1e10):
        with pytest.raises(tensorswap.InvalidArgumentError):
            engine.swap_out(b"", tmp_path / "other").wait(timeout)


@pytest.mark.parametrize("wait", ["ticket", "wait_all", "shutdown"])
def test_a_signal_interrupts_a_wait(tmp_path: Path, wait: str) -> None:
    engine = Engine()
    tickets = slow_requests(engine, tmp_path / "file")
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            {"ticket": tickets[-1].wait, "wait_all": engine.wait_all, "shutdown": engine.shutdown}[wait]()
        assert not tickets[-1].done()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        cancel_all(tickets)
    engine.close()


def test_a_cancelled_request_says_so(engine: Engine, tmp_path: Path) -> None:
    tickets = slow_requests(engine, tmp_path / "file")
    tickets[-1].cancel()
    with pytest.raises(tensorswap.CancelledError):
        tickets[-1].wait()
    tickets[-1].cancel()  # too late is fine
    cancel_all(tickets)


def test_other_threads_run_while_one_waits(engine: Engine, tmp_path: Path) -> None:
    tickets = slow_requests(engine, tmp_path / "file")
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        try:
            tickets[-1].wait()
        except tensorswap.CancelledError:
            pass

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    counted = 0
    while counted < 10_000:  # would never end if the waiting thread held the interpreter
        counted += 1
    assert thread.is_alive()
    cancel_all(tickets)  # waits on the very same ticket as the other thread
    thread.join()


def test_the_descriptor_tells_of_completions(engine: Engine, tmp_path: Path) -> None:
    assert select.select([engine], [], [], 0)[0] == []
    ticket = engine.swap_out(b"1234", tmp_path / "file")
    assert select.select([engine], [], [], 30)[0] == [engine]
    assert engine.poll() == 1
    assert ticket.done() and ticket.wait().bytes_done == 4
    assert select.select([engine], [], [], 0)[0] == []
    assert engine.poll() == 0


def test_wait_all_waits_for_all_and_tells_the_first_error(engine: Engine, tmp_path: Path) -> None:
    engine.wait_all()
    good = [engine.swap_out(bytes(100_000), tmp_path / f"file{i}") for i in range(20)]
    engine.wait_all()
    assert all(ticket.done() for ticket in good)
    bad = engine.swap_in(bytearray(8), tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        engine.wait_all()
    assert isinstance(bad.error(), tensorswap.NotFoundError)


def test_more_requests_than_tickets_are_refused_as_busy(tmp_path: Path) -> None:
    with Engine(tickets_max=4) as engine:
        tickets = [engine.swap_out(b"1", tmp_path / str(i)) for i in range(4)]
        try:
            with pytest.raises(tensorswap.BusyError) as raised:
                engine.swap_out(b"1", tmp_path / "more")
            assert raised.value.retryable
        finally:
            for ticket in tickets:
                ticket.wait()
        engine.swap_out(b"1", tmp_path / "more").wait()


def test_dropped_tickets_do_not_pile_up(engine: Engine, tmp_path: Path) -> None:
    for round_number in range(10_000):  # more than tickets_max
        engine.swap_out(b"1234", tmp_path / "file")
        if round_number % 1000 == 0:
            engine.wait_all()
    engine.wait_all()
    assert len(engine._pending) == 0


def test_a_failure_that_nobody_heard_of_is_logged(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine.swap_in(bytearray(8), tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        engine.wait_all()
    assert [record.name for record in caplog.records] == ["tensorswap"]
    assert "nobody waited for a request that failed: swap_in" in caplog.text


def test_a_closed_engine_refuses_and_its_tickets_still_tell(tmp_path: Path) -> None:
    engine = Engine()
    good, bad = engine.swap_out(b"1234", tmp_path / "file"), engine.swap_in(bytearray(8), tmp_path / "none")
    engine.close()
    engine.close()
    assert engine.closed and good.wait().bytes_done == 4
    with pytest.raises(FileNotFoundError):
        bad.wait()
    for call in (engine.stats, engine.describe, engine.poll, engine.fileno, lambda: engine.buffer(1)):
        with pytest.raises(tensorswap.ShutDownError, match="the engine is closed"):
            call()


def test_an_engine_that_shut_down_takes_nothing(engine: Engine, tmp_path: Path) -> None:
    engine.shutdown()
    with pytest.raises(tensorswap.ShutDownError):
        engine.swap_out(b"1", tmp_path / "file")


def test_threads_share_an_engine(any_engine: Engine, tmp_path: Path) -> None:
    failures = []

    def work(number: int) -> None:
        random = np.random.default_rng(number)
        try:
            for turn in range(50):
                sent = random.bytes(int(random.integers(1, 50_000)))
                received = bytearray(len(sent))
                any_engine.swap_out(sent, tmp_path / str(number)).wait()
                ticket = any_engine.swap_in(received, tmp_path / str(number))
                if turn % 3 == 0:
                    any_engine.poll()
                ticket.wait()
                assert received == sent
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    stats = any_engine.stats()
    assert (stats.requests_count, stats.requests_in_flight_count, stats.swap_in_errors_count) == (800, 0, 0)


def test_a_forked_child_is_told_and_can_make_its_own(engine: Engine, tmp_path: Path) -> None:
    buffer = engine.buffer(4096)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            try:
                engine.swap_out(b"1234", tmp_path / "file")
            except tensorswap.ForkedError as error:
                status = 0 if "fork" in str(error).lower() else 2
            engine.close()
            del buffer
            with Engine() as own:
                own.swap_out(b"child", tmp_path / "child").wait()
        except BaseException:
            status = 3
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "child").read_bytes() == b"child"
    engine.swap_out(buffer, tmp_path / "file").wait()


def test_describe_and_prometheus_tell_what_is(engine: Engine, tmp_path: Path) -> None:
    engine.swap_out(engine.buffer(4096), tmp_path / "file").wait()
    assert engine.describe()["backend"] in ("io_uring", "threads")
    text = engine.prometheus()
    assert "tensorswap_" in text and "# TYPE" in text
