"""The demo: three regions part, diverge, meet and converge, and every claim is checked.

The story is told by what the nodes answer and by what the payment gateway of `examples/shop.py` wrote down, never by
what should have happened. A check that fails is printed as such, and the exit code says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from rich.console import Console
from rich.markup import escape

from crdtsync.commands import VerifyLog
from crdtsync.errors import ConfigError, CrdtSyncError, UnknownTaskError
from regions.client import Client
from regions.devcluster import DevCluster, dev_cluster
from regions.submission import DEFAULT_OPTIONS, Options

T = TypeVar("T")

REGIONS: Final = ("eu", "us", "ap")
APART: Final = "us"  # the region that is cut off
TOGETHER: Final = tuple(region for region in REGIONS if region != APART)
PAYMENT_DELAY_S: Final = 6.0  # long enough to cut us off first, and for the others to miss it
STEP_TIMEOUT_S: Final = 15.0  # each step takes a second or four; a loaded machine gets some patience
POLL_S: Final = 0.1
UNLINKED: Final = frozenset({"cut", "unreachable", "silent"})  # of a region's row
ENDED: Final = frozenset({"succeeded", "dead", "expired", "cancelled"})


@dataclass(frozen=True, slots=True)
class Check:
    """One claim, whether it held, and what it was seen by."""

    claim: str
    held: bool
    evidence: str


@dataclass(slots=True)
class Teller:
    """Writes the story: coloured on a terminal, plain lines where it is piped."""

    console: Console
    started: float = field(default_factory=time.monotonic)
    checks: list[Check] = field(default_factory=list)
    chapters: int = 0

    def chapter(self, title: str) -> None:
        self.chapters += 1
        self.console.print(f"\n[bold]{self.chapters}. {escape(title)}[/]", soft_wrap=True)

    def say(self, text: str) -> None:
        elapsed = f"{time.monotonic() - self.started:5.1f} s"
        self.console.print(f"[dim]{elapsed}[/]  {escape(text)}", soft_wrap=True)

    def quote(self, text: str) -> None:
        for line in text.splitlines():
            self.console.print(f"         [cyan]{escape(line)}[/]", soft_wrap=True)

    def check(self, claim: str, held: object, evidence: str) -> None:
        self.checks.append(Check(claim, bool(held), evidence))
        mark = "[green]   ok  [/]" if held else "[bold red] FAILED[/]"
        self.console.print(f"{mark}  {escape(claim)} [dim]({escape(evidence)})[/]", soft_wrap=True)

    @property
    def all_held(self) -> bool:
        return bool(self.checks) and all(check.held for check in self.checks)


def run_demo(*, keep: bool, as_json: bool = False) -> int:
    """Tell the story and return the exit code: 0 if every check held, 1 if one did not."""
    teller = Teller(Console(stderr=as_json, highlight=False))
    app = example("shop.py")
    data = Path(tempfile.mkdtemp(prefix="crdtsync-demo-"))
    try:
        code = asyncio.run(_interruptible(_demo(teller, app, data)))
    finally:
        if not keep:
            shutil.rmtree(data, ignore_errors=True)
    if as_json:
        record = {"ok": code == 0, "checks": [vars_of(check) for check in teller.checks]}
        sys.stdout.write(json.dumps(record) + "\n")
    if keep:
        teller.console.print(
            f"\nThe data is kept. To go on: crdtsync dev --app {app}:app --data {data}", soft_wrap=True
        )
    return code


def vars_of(check: Check) -> dict[str, Any]:
    return {"claim": check.claim, "held": check.held, "evidence": check.evidence}


def example(name: str) -> Path:
    """An example's file: beside this package where it was installed from a wheel, else in the repository.

    Raises:
        ConfigError: If it is in neither place.
    """
    package = Path(__file__).resolve().parent
    places = [package / "examples" / name, package.parent / "examples" / name]
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(f"{name} is at none of {', '.join(map(str, places))}: install crdtsync from a wheel or a clone")


async def _interruptible(story: Awaitable[int]) -> int:
    """Run the story; SIGTERM ends it as Ctrl-C does, so that what it started is stopped in order."""
    task = asyncio.ensure_future(story)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise  # Ctrl-C: asyncio.run turns it into KeyboardInterrupt
        return 128 + signal.SIGTERM
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def _demo(teller: Teller, app: Path, data: Path) -> int:
    ledger = Ledger(data / "gateway.jsonl")
    teller.console.print("[bold]crdtsync demo[/]: three regions on this machine, each a node and a worker")
    teller.say(f"starting {', '.join(REGIONS)} on loopback; the app is {app.name}")
    pids: dict[str, int] = {}
    try:
        async with dev_cluster(
            f"{app}:app", data, regions=REGIONS, environment={"SHOP_LEDGER": str(ledger.path)}
        ) as up:
            pids = up.pids
            async with Shop.connected(up) as shop:
                await Story(teller, up, shop, ledger).tell()
    except CrdtSyncError as error:
        teller.check("the story reached its end", False, str(error))
    except TimeoutError:
        teller.check("the story reached its end", False, f"no progress for {STEP_TIMEOUT_S:g} s; see above")
    left = sorted(name for name, pid in pids.items() if alive(pid))
    teller.check("no process is left behind", not left, ", ".join(left) or f"{len(pids)} processes have ended")
    failed = sum(not check.held for check in teller.checks)
    elapsed = time.monotonic() - teller.started
    if teller.all_held:
        teller.console.print(f"\n[bold green]All {len(teller.checks)} checks held[/], after {elapsed:.0f} s.")
    else:
        teller.console.print(f"\n[bold red]{failed} of {len(teller.checks)} checks failed[/], after {elapsed:.0f} s.")
    return 0 if teller.all_held else 1


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# What the story looks at -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the gateway wrote down: one JSON object a line (see `examples/shop.py`)."""

    path: Path

    def entries(self, kind: str) -> list[dict[str, Any]]:
        """Entries that moved money; a repeat of a known key did not."""
        if not self.path.exists():
            return []
        lines = (json.loads(line) for line in self.path.read_text("utf-8").splitlines())
        return [line for line in lines if line["kind"] == kind and not line["repeat"]]

    def charges(self, order: str) -> list[str]:
        return [entry["charge"] for entry in self.entries("charge") if entry["order"] == order]

    def refunds(self, charges: Iterable[str]) -> list[str]:
        wanted = set(charges)
        return [entry["charge"] for entry in self.entries("refund") if entry["charge"] in wanted]


