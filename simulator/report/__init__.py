"""What a run looked like: prose for a terminal, and one page for a browser.

    watch = report.Watch()
    world = World(scenario, seed=7, checkers=(*all_checkers(), watch))
    result = world.run()
    Path("out.html").write_text(report.html(world, result))
    print(report.text(world, result))

Both read what the world recorded (`keep=True`) and judge nothing.
"""

from __future__ import annotations

from simulator.report.page import html
from simulator.report.prose import text
from simulator.report.story import Story, Watch

__all__ = ["Story", "Watch", "html", "text"]
