"""Flower's SuperNode, made patient: ``python -m client.supernode``.

Where a proxy or a port forwarding (Docker's, ssh's) takes connections for a server that is away, a
TLS handshake ends in the middle, or in no time. Flower 1.41 takes that for a wrong certificate: the
SuperNode gives up for good, and its process stays there, idle. Here it is an outage, as a refused
connection is: it tries again until the SuperLink answers.

Flower also gives a ClientApp's process 30 seconds from its start to its first word, and then starts
another one beside it. On a device that takes longer, because it is small or busy, these processes
slow each other down until no one ever gets there. Here it has `START_SECONDS`.

Nor does Flower's SuperNode forget what a device keeps of runs that are over, a model's size or more
of each. Here it keeps that of `KEPT_RUNS`. Every message leaves a task behind as well, and once a
second it looks through all of them. Here those that are done are forgotten.

And where Flower meets an error that it does not try again, a SuperLink's HTTP 500 for example, its
SuperNode does nothing any more, but its process stays. Here it ends, so that a service starts it
again. So it does where flower-superexec, which starts the ClientApps, has ended alone. And it takes
flower-superexec along: that goes on for as long as there is a process with the SuperNode's id,
which is until someone has taken note of its end. Who first reads what it says to the end, as
Python's subprocess.run does, would wait for ever: they write to the same pipe.

The arguments are flower-supernode's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace

import httpx
from flwr.app import Context
from flwr.common.constant import Status
from flwr.supercore.date import now
from flwr.supercore.exit.exit_handler import add_exit_handler, trigger_exit_handlers
from flwr.supercore.retry import RetryInvoker, make_simple_http_retry_invoker
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.cli import flower_supernode
from flwr.supernode.nodestate import nodestate_factory
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

INTERRUPTIONS = ("eof occurred", "timed out", "connection reset")
"""In what OpenSSL says of a handshake that was cut off."""

START_SECONDS = 300
"""From the start of a ClientApp's process until it has to be heard of."""

ENDING_SECONDS = 30
"""A SuperNode's, to end by itself: a service ends all its processes at once."""

KEPT_RUNS = 4
"""Runs that a device takes part in by turns; one beyond finds it as if it were started anew."""


class PatientNodeState(InMemoryNodeState):
    """Flower's, but a ClientApp has more time to start, and what is over is forgotten."""

    def set_run_series_context(self, series_id: int, context: Context) -> None:
        """Keep what a device remembers of a run, the one that it works for now."""
        super().set_run_series_context(series_id, context)
        with self.lock_run_series_context_store, self.lock_run_store:
            contexts = self.run_series_context_store
            contexts[series_id] = contexts.pop(series_id)  # the newest comes last
            for oldest in list(contexts)[:-KEPT_RUNS]:
                # Without the run itself it is told of again, should it go on.
                self.run_store.pop(contexts.pop(oldest).run_id, None)

    def claim_task(self, task_id: int) -> str | None:
        """Claim a pending task for a process that is about to start; forget those that are done."""
        with self.lock_task_store:
            tasks = self.task_store
            done = [i for i, task in tasks.items() if task.status.status == Status.FINISHED]
            for done_id in done:
                del tasks[done_id]
        token = super().claim_task(task_id)
        if token is not None:
            until = now() + timedelta(seconds=START_SECONDS)
            with self.lock_task_store:
                self.task_token_store[task_id].active_until = until
        return token


def patient_retry_invoker() -> RetryInvoker:
    """Flower's, but a TLS handshake that was interrupted is tried again."""
    invoker = make_simple_http_retry_invoker()
    gives_up = invoker.should_giveup
    assert gives_up is not None
    invoker.should_giveup = lambda error: not is_interruption(error) and gives_up(error)
    return invoker


def is_interruption(error: Exception) -> bool:
    """Whether a connection was cut off, in the TLS handshake or later."""
    text = str(error).lower()
    return isinstance(error, httpx.TransportError) and any(term in text for term in INTERRUPTIONS)


def start_superexec(command: Sequence[str]) -> None:
    """Start a process that ends with this one, and without which this one ends, with 1."""
    process = subprocess.Popen(command)
    add_exit_handler(process.terminate)

    def follow() -> None:
        process.wait()
        time.sleep(ENDING_SECONDS)
        print(f"{command[0]} has ended: so does the SuperNode", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def main() -> None:
    """Become the SuperNode; the process ends with it, with 1 where Flower did not end it itself."""
    fleet_http_connection.make_simple_http_retry_invoker = patient_retry_invoker
    nodestate_factory.InMemoryNodeState = PatientNodeState  # type: ignore[misc]
    start_client_internal.subprocess = SimpleNamespace(Popen=start_superexec)  # type: ignore[assignment]
    try:
        flower_supernode()
    except Exception:
        traceback.print_exc()
    trigger_exit_handlers(run_before_force_exit=False)
    sys.stdout.flush()
    os._exit(1)  # threads of Flower's would wait for ever


if __name__ == "__main__":
    main()