@dataclass(frozen=True, slots=True)
class Shop:
    """The three nodes, one client each."""

    clients: dict[str, Client]

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, cluster: DevCluster) -> AsyncIterator[Shop]:
        async with contextlib.AsyncExitStack() as stack:
            urls = cluster.urls
            yield cls({region: await stack.enter_async_context(Client(urls[region])) for region in REGIONS})

    async def submit(self, at: str, name: str, options: Options = DEFAULT_OPTIONS, **arguments: Any) -> str:
        """Submit one task at a region and return its id."""
        handle = await in_time(self.clients[at].submit(name, options=options, **arguments))
        return handle.id

    async def task(self, region: str, task_id: str) -> dict[str, Any] | None:
        """The task's record as one region sees it; None where it is not known."""
        try:
            return await in_time(self.clients[region].status(task_id))
        except UnknownTaskError:
            return None

    async def state(self, region: str, task_id: str) -> str:
        record = await self.task(region, task_id)
        return "unknown" if record is None else str(record["state"])

    async def regions(self, at: str) -> dict[str, dict[str, Any]]:
        return {row["region"]: row for row in await in_time(self.clients[at].regions())}

    async def conflicts(self, at: str, task_id: str) -> list[dict[str, Any]]:
        return [row for row in await in_time(self.clients[at].conflicts()) if row["task"] == task_id]

    async def explain(self, at: str, task_id: str) -> str:
        return str((await in_time(self.clients[at].explain(task_id)))["text"])

    async def order(self, at: str, name: str, cents: int) -> list[str]:
        """One order: charge, then ship, then notify."""
        charge = await self.submit(at, "charge", order=name, cents=cents)
        ship = await self.submit(at, "ship", Options(after=[charge]), order=name)
        notify = await self.submit(at, "notify", Options(after=[ship]), order=name)
        return [charge, ship, notify]


