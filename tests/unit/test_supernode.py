"""What a SuperNode waits through: errors of the connection, a ClientApp that starts slowly."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta

import httpx
import pytest
from flwr.app import Context, RecordDict
from flwr.common.constant import SubStatus
from flwr.supercore.constant import TaskType
from flwr.supercore.corestate import in_memory_corestate
from flwr.supercore.date import now
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run

from client.supernode import (
    KEPT_RUNS,
    START_SECONDS,
    PatientNodeState,
    patient_retry_invoker,
)
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), False),
        (
            httpx.ConnectError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred (_ssl.c:1006)"),
            False,
        ),
        (httpx.ConnectTimeout("_ssl.c:989: The handshake operation timed out"), False),
        (httpx.ReadError("[Errno 104] Connection reset by peer"), False),
        (
            httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer"),
            True,
        ),
        (httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number"), True),
    ],
)
def test_only_a_wrong_peer_ends_the_supernode(error: Exception, ends: bool) -> None:
    gives_up = patient_retry_invoker().should_giveup
    assert gives_up is not None
    assert gives_up(error) is ends


@pytest.mark.parametrize(("seconds", "is_waited_for"), [(-5, True), (5, False)])
def test_a_clientapp_has_time_to_start(
    seconds: float, is_waited_for: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shortly before START_SECONDS its process is still believed in; later the task is another's.

    A second process that asks for the task gets it only then.
    """
    state = PatientNodeState(ObjectStoreFactory().store())
    task_id = state.create_task(TaskType.CLIENT_APP, run_id=1, fab_hash="hash")
    assert task_id is not None
    token = state.claim_task(task_id)
    assert token is not None

    def later() -> datetime:
        return now() + timedelta(seconds=START_SECONDS + seconds)

    monkeypatch.setattr(in_memory_corestate, "now", later)
    assert (state.get_task_by_token(token) is not None) is is_waited_for
    assert (state.claim_task(task_id) is None) is is_waited_for


def test_tasks_that_are_done_are_forgotten() -> None:
    """Two messages are answered, one of them with a failure; of two more the first one begins."""
    state = PatientNodeState(ObjectStoreFactory().store())
    for outcome in (SubStatus.COMPLETED, SubStatus.FAILED):
        task_id = state.create_task(TaskType.CLIENT_APP, run_id=1, fab_hash="hash")
        assert task_id is not None
        assert state.claim_task(task_id) is not None
        assert state.activate_task(task_id)
        assert [task.task_id for task in state.get_tasks()] == [task_id]
        assert state.finish_task(task_id, outcome, "")
    task_id, waiting_id = (
        state.create_task(TaskType.CLIENT_APP, run_id=1, fab_hash="hash") for _ in range(2)
    )
    assert task_id is not None
    assert state.claim_task(task_id) is not None
    assert {task.task_id for task in state.get_tasks()} == {task_id, waiting_id}


def test_what_a_device_remembers_of_old_runs_is_forgotten() -> None:
    """Six runs, each in a series of its own, the second one in use again after the fifth."""
    state = PatientNodeState(ObjectStoreFactory().store())
    for run_id in (1, 2, 3, 4, 5, 2, 6):
        context = Context(
            run_id=run_id, node_id=7, node_config={}, state=RecordDict(), run_config={}
        )
        state.set_run_series_context(100 + run_id, context)
        state.store_run(Run.create_empty(run_id))
    assert KEPT_RUNS == 4
    for run_id, is_kept in enumerate([False, True, False, True, True, True], start=1):
        assert (state.get_run_series_context(100 + run_id) is not None) is is_kept
        assert (state.get_run(run_id) is not None) is is_kept


@pytest.mark.parametrize("ends", ["return", "raise OSError('no memory')"])
def test_a_supernode_that_flower_gave_up_ends(ends: str) -> None:
    """A thread of Flower's, its server for ClientApps, would keep the process for ten minutes."""
    program = f"""
import threading, time
from client import supernode
def gives_up():
    threading.Thread(target=time.sleep, args=(600,)).start()
    {ends}
supernode.flower_supernode = gives_up
supernode.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 1
    assert ("no memory" in done.stderr) == ("no memory" in ends)


def test_a_supernode_ends_without_flowers_superexec() -> None:
    """A program that ends at once in place of flower-superexec, started as Flower starts it."""
    program = """
import sys, time
from flwr.supernode import start_client_internal
from client import supernode
supernode.ENDING_SECONDS = 0
def works():
    start_client_internal.subprocess.Popen([sys.executable, "-c", "pass"])
    time.sleep(600)
supernode.flower_supernode = works
supernode.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 1
    assert f"{sys.executable} has ended" in done.stderr


@pytest.mark.parametrize("ends", ["return", "flwr_exit(305)"])
def test_a_supernode_takes_flowers_superexec_along(ends: str) -> None:
    """Another process has its output, too: nobody hears of the end of one before that of both."""
    program = f"""
import sys
from flwr.supercore.exit import flwr_exit
from flwr.supernode import start_client_internal
from client import supernode
def gives_up():
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    start_client_internal.subprocess.Popen(sleeping)
    {ends}
supernode.flower_supernode = gives_up
supernode.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 1
