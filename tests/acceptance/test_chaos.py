"""Tasks while regions are cut, healed and killed at random; afterwards nothing may be missing, double or left behind.

`make acceptance ARGS='--seed 7 -k chaos'` plays the plan of one seed again, on whatever schedule the machine gives.
"""

import asyncio
import contextlib
import json
import random
from collections import Counter

import pytest

from crdtsync.commands import CutLinks, HealLinks
from crdtsync.errors import CrdtSyncError
from regions.submission import Options, new_task_id, task_spec
from tests.acceptance.ground import REGIONS, ground
from tests.acceptance.history import misplaced_effects, read_log, stories

HEALED_S = 10  # issue 2, 5.1: digests are equal so long after the last heal
APART_S = 2  # at the end of the chaos, everybody is alone for so long
ENDED = {"succeeded", "dead", "expired", "cancelled"}


class Chaos:
    """One run: a plan drawn from the seed, carried out against a cluster."""

    never_raises = ("sure", "sure_in_thread", "book")
    ended_s = 60  # so long after the last heal everything has ended

    def __init__(self, ground, seed, tasks, seconds):
        self.ground = ground
        self.seed = seed
        self.draw = random.Random(seed)
        self.tasks = tasks
        self.seconds = seconds
        self.acknowledged = {}  # task id in hex -> name
        self.unanswered = 0
        self.healed = 0.0
        self.deeds = []

    def did(self, what):
        self.deeds.append(f"{self.ground.seconds:6.1f} {what}")

    async def run(self):
        try:
            harm = asyncio.create_task(self.harm())
            submit = asyncio.create_task(self.submit())
            await harm
            await self.heal_at_last()
            await submit
            return await self.judge()
        finally:
            print(f"seed {self.seed}", *self.deeds, sep="\n")

    # Work ----------------------------------------------------------------------------------------

    def spec(self, number, earlier):
        draw = self.draw
        name = draw.choices(["sure", "sure_in_thread", "shaky", "book", "gamble"], weights=[30, 10, 20, 25, 15])[0]
        long = draw.random() < 0.1  # long enough that a cut or a kill finds it under way
        seconds = round(draw.uniform(1, 6) if long else draw.uniform(0, 0.05), 3)
        arguments = {
            "shaky": (number, 0.3),
            "gamble": (number, 0.3, seconds),
        }.get(name, (seconds,))
        options = {
            "region": draw.choices(["here", "spread", *REGIONS], weights=[6, 3, 1, 1, 1])[0],
            "partition": draw.choices([None, "wait"], weights=[3, 1])[0],
            "id": new_task_id(),
        }
        if name in self.never_raises and draw.random() < 0.1:
            options |= {"key": f"key-{draw.randrange(self.tasks // 10)}", "id": None}  # met more than once
            arguments = (0,)
        elif earlier and draw.random() < 0.15:
            options["after"] = draw.sample(earlier, min(len(earlier), draw.randint(1, 3)))
        return name, task_spec(name, arguments, {}, Options(**options))

    async def submit(self):
        """All tasks, evenly over the time, in bulks of random size, each to a region at random."""
        loop = asyncio.get_running_loop()
        began, number, sending = loop.time(), 0, set()
        while number < self.tasks:
            size = min(self.draw.randint(1, 20), self.tasks - number)
            region = self.draw.choice(REGIONS)
            parents = [
                task for task, (name, at) in self.acknowledged.items() if at == region and name in self.never_raises
            ]
            bulk = [self.spec(number + i, parents[-50:]) for i in range(size)]
            number += size
            sending.add(asyncio.create_task(self.send(region, bulk)))
            await asyncio.sleep(max(0, began + self.seconds * number / self.tasks - loop.time()))
        await asyncio.gather(*sending)

    async def send(self, region, bulk):
        try:
            answers = await self.ground.clients[region].submit_many([spec for _, spec in bulk])
        except CrdtSyncError:
            self.unanswered += len(bulk)
            return
        for (name, _), answer in zip(bulk, answers, strict=True):
            if isinstance(answer, CrdtSyncError):
                if answer.code not in ("duplicate_task", "conflict"):
                    self.did(f"refused in {region}: {answer.code} {answer}")
                self.unanswered += 1
            else:
                self.acknowledged.setdefault(answer.id, (name, region))
                if name == "gamble" and self.draw.random() < 0.1:
                    with contextlib.suppress(CrdtSyncError):
                        await answer.cancel()

    # Harm ----------------------------------------------------------------------------------------

    def acts(self):
        """What is done to the cluster, and how often beside the others."""
        return {self.isolate: 3, self.part: 3, self.heal: 4, self.kill_node: 3, self.kill_worker: 3}

    async def harm(self):
        loop = asyncio.get_running_loop()
        until = loop.time() + self.seconds
        acts = self.acts()
        while True:
            await asyncio.sleep(self.draw.uniform(0.3, 2))
            if loop.time() >= until - APART_S:
                break
            await self.draw.choices(list(acts), weights=acts.values())[0]()
        # The worst for the last heal: nobody sees anybody, and one is just coming back.
        for region in REGIONS:
            self.did(f"isolate {region}: {await self.tell(region, CutLinks())}")
        await asyncio.sleep(APART_S - 1)
        await self.kill_node()
        await asyncio.sleep(max(0, until - loop.time()))

    async def tell(self, region, command):
        try:
            await self.ground.ask(region, command, 3)
        except (CrdtSyncError, TimeoutError):
            return False
        return True

    async def isolate(self):
        region = self.draw.choice(REGIONS)
        self.did(f"isolate {region}: {await self.tell(region, CutLinks())}")

    async def part(self):
        one, other = self.draw.sample(REGIONS, 2)
        self.did(f"part {one} from {other}: {await self.tell(one, CutLinks((other,)))}")

    async def heal(self):
        healed = [await self.tell(region, HealLinks()) for region in REGIONS]
        self.did(f"heal: {healed}")

    async def kill_node(self):
        region = self.draw.choice(REGIONS)
        self.did(f"kill node {region}: {self.ground.kill(f'{region} node')}")

    async def kill_worker(self):
        region = self.draw.choice(REGIONS)
        self.did(f"kill worker {region}: {self.ground.kill(f'{region} worker')}")

    async def heal_at_last(self):
        for region in REGIONS:
            await self.ground.until(lambda region=region: self.tell(region, HealLinks()), f"heal {region}", 20)
        self.healed = asyncio.get_running_loop().time()
        self.did("the last heal")

    # Afterwards ----------------------------------------------------------------------------------

    async def states(self, region):
        return {record["id"]: record["state"] for record in await self.ground.clients[region].list(limit=0)}

    async def all_ended(self):
        states = await self.states("eu")
        return self.acknowledged.keys() <= states.keys() and set(states.values()) <= ENDED

    async def judge(self):
        ground = self.ground
        loop = asyncio.get_running_loop()
        healed = self.healed
        await ground.until(ground.agreed, "equal heads and digests", HEALED_S - (loop.time() - healed))
        agreed = loop.time() - healed
        try:
            await ground.until(self.all_ended, "everything ended", self.ended_s - (loop.time() - healed))
        except AssertionError as error:
            states = await self.states("eu")
            late = [task for task in self.acknowledged if states.get(task) not in ENDED]
            late += [task for task, state in states.items() if state not in ENDED and task not in self.acknowledged]
            shown = [await ground.clients["eu"].status(task) for task in late[:3] if task in states]
            missing = [task for task in self.acknowledged if task not in states]
            raise AssertionError(
                f"{len(late)} late, {len(missing)} missing\n{json.dumps(shown, indent=1)}\n{error}"
            ) from None
        ended = loop.time() - healed
        agreed_again = await ground.until(ground.agreed, "equal heads and digests at rest", HEALED_S)
        views = [await self.states(region) for region in REGIONS]
        assert views[0] == views[1] == views[2]
        wrong = {
            task: state
            for task, (name, _) in self.acknowledged.items()
            if (state := views[0][task]) != "succeeded" and name in self.never_raises
        }
        assert not wrong, [await ground.clients["eu"].status(task) for task in list(wrong)[:3]]
        await ground.verified()

        async def placed():
            nonlocal problems, told
            told = stories(await read_log(ground.clients["eu"]))
            problems = misplaced_effects(told, list(map(json.loads, ground.sink.read_text().splitlines())))
            return not problems

        problems, told = [], {}
        try:
            placed_s = await ground.until(placed, "effects in place", max(1.0, self.ended_s - (loop.time() - healed)))
        except AssertionError as error:
            raise AssertionError("\n".join(problems[:10])) from error
        assert not ground.bugs()
        kinds = Counter(conflict["kind"] for conflict in await ground.conflicts("eu"))
        return {
            "acknowledged": len(self.acknowledged),
            "unanswered": self.unanswered,
            "states": dict(Counter(views[0].values())),
            "seconds": {
                "until agreed": round(agreed, 1),
                "until all ended": round(ended, 1),
                "agreed again": round(agreed_again, 1),
                "effects placed": round(placed_s, 1),
            },
            "attempts": sum(len(story.attempts) for story in told.values()),
            "lost attempts": dict(sum((story.lost for story in told.values()), Counter())),
            "of one task at most": dict(max((story.lost for story in told.values()), key=Counter.total)),
            "takeovers": sum(len(story.terms) for story in told.values()),
            "undone": sum(line["kind"] == "undo" for line in map(json.loads, ground.sink.read_text().splitlines())),
            "conflicts": dict(kinds),
        }


async def run_chaos(folder, seed, tasks, seconds):
    async with ground(folder) as cluster:
        return await Chaos(cluster, seed, tasks, seconds).run()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_thousand_tasks_survive_a_minute_of_chaos(tmp_path, seed):
    print(f"seed {seed}:", json.dumps(asyncio.run(run_chaos(tmp_path, seed, tasks=2_000, seconds=60)), indent=1))


@pytest.mark.timeout(90)
def test_tasks_survive_a_few_seconds_of_chaos(tmp_path, seed):
    print(f"seed {seed}:", json.dumps(asyncio.run(run_chaos(tmp_path, seed, tasks=150, seconds=6)), indent=1))
