"""Tickets in coroutines."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorswap
from tensorswap import Engine

from test_engine import cancel_all, slow_requests


def test_a_ticket_is_awaited(any_engine: Engine, tmp_path: Path) -> None:
    async def run() -> None:
        sent, received = np.arange(100_000.0), np.zeros(100_000)
        done = await any_engine.swap_out(sent, tmp_path / "file")
        assert done.bytes_done == sent.nbytes
        ticket = any_engine.swap_in(received, tmp_path / "file")
        await ticket
        await ticket  # again tells the same
        assert (received == sent).all()

    asyncio.run(run())
    asyncio.run(run())  # in a loop of its own


def test_an_error_comes_out_of_the_await(engine: Engine, tmp_path: Path) -> None:
    async def run() -> None:
        with pytest.raises(FileNotFoundError):
            await engine.swap_in(bytearray(8), tmp_path / "none")

    asyncio.run(run())


def test_many_are_awaited_at_once_while_the_loop_goes_on(engine: Engine, tmp_path: Path) -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def one(number: int) -> None:
        sent = np.full(10_000, number)
        received = np.zeros_like(sent)
        await engine.swap_out(sent, tmp_path / str(number))
        await engine.swap_in(received, tmp_path / str(number))
        assert (received == number).all()

    async def run() -> None:
        turning = asyncio.ensure_future(turn())
        await asyncio.gather(*(one(number) for number in range(100)))
        turning.cancel()

    asyncio.run(run())
    assert turns > 0
    assert engine._loops == {} and engine._pending == {}


def test_a_cancelled_task_leaves_the_request_to_go_on(engine: Engine, tmp_path: Path) -> None:
    tickets = slow_requests(engine, tmp_path / "file")

    async def run() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_wait(tickets[-1]), 0.02)

    asyncio.run(run())
    assert not tickets[-1].done()
    cancel_all(tickets)


async def _wait(ticket: tensorswap.Ticket) -> tensorswap.Completion:
    return await ticket


def test_two_loops_and_a_thread_share_an_engine(engine: Engine, tmp_path: Path) -> None:
    failures = []

    async def many(name: str) -> None:
        for number in range(50):
            sent = np.full(1000, number)
            await engine.swap_out(sent, tmp_path / name)
            received = np.zeros_like(sent)
            await asyncio.gather(engine_read(received, name), engine_read(np.zeros_like(sent), name))
            assert (received == sent).all()

    async def engine_read(received: np.ndarray, name: str) -> None:  # type: ignore[type-arg]
        await engine.swap_in(received, tmp_path / name)

    def work(name: str) -> None:
        try:
            asyncio.run(many(name))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(str(number),)) for number in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        engine.swap_out(b"1234", tmp_path / "other").wait()
        engine.poll()
    assert failures == []


def test_closing_the_engine_wakes_who_awaits(tmp_path: Path) -> None:
    async def run() -> None:
        engine = Engine()
        task = asyncio.ensure_future(_wait(engine.swap_out(bytes(10_000_000), tmp_path / "file")))
        await asyncio.sleep(0)
        engine.close()
        assert (await task).bytes_done == 10_000_000

    asyncio.run(run())
