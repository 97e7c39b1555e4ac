from __future__ import annotations

import functools
import subprocess
import sys
from datetime import timedelta

import pytest

from crdtsync import App, PermanentError, Retry
from crdtsync.app import task_name_of
from crdtsync.commands import TaskDeclaration
from crdtsync.errors import ConfigError


def test_a_bare_decorator_declares_the_defaults() -> None:
    app = App("shop")

    @app.task
    async def ship(_ctx, order: str) -> None: ...

    assert app.declarations() == (TaskDeclaration(name="ship"),)
    assert app.tasks["ship"].handler is ship
    assert app["ship"].is_async
    assert "ship" in app
    assert [task.name for task in app] == ["ship"]


def test_options_become_a_declaration() -> None:
    app = App("shop")

    @app.task
    def refund(_ctx, charged) -> None: ...

    @app.task(
        name="charge.card",
        queue="payments",
        priority=9,
        retry=Retry(
            attempts=5, base=0.1, factor=1.5, cap=timedelta(minutes=2), lost=2, non_retryable=(KeyError, "x.Y")
        ),
        partition="wait",
        cancel="wins",
        compensate=refund,
        timeout=0.5,
        unserved_after=5,
        window=timedelta(hours=1),
    )
    def charge(_ctx) -> None: ...

    app.check()
    assert not app["charge.card"].is_async
    assert task_name_of(charge) == "charge.card"
    assert app.declarations()[1] == TaskDeclaration(
        name="charge.card",
        queue="payments",
        priority=9,
        partition="wait",
        attempts=5,
        lost_max=2,
        backoff_ms_base=100,
        backoff_ms_max=120_000,
        backoff_factor_permille=1_500,
        cancel="wins",
        compensate="refund",
        timeout_ms=500,
        unserved_after_ms=5_000,
        window_ms=3_600_000,
        non_retryable=("builtins.KeyError", "x.Y"),
    )


def test_a_decorated_function_is_still_itself() -> None:
    app = App("shop")

    @app.task(queue="q")
    def double(_ctx, n: int) -> int:
        return 2 * n

    assert double(None, 4) == 8


@pytest.mark.parametrize(
    "options, message",
    [
        ({"partition": "sometimes"}, "partition='sometimes': expected one of 'wait', 'takeover', 'quorum'"),
        ({"cancel": "maybe"}, "cancel='maybe'"),
        ({"priority": 10}, "priority=10: expected a number from 0 to 9"),
        ({"priority": True}, "priority=True"),
        ({"retry": 5}, r"expected Retry\(...\)"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": "1s"}, "timeout"),
        ({"name": ""}, "task name ''"),
        ({"name": "a\n"}, "printable"),
        ({"name": "x" * 201}, "1 to 200 characters"),
        ({"queue": " q"}, "without blanks"),
        ({"compensate": print}, "is not a task"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_where_it_is_written(options: dict, message: str) -> None:
    app = App("shop")
    with pytest.raises(ConfigError, match=message):

        @app.task(**options)
        def charge(_ctx) -> None: ...

    assert not app.tasks


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"attempts": 0}, "attempts=0"),
        ({"lost": -1}, "lost=-1"),
        ({"factor": 0.5}, "factor=0.5"),
        ({"base": 10, "cap": 5}, "below base"),
        ({"base": float("nan")}, "base"),
        ({"cap": 10**12}, "cap"),
        ({"non_retryable": "ValueError"}, "write a tuple"),
        ({"non_retryable": (3,)}, "neither an exception class nor a name"),
        ({"non_retryable": (int,)}, "neither an exception class nor a name"),
    ],
)
def test_a_retry_policy_that_makes_no_sense_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Retry(**arguments)


def test_two_tasks_of_one_name_are_refused() -> None:
    app = App("shop")

    @app.task
    def charge(_ctx) -> None: ...

    with pytest.raises(ConfigError, match="'charge' is declared twice in app 'shop'"):
        app.task(charge)


def test_a_handler_needs_a_context() -> None:
    app = App("shop")
    for handler in (lambda: None, lambda *, _ctx: None):
        with pytest.raises(ConfigError, match="context"):
            app.task(name="x")(handler)

    def generator(_ctx):
        yield 1

    with pytest.raises(ConfigError, match="generator"):
        app.task(generator)
    with pytest.raises(ConfigError, match="give a name"):
        app.task(lambda _ctx: None)
    with pytest.raises(ConfigError, match="options are given by name"):
        app.task("payments")  # type: ignore[call-overload]
    app.task(name="many")(lambda *_args: None)


def test_callables_with_an_async_call_are_async() -> None:
    app = App("shop")

    class Charge:
        async def __call__(self, ctx) -> None: ...

    async def ship(_ctx, where: str) -> None: ...

    app.task(name="charge")(Charge())
    app.task(name="ship")(functools.partial(ship, where="here"))
    assert [task.is_async for task in app] == [True, True]


def test_a_compensation_must_be_a_task_that_takes_the_attempt() -> None:
    app = App("shop")

    @app.task(compensate="refund")
    def charge(_ctx) -> None: ...

    with pytest.raises(ConfigError, match="compensate='refund' is not a task of app 'shop'; it has charge"):
        app.check()

    @app.task
    def refund(_ctx) -> None: ...

    with pytest.raises(ConfigError, match="must take two arguments"):
        app.check()


def test_importing_the_package_costs_nothing_and_lists_its_names() -> None:
    code = "import sys, crdtsync; print('msgspec' in sys.modules, 'crdtsync.app' in sys.modules); crdtsync.App"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]
    import crdtsync

    for name in crdtsync.__all__:
        assert getattr(crdtsync, name) is not None
    with pytest.raises(AttributeError, match="Nothing"):
        _ = crdtsync.Nothing


def test_a_permanent_error_is_an_ordinary_exception() -> None:
    assert issubclass(PermanentError, Exception)
