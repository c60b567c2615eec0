"""Tests of common.arguments: what ends a command, and arguments that are refused."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.arguments import named_path, run_command
from tests.conftest import ROOT


@pytest.mark.parametrize(
    "program",
    [
        "from simulations.cli import main; sys.exit(main(['list']))",
        "from common.arguments import run_command\n"
        "sys.exit(run_command(SimpleNamespace(command=lambda _: print('a line'))))",
    ],
)
def test_a_reader_that_has_enough_is_no_error(program: str) -> None:
    """As with ``| head -1``."""
    reader, writer = os.pipe()
    os.close(reader)
    program = f"import sys\nfrom types import SimpleNamespace\n{program}"
    done = subprocess.run(
        [sys.executable, "-u", "-c", program],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_pipe_that_breaks_elsewhere_is_one() -> None:
    def command(_: argparse.Namespace) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_command(argparse.Namespace(command=command))


def test_an_empty_path_is_not_the_current_one() -> None:
    """An empty DATA= in a service's environment file."""
    assert named_path("images") == Path("images")
    with pytest.raises(argparse.ArgumentTypeError, match="expected a path, not ''"):
        named_path("")
