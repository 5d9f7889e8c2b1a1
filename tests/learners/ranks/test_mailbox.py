"""Calls and answers between one driver and groups of ranks that come and go; in one event loop."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from cluster.errors import DataError
from learners.ranks.loop import begin_saving, finish_saving, num_steps_done
from learners.ranks.mailbox import Answer, Call, Mailbox

SAVE = Call(function=begin_saving)
FINISH = Call(function=finish_saving)
READY = Call(function=num_steps_done)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, timeout=10))


def test_every_rank_gets_every_call_and_rank_0_answers() -> None:
    async def story() -> None:
        mailbox = Mailbox(2)
        sent = asyncio.create_task(mailbox.send(SAVE))  # before any rank is there
        group, first = await mailbox.join()
        assert (group, first) == (1, 0)
        assert [await mailbox.receive(group, first) for _ in range(2)] == [SAVE, SAVE]
        await mailbox.reply(group, first, "written")
        assert await sent == Answer(outcome="replied", reply="written")

    run(story())


def test_calls_of_a_dead_group_are_lost_and_the_next_group_starts_after_them() -> None:
    async def story() -> None:
        mailbox = Mailbox(2)
        first_group, _ = await mailbox.join()
        read, unread = (asyncio.create_task(mailbox.send(call)) for call in (SAVE, FINISH))
        assert await mailbox.receive(first_group, 0) == SAVE  # by one rank of two
        await mailbox.lose("rank 1: its process has died")
        group, first = await mailbox.join()
        assert (group, first) == (2, 2)
        lost = Answer(outcome="lost", reply="rank 1: its process has died")
        assert [await sent for sent in (read, unread)] == [lost, lost]
        again = asyncio.create_task(mailbox.send(READY))
        assert [await mailbox.receive(group, 2) for _ in range(2)] == [READY] * 2
        await mailbox.reply(first_group, 2, "late words of the dead")
        await mailbox.reply(group, 2, 5)
        assert await again == Answer(outcome="replied", reply=5)

    run(story())


def test_a_rank_that_outlived_its_group_is_sent_home_and_takes_nothing() -> None:
    async def story() -> None:
        mailbox = Mailbox(1)
        old, first = await mailbox.join()
        waiting = asyncio.create_task(mailbox.receive(old, first))
        await asyncio.sleep(0)
        group, first = await mailbox.join()
        assert await waiting is None
        sent = asyncio.create_task(mailbox.send(SAVE))
        assert await mailbox.receive(group, first) == SAVE
        await mailbox.reply(group, first, None)
        assert (await sent).outcome == "replied"

    run(story())


def test_what_no_restart_mends_answers_everything() -> None:
    async def story() -> None:
        mailbox = Mailbox(1)
        waiting = asyncio.create_task(mailbox.send(SAVE))
        await asyncio.sleep(0)
        error = DataError("a batch without trajectories")
        await mailbox.fail(error)
        await mailbox.fail(DataError("the same from another rank"))
        assert await waiting == Answer(outcome="failed", reply=error)
        assert await mailbox.send(SAVE) == Answer(outcome="failed", reply=error)

    run(story())


def test_ranks_that_were_replaced_between_two_calls_are_told_of_at_the_next() -> None:
    async def story() -> None:
        mailbox = Mailbox(1)
        group, first = await mailbox.join()
        sent = asyncio.create_task(mailbox.send(SAVE))
        await mailbox.receive(group, first)
        await mailbox.reply(group, first, None)
        assert (await sent).outcome == "replied"
        group, first = await mailbox.join()  # back at its checkpoint, while the driver works on something else
        assert (await mailbox.send(SAVE)).outcome == "lost"  # else it would train on a batch of a later step
        sent = asyncio.create_task(mailbox.send(READY))
        assert await mailbox.receive(group, first) == READY
        await mailbox.reply(group, first, 5)
        assert await sent == Answer(outcome="replied", reply=5)

    run(story())
