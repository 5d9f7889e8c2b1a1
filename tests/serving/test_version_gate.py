"""Requests and changes of version take turns."""

import asyncio

import pytest

from serving.versions.version_gate import VersionGate


def test_a_change_waits_for_the_requests_inside_and_later_ones_wait_for_the_change() -> None:
    seen: list[str] = []

    async def request(gate: VersionGate, name: str, leave: asyncio.Event) -> None:
        async with gate.request() as version:
            seen.append(f"{name} in at {version}")
            await leave.wait()
            seen.append(f"{name} out")

    async def change(gate: VersionGate) -> None:
        async with gate.change(drain_s=10):
            seen.append("change")
            gate.version = 2

    async def scenario() -> None:
        gate, leave = VersionGate(1), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for name in ("a", "b"):
                tasks.create_task(request(gate, name, leave))
            await asyncio.sleep(0)
            tasks.create_task(change(gate))
            await asyncio.sleep(0)
            tasks.create_task(request(gate, "c", leave))
            await asyncio.sleep(0)
            leave.set()

    asyncio.run(scenario())
    assert seen == ["a in at 1", "b in at 1", "a out", "b out", "change", "c in at 2", "c out"]


def test_a_cancelled_request_leaves() -> None:
    async def scenario() -> int | None:
        gate = VersionGate(1)

        async def request() -> None:
            async with gate.request():
                await asyncio.Event().wait()

        inside = asyncio.create_task(request())
        await asyncio.sleep(0)
        inside.cancel()
        async with asyncio.timeout(10), gate.change(drain_s=10):
            gate.version = 2
        return gate.version

    assert asyncio.run(scenario()) == 2


def test_a_change_that_fails_leaves_the_gate_shut() -> None:
    async def scenario() -> None:
        gate = VersionGate(1)
        with pytest.raises(ValueError, match="half-way"):
            async with gate.change(drain_s=10):
                raise ValueError("half-way")
        async with asyncio.timeout(0.05), gate.request():
            pytest.fail("nobody knows which version this is")

    with pytest.raises(TimeoutError):
        asyncio.run(scenario())


def test_requests_that_do_not_end_leave_the_gate_open() -> None:
    async def scenario() -> int | None:
        gate = VersionGate(1)
        async with gate.request():
            with pytest.raises(TimeoutError):
                async with gate.change(drain_s=0.01):
                    pytest.fail("a request is inside")
            async with asyncio.timeout(10), gate.request() as version:
                return version

    assert asyncio.run(scenario()) == 1
