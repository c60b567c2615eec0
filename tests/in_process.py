"""The digits scenario in this process: `tests.conftest.simulate` is for one of its own."""

from __future__ import annotations

import io

from rich.console import Console

from simulations.display.console import ConsoleReporter
from simulations.runner import run_scenario
from simulations.settings.scenario import load_scenario
from tests.conftest import TINY_FEDERATION


def simulate_here(**settings: object) -> str:
    """Run it, made tiny, one device after the other; what it told."""
    overrides = [f"{key}={value}" for key, value in {**TINY_FEDERATION, **settings}.items()]
    output = io.StringIO()
    with ConsoleReporter(Console(file=output)) as reporter:
        run_scenario(load_scenario("digits", overrides), reporter, num_workers=0)
    return output.getvalue()