async def in_time(answer: Awaitable[T]) -> T:
    """Every node is on this machine, so an answer that takes this long will not come."""
    async with asyncio.timeout(STEP_TIMEOUT_S):
        return await answer


async def until(condition: Callable[[], Awaitable[object]], timeout_s: float = STEP_TIMEOUT_S) -> bool:
    """Look until the condition holds. Returns whether it did in time: the check that follows says so."""
    deadline = time.monotonic() + timeout_s
    while not await condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


# The story -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Story:
    teller: Teller
    cluster: DevCluster
    shop: Shop
    ledger: Ledger
    orders: dict[str, list[str]] = field(default_factory=dict)  # order: its tasks
    payment: str = ""
    letter: str = ""

    async def tell(self) -> None:
        self.regions_are_up()
        await self.orders_everywhere()
        await self.us_is_cut_off()
        await self.both_sides_go_on()
        await self.one_payment_runs_twice()
        await self.the_links_heal()
        await self.one_outcome_and_one_refund()
        await self.logs_are_sound()

    def regions_are_up(self) -> None:
        pids = self.cluster.pids
        for region, url in self.cluster.urls.items():
            self.teller.say(f"{region} is up: {url}, node {pids[f'{region} node']}, worker {pids[f'{region} worker']}")
        databases = {region: self.databases(region) for region in REGIONS}
        held = len(set(pids.values())) == 2 * len(REGIONS) and all(map(alive, pids.values()))
        self.teller.check(
            "three nodes and three workers are processes of their own, each node with a SQLite file",
            held and all(databases.values()),
            f"{len(set(pids.values()))} pids; {', '.join(f'{r}/{files[0]}' for r, files in databases.items() if files)}",
        )

    def databases(self, region: str) -> list[str]:
        """Files of the region that are SQLite databases by their first bytes."""
        folder = Path(self.cluster.ready()["nodes"][region]["data"])
        return sorted(path.name for path in folder.rglob("*") if path.is_file() and _head(path) == b"SQLite format 3\0")

    async def orders_everywhere(self) -> None:
        self.teller.chapter("Orders in all three regions")
        for number, region in enumerate(REGIONS, 1):
            await self.take_order(region, f"{region}-{number}")
        await self.finished_at(self.orders, REGIONS)
        done = {region: await self.done_at(region, self.orders) for region in REGIONS}
        total = sum(map(len, self.orders.values()))
        self.teller.check(
            "every order was charged, shipped and notified, and every region knows",
            set(done.values()) == {total},
            ", ".join(f"{region} sees {count} of {total} succeeded" for region, count in done.items()),
        )

    async def us_is_cut_off(self) -> None:
        self.teller.chapter(f"{APART} is cut off")
        later = Options(region=APART, delay=PAYMENT_DELAY_S)
        self.payment = await self.shop.submit("eu", "charge", later, order="P-7", cents=4200)
        self.teller.say(
            f"eu took payment P-7: {APART} owns it and is to charge it in {PAYMENT_DELAY_S:g} s, takeover allowed"
        )

        async def known() -> bool:
            return await self.shop.state(APART, self.payment) != "unknown"

        await until(known)
        await in_time(self.shop.clients[APART].cut())
        self.teller.say(f"the links of {APART} are cut")

        async def apart() -> bool:
            there = await self.shop.regions("eu")
            return there[APART]["status"] in UNLINKED

        await until(apart)
        seen = {region: await self.shop.regions(region) for region in REGIONS}
        held = all(seen[region][APART]["status"] in UNLINKED for region in TOGETHER) and all(
            seen[APART][region]["status"] in UNLINKED for region in TOGETHER
        )
        evidence = [
            f"{at} sees {other} {seen[at][other]['status']}" for at in REGIONS for other in REGIONS if at != other
        ]
        held = held and seen["eu"]["ap"]["status"] == "up"
        self.teller.check(f"{APART} is cut off from both others, who still see each other", held, ", ".join(evidence))

    async def both_sides_go_on(self) -> None:
        self.teller.chapter("Both sides keep accepting and finishing work")
        here, there = {}, {}
        here["us-4"] = await self.take_order(APART, "us-4")
        there["eu-5"] = await self.take_order("eu", "eu-5")
        there["ap-6"] = await self.take_order("ap", "ap-6")
        only_us = Options(region=APART, partition="wait")
        self.letter = await self.shop.submit("eu", "notify", only_us, order="P-7")
        self.teller.say(f"eu took a letter that only {APART} may ever send (partition=wait)")
        await self.finished_at(here, (APART,))
        await self.finished_at(there, TOGETHER)
        done_here = await self.done_at(APART, here)
        done_there = {region: await self.done_at(region, there) for region in TOGETHER}
        unknown = [await self.shop.state(APART, task) for tasks in there.values() for task in tasks]
        unknown += [await self.shop.state("eu", task) for tasks in here.values() for task in tasks]
        self.teller.check(
            "both sides accepted and finished orders that the other side knows nothing of",
            done_here == 3 and set(done_there.values()) == {6} and set(unknown) == {"unknown"},
            f"{APART}: {done_here} of 3 tasks succeeded; eu, ap: {done_there['eu']}, {done_there['ap']} of 6; "
            f"{unknown.count('unknown')} of 9 unknown across the cut",
        )

    async def one_payment_runs_twice(self) -> None:
        self.teller.chapter("One payment runs on both sides, on purpose")

        async def both() -> bool:
            states = [await self.shop.state(region, self.payment) for region in (APART, "eu", "ap")]
            return set(states) == {"succeeded"}

        await until(both, PAYMENT_DELAY_S + STEP_TIMEOUT_S)
        owner_side, other_side = await self.shop.task(APART, self.payment), await self.shop.task("eu", self.payment)
        assert owner_side is not None
        assert other_side is not None
        ran = {side["attempts"][-1]["region"]: side for side in (owner_side, other_side) if side["attempts"]}
        for region, side in ran.items():
            self.teller.say(f"{region} charged P-7, in term {side['attempts'][-1]['term']}: {side['result']}")
        charges = self.ledger.charges("P-7")
        self.teller.check(
            f"P-7 ran on both sides: {APART} as its owner, another region after {APART} was silent for lost_after",
            len(ran) == 2 and APART in ran and {owner_side["state"], other_side["state"]} == {"succeeded"},
            "; ".join(f"{region} in term {side['attempts'][-1]['term']}" for region, side in ran.items()),
        )
        self.teller.check("the customer was charged twice", len(set(charges)) == 2, f"gateway: {', '.join(charges)}")
        letter = await self.shop.task("eu", self.letter)
        assert letter is not None
        self.teller.check(
            "the letter still waits, and says for what",
            letter["state"] == "waiting" and letter["waiting_for"] and APART in letter["waiting_for"],
            f"{letter['state']}: {letter['waiting_for']}",
        )
        digests = {region: row["digest"] for region, row in (await self.own_rows()).items()}
        self.teller.check(
            "the two sides have different states",
            digests["eu"] == digests["ap"] != digests[APART],
            ", ".join(f"{region} {digest[:12]}" for region, digest in digests.items()),
        )

    async def the_links_heal(self) -> None:
        self.teller.chapter("The links heal")
        await in_time(self.shop.clients[APART].heal())
        self.teller.say(f"{APART} may talk to the others again")
        healed = time.monotonic()

        async def agreed() -> bool:
            return _agree(await self.own_rows()) and await self.at_rest()

        await until(agreed)
        took = time.monotonic() - healed
        rows = await self.own_rows()
        digests = ", ".join(f"{region} {row['digest'][:12]}" for region, row in rows.items())
        self.teller.check(
            "all three regions hold the same commits and show the same digest",
            _agree(rows),
            f"{digests}; {took:.1f} s after the heal",
        )
        total = sum(map(len, self.orders.values()))
        done = {region: await self.done_at(region, self.orders) for region in REGIONS}
        self.teller.check(
            "every acknowledged order has succeeded, everywhere",
            set(done.values()) == {total},
            ", ".join(f"{region} {count} of {total}" for region, count in done.items()),
        )
        charged = {order: len(self.ledger.charges(order)) for order in self.orders}
        self.teller.check(
            "no order was charged twice",
            set(charged.values()) == {1},
            f"gateway: {sum(charged.values())} charges for {len(charged)} orders",
        )
        letter = await self.shop.task("eu", self.letter)
        assert letter is not None
        regions = [attempt["region"] for attempt in letter["attempts"]]
        self.teller.check(
            f"the letter was sent once, by {APART}",
            letter["state"] == "succeeded" and regions == [APART],
            f"{letter['state']}, attempts: {', '.join(regions) or 'none'}",
        )

    async def own_rows(self) -> dict[str, dict[str, Any]]:
        """Each region's row about itself: its heads and its digest."""
        return {region: (await self.shop.regions(region))[region] for region in REGIONS}

    async def at_rest(self) -> bool:
        """Whether all that was to happen after the heal has: settled, undone, sent."""
        for region in REGIONS:
            payment, letter = await self.shop.task(region, self.payment), await self.shop.task(region, self.letter)
            if payment is None or letter is None or not payment["settled"] or letter["state"] not in ENDED:
                return False
            undone = await self.compensations(region)
            if not undone or any(compensation["state"] not in ENDED for compensation in undone):
                return False
        return True

    async def compensations(self, region: str) -> list[dict[str, Any]]:
        conflicts = await self.shop.conflicts(region, self.payment)
        return [item for conflict in conflicts for item in conflict["compensations"]]

    async def one_outcome_and_one_refund(self) -> None:
        self.teller.chapter("One outcome, one refund")
        seen = {region: await self.shop.task(region, self.payment) for region in REGIONS}
        records = [record for record in seen.values() if record is not None]
        outcomes = {_canonical([record["state"], record["result"], record["attempts"]]) for record in records}
        result = records[0]["result"] if records else None
        self.teller.check(
            "the payment has one outcome, the same in every region, and it is settled",
            len(records) == 3 and len(outcomes) == 1 and all(record["settled"] for record in records),
            f"{records[0]['state'] if records else 'unknown'}: {result}",
        )
        mine = await self.shop.conflicts("ap", self.payment)
        self.teller.check(
            "the double run is on record as a conflict, with the rule that decided it",
            any(conflict["compensations"] for conflict in mine),
            "; ".join(f"{conflict['kind']}: {conflict['rule']}" for conflict in mine) or "no conflict",
        )
        charges = self.ledger.charges("P-7")
        refunds = self.ledger.refunds(charges)
        lost = [charge for charge in charges if charge != result]
        self.teller.check(
            "the charge that counts stands, and the duplicate was refunded exactly once",
            result in charges and len(charges) == 2 and refunds == lost,
            f"gateway: {len(charges)} charges, {len(refunds)} refund, of {', '.join(refunds) or 'none'}",
        )
        self.teller.check(
            "nothing else was refunded",
            len(self.ledger.entries("refund")) == 1,
            f"gateway: {len(self.ledger.entries('refund'))} refund in all",
        )
        texts = {region: await self.shop.explain(region, self.payment) for region in REGIONS}
        self.teller.say(f"crdtsync task explain {self.payment}")
        self.teller.quote(texts["ap"])
        self.teller.check(
            "every region gives the same explanation, word for word",
            len(set(texts.values())) == 1 and texts["ap"],
            f"{len(texts['ap'])} characters from eu, us and ap",
        )

    async def logs_are_sound(self) -> None:
        reports = {region: await in_time(self.shop.clients[region].request(VerifyLog())) for region in REGIONS}
        self.teller.check(
            "every node's log verifies: chains, hashes, numbers, digest",
            all(report["ok"] for report in reports.values()),
            ", ".join(f"{region} {report['commits']} commits" for region, report in reports.items()),
        )

    # Small steps

    async def take_order(self, region: str, name: str) -> list[str]:
        self.orders[name] = await self.shop.order(region, name, 1999)
        self.teller.say(f"{region} took order {name}: charge, then ship, then notify")
        return self.orders[name]

    async def done_at(self, region: str, orders: dict[str, list[str]]) -> int:
        states = [await self.shop.state(region, task) for tasks in orders.values() for task in tasks]
        return states.count("succeeded")

    async def finished_at(self, orders: dict[str, list[str]], regions: Iterable[str]) -> None:
        total = sum(map(len, orders.values()))

        async def done() -> bool:
            return all([await self.done_at(region, orders) == total for region in regions])

        await until(done)


def _agree(rows: dict[str, dict[str, Any]]) -> bool:
    return len({_canonical([row["heads"], row["digest"]]) for row in rows.values()}) == 1


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
