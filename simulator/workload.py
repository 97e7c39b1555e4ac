"""Built-in workload models: the tasks that a simulated cluster runs where the user brings none.

A model is a set of tasks on an ordinary `App` and a way to submit them. Handlers use nothing but their context and
`asyncio.sleep`, which is one in virtual time, and do things to the world outside through the `Sink`, which knows effect
keys as a payment gateway knows idempotency keys. What chance decides in a handler is drawn from its attempt's own stream.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from crdtsync.app import App, PermanentError, Retry
from crdtsync.commands import Cancel, LimitDeclaration, SetLimit, Submit, TaskSpec
from crdtsync.context import Context
from crdtsync.errors import ConfigError
from crdtsync.execution import LostAttempt
from crdtsync.protocol.values import encode_arguments
from simulator.clock import EPOCH_US
from simulator.result import Operation
from simulator.scenario import Load
from simulator.workers import Attempt

if TYPE_CHECKING:
    from simulator.world import World

KEYS: Final = 20  # of the model "keyed": few enough to collide
LONG_STEPS: Final = 10
LIMITED: Final = "limited"  # the queue of the model of that name
RELIMIT: Final = 0.02
QUICK: Final = Retry(attempts=5, base=0.2, cap=2.0)
SOON_OVER: Final = Retry(attempts=2, base=0.2, cap=2.0)


@dataclass(slots=True)
class Effect:
    """Something that a handler did to the world outside."""

    key: bytes
    name: str
    task: str
    attempt: str
    fence: int
    at_us: int
    seq: int
    value: Any
    repeats: int = 0  # how often it was asked for again


@dataclass(slots=True)
class Sink:
    """The world outside: what was done, once per key."""

    world: World
    done: dict[bytes, Effect] = field(default_factory=dict)

    def do(self, ctx: Context, name: str, value: Any, key: bytes | None = None) -> Any:
        """Do it, unless it was done under this key. Returns what was done first."""
        attempt: Attempt = ctx._port  # type: ignore[assignment]  # noqa: SLF001 - the simulator made it
        return self.note(attempt, name, attempt.run.effect_key(name) if key is None else key, value)

    def note(self, attempt: Attempt, name: str, key: bytes, value: Any) -> Any:
        """An attempt has done something, by a model's handler or in a `ctx.effect` of the user's. As `do`."""
        known = self.done.get(key)
        kind = "effect.done" if known is None else "effect.repeated"
        assignment = attempt.run.assignment
        task, fence = assignment.task.hex(), assignment.fence
        trace = self.world.trace
        data = (task, str(attempt.id), name, fence)
        attempt.seq = trace.add(kind, attempt.worker.node.name, key.hex(), data, (attempt.seq,))
        if known is None:
            known = self.done[key] = Effect(
                key, name, task, str(attempt.id), fence, self.world.kernel.now_us, attempt.seq, value
            )
        else:
            known.repeats += 1
        return known.value


def luck(world: World, ctx: Context) -> random.Random:
    """The random stream of one attempt."""
    return world.stream("handler", ctx.attempt_id)


def build_app(world: World) -> App:
    """The tasks of all models, and those of the scenario's own app."""
    scenario = world.scenario
    own_limits = () if scenario.app is None else scenario.app.limits
    app = App("simulator" if scenario.app is None else scenario.app.name, limits=(*scenario.limits, *own_limits))
    sink = world.sink

    async def work(ctx: Context, mean_s: float) -> random.Random:
        """Take some time, and meet the fate that faults have in store for handlers."""
        rng = luck(world, ctx)
        await asyncio.sleep(rng.expovariate(1.0) * mean_s)
        world.fate(ctx.region, rng)
        return rng

    @app.task
    async def noop(ctx: Context, n: int = 0) -> int:
        await work(ctx, 0.02)
        return n

    @app.task(retry=QUICK)
    async def flaky(ctx: Context, n: int = 0, failing: float = 0.3) -> int:
        rng = await work(ctx, 0.05)
        if rng.random() < failing:
            raise PermanentError("not today") if rng.random() < 0.05 else RuntimeError("try again")
        return n

    @app.task(retry=SOON_OVER)
    async def doomed(ctx: Context, n: int = 0, failing: float = 0.7) -> int:
        rng = await work(ctx, 0.05)
        if rng.random() < failing:
            raise RuntimeError("not this time either")
        return n

    @app.task(compensate="refund", retry=QUICK)
    async def charge(ctx: Context, order: str, cents: int) -> Any:
        await work(ctx, 0.1)

        async def gateway() -> Any:
            await asyncio.sleep(0.05)
            return sink.do(ctx, "charge", [order, cents])

        receipt = await ctx.effect("charge", gateway)
        await work(ctx, 0.2)
        return receipt

    @app.task(retry=QUICK)
    async def refund(ctx: Context, lost: LostAttempt) -> str:
        await work(ctx, 0.05)
        for name in sorted(lost.effects):
            key = f"{lost.key}/{name}".encode() if lost.key else None
            sink.do(ctx, f"undo {name}", lost.effects[name], key)
        return f"refunded {len(lost.effects)}"

    @app.task(retry=QUICK)
    async def step(ctx: Context, n: int = 0) -> int:
        await work(ctx, 0.1)
        return n

    @app.task(retry=QUICK)
    async def keyed(ctx: Context, key: str, amount: int) -> Any:
        await work(ctx, 0.1)
        return await ctx.effect("post", _doer(sink, ctx, "post", [key, amount]))

    @app.task(retry=QUICK)
    async def long(ctx: Context, steps: int = LONG_STEPS) -> int:
        done = ctx.last_checkpoint or 0
        while done < steps:
            await work(ctx, 0.5)
            done += 1
            ctx.progress(done / steps)
            await ctx.checkpoint(done)
        return int(done)

    @app.task(queue=LIMITED, retry=QUICK)
    async def limited(ctx: Context, n: int = 0) -> int:
        await work(ctx, 0.3)
        return n

    @app.task(compensate="refund", cancel="wins", retry=QUICK)
    async def race_wins(ctx: Context, n: int = 0) -> Any:
        await work(ctx, 0.3)
        return await ctx.effect("race", _doer(sink, ctx, "race", n))

    @app.task(cancel="loses", retry=QUICK)
    async def race_loses(ctx: Context, n: int = 0) -> int:
        await work(ctx, 0.3)
        return n

    own = world.scenario.app
    if own is not None:
        for name, task in own.tasks.items():
            app._tasks[name] = task  # noqa: SLF001 - a user's task replaces a model's of the same name
    app.check()
    return app


