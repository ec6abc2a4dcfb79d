"""What ClusterCore keeps; no vLLM."""

from __future__ import annotations

import asyncio

from cluster.live import Resources


async def test_a_task_that_fails_is_the_engines_death_and_one_that_is_cancelled_is_not() -> None:
    async def waits() -> None:
        await asyncio.sleep(60)

    async def ends() -> None: ...

    async def fails() -> None:
        raise ValueError("a mistake of ours")

    resources = Resources()
    for coroutine in (waits(), ends()):
        resources.start(coroutine)
    await asyncio.sleep(0.01)
    resources.cancel()
    await asyncio.sleep(0.01)
    assert not resources.engine_dead and not resources._tasks
    resources.start(fails())
    await asyncio.sleep(0.01)
    assert resources.engine_dead
