"""Waiting for what other tasks, threads or processes bring about: polled, with the test's own limit around it."""

import asyncio

POLL_S = 0.01


async def until(condition):
    while not condition():  # noqa: ASYNC110 - there is no event for what others do
        await asyncio.sleep(POLL_S)