def _doer(sink: Sink, ctx: Context, name: str, value: Any) -> Callable[[], Any]:
    async def do() -> Any:
        await asyncio.sleep(0.02)
        return sink.do(ctx, name, value)

    return do


class Submitter:
    """Turns one arrival of a load into requests."""

    def __init__(self, world: World, load: Load, rng: random.Random) -> None:
        self._world = world
        self._load = load
        self._rng = rng
        self._count = 0
        self._options = {key: value for key, value in load.options.items() if key in _SPEC_FIELDS}
        self._regions = load.regions or tuple(world.regions)
        if load.model.startswith("task:"):
            self._submit: Callable[[str, int], None] = self._own
        else:
            try:
                self._submit = {
                    "noop": self._plain,
                    "flaky": self._plain,
                    "doomed": self._plain,
                    "long": self._plain,
                    "charge": self._charge,
                    "dag": self._dag,
                    "keyed": self._keyed,
                    "cancel_race": self._cancel_race,
                    "locks": self._locks,
                    "limited": self._limited,
                }[load.model]
            except KeyError:
                raise ConfigError(
                    f"load model {load.model!r} is none of {', '.join(MODELS)}, and not 'task:NAME'"
                ) from None

    def arrive(self, region: str = "") -> str:
        """One arrival: in that region, or somewhere. Returns where."""
        self._count += 1
        region = region or self._rng.choice(self._regions)
        self._submit(region, self._count)
        return region

    def _spec(self, name: str, *args: Any, **options: Any) -> TaskSpec:
        payload = encode_arguments(name, args, options.pop("kwargs", {}))
        given = {"id": self._rng.randbytes(16), **self._options, **options}
        deadline_in_ms = self._load.options.get("deadline_in_ms")
        if deadline_in_ms:
            given["deadline_ms"] = (EPOCH_US + self._world.kernel.now_us) // 1_000 + deadline_in_ms
        return TaskSpec(name=name, payload=payload, **given)

    def _send(self, region: str, *specs: TaskSpec) -> Operation:
        world, rng = self._world, self._rng
        submit = Submit(specs)
        operation = world.clients.submit(region, submit)
        again = world.chance(region, "duplicate_submits", rng)
        if again is not None:
            elsewhere = rng.random() < again.number("elsewhere")
            target = rng.choice(self._regions) if elsewhere else region
            world.kernel.after(rng.randint(0, 500_000), world.clients.submit, target, submit)
        storm = world.chance(region, "cancel_storm", rng)
        if storm is not None:
            self._cancel(rng.randint(0, round(storm.number("within_ms")) * 1_000), specs)
        return operation

    def _cancel(self, after_us: int, specs: tuple[TaskSpec, ...]) -> None:
        clients = self._world.clients
        target = self._rng.choice(tuple(self._world.regions))
        for spec in specs:
            if spec.id is not None:
                self._world.kernel.after(after_us, clients.call, "cancel", target, Cancel(spec.id), spec.id.hex())

    def _plain(self, region: str, n: int) -> None:
        self._send(region, self._spec(self._load.model, *([] if self._load.model == "long" else [n])))

    def _own(self, region: str, n: int) -> None:
        name = self._load.model.removeprefix("task:")
        args = [_filled(value, n) for value in self._load.args]
        kwargs = {key: _filled(value, n) for key, value in self._load.kwargs.items()}
        options = {key: _filled(value, n) for key, value in self._options.items()}
        if options.get("key"):
            options["id"] = None  # it follows from the key
        self._send(region, self._spec(name, *args, kwargs=kwargs, **options))

    def _charge(self, region: str, n: int) -> None:
        self._send(region, self._spec("charge", f"order-{n}", 100 + n))

    def _dag(self, region: str, n: int) -> None:
        first, second = self._spec("step", n), self._spec("step", n + 1)
        assert first.id is not None
        assert second.id is not None
        join = self._spec("step", n + 2, after=(first.id, second.id))
        assert join.id is not None
        last = self._spec("step", n + 3, after_settled=(join.id,))
        self._send(region, first, second, join, last)

    def _keyed(self, region: str, n: int) -> None:
        key = f"key-{self._rng.randrange(KEYS)}"
        differs = self._rng.random() < 0.1  # a different payload under the same key
        self._send(region, self._spec("keyed", key, n if differs else 0, key=key, id=None))

    def _locks(self, region: str, n: int) -> None:  # noqa: ARG002 - programs count themselves
        self._world.locks.arrive(region, self._rng)

    def _limited(self, region: str, n: int) -> None:
        """A task of the queue that is limited; now and then an operator changes the limit, anywhere."""
        self._send(region, self._spec("limited", n))
        if self._rng.random() < RELIMIT:
            to = LimitDeclaration(f"queue:{LIMITED}", concurrency=self._rng.randint(2, 6))
            self._world.clients.call("limit", self._rng.choice(self._regions), SetLimit(to))

    def _cancel_race(self, region: str, n: int) -> None:
        spec = self._spec("race_wins" if n % 2 else "race_loses", n)
        self._send(region, spec)
        self._cancel(self._rng.randint(0, 800_000), (spec,))


def _filled(value: Any, n: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(item, n) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(item, n) for item in value]
    return value.replace("{n}", str(n)) if isinstance(value, str) else value


MODELS: Final = ("noop", "flaky", "doomed", "charge", "dag", "keyed", "long", "cancel_race", "locks", "limited")
_SPEC_FIELDS: Final = frozenset(TaskSpec.__struct_fields__)
