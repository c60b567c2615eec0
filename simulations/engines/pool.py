"""Where messages are run: in worker processes, or one after the other in this process.

Worker processes come from a fork server that has imported torch and the ClientApp once and holds
nothing else: a worker, or the replacement of a dead one, is there within milliseconds and shares
those pages, while it inherits none of the server's data.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import time
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Protocol

from flwr.app import Message
from flwr.common.constant import ErrorCode

from simulations.engines.worker import READY, Fleet, Outcome, error_reply, run_message, serve

STOP_SECONDS = 5.0
"""How long a worker that was told to stop may take before it is killed."""


class Pool(Protocol):
    """Runs messages."""

    def submit(self, message: Message) -> None:
        """Have a message run as soon as there is room for it."""

    def collect(self, timeout: float | None) -> list[Outcome]:
        """Wait, at most ``timeout`` seconds, until at least one message is done.

        Empty when there is nothing to wait for or the time is over.
        """

    def cancel(self, message_ids: Collection[str]) -> None:
        """Forget messages, those that are being run included."""

    def close(self) -> None:
        """Stop what is running and give everything back."""


class InProcessPool:
    """Runs one message at a time in this process."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._app = fleet.load()
        self._waiting: list[Message] = []

    def submit(self, message: Message) -> None:
        """Queue a message; `collect` runs it."""
        self._waiting.append(message)

    def collect(self, timeout: float | None) -> list[Outcome]:
        """Run the next message, however long it takes."""
        if not self._waiting:
            return []
        import torch

        # A copy, as between processes: neither side may see what the other changes later.
        request = _pickled(self._waiting.pop(0))
        threads = torch.get_num_threads()
        torch.set_num_threads(self._fleet.threads)
        try:
            return [pickle.loads(run_message(self._app, self._fleet, request))]
        finally:
            torch.set_num_threads(threads)

    def cancel(self, message_ids: Collection[str]) -> None:
        """Forget queued messages."""
        self._waiting = [m for m in self._waiting if m.metadata.message_id not in message_ids]

    def close(self) -> None:
        """Forget every message."""
        self._waiting.clear()


@dataclass(kw_only=True, eq=False)
class Worker:
    """One worker process and the message that it is busy with."""

    process: ForkServerProcess
    requests: connection.Connection
    message: Message | None = None


class WorkerPool:
    """Runs messages in ``num_workers`` processes, which start while the caller goes on.

    Torch takes seconds to import: the fork server does it while the caller, who need not have
    imported it before, does the same.
    """

    def __init__(self, fleet: Fleet, num_workers: int) -> None:
        self._fleet = fleet
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([serve.__module__, fleet.client_app.split(":")[0]])
        self._waiting: list[Message] = []
        self._workers: list[Worker] = []
        self._last_worker: dict[int, Worker] = {}
        self._starter = ThreadPoolExecutor(max_workers=1, initializer=_keep_ctrl_c_to_ourselves)
        self._starting: Future[list[Worker]] | None = self._starter.submit(self._start, num_workers)
        try:
            fleet.load()  # what is wrong with the ClientApp shows here, with its traceback
        except BaseException:
            self.close()
            raise

    def submit(self, message: Message) -> None:
        """Queue a message for the next worker that is free."""
        self._waiting.append(message)

    def collect(self, timeout: float | None) -> list[Outcome]:
        """Feed the workers and wait until at least one message is done or the time is over.

        Raises:
            RuntimeError: if worker processes cannot be started.
        """
        if self._starting is not None:
            self._workers = self._starting.result()
            self._starting = None
        self._feed()
        busy = {worker.requests: worker for worker in self._workers if worker.message is not None}
        if not busy:
            return []
        outcomes = []
        for ready in connection.wait(list(busy), timeout):
            worker = busy[ready]  # type: ignore[index]
            message = worker.message
            assert message is not None
            worker.message = None
            try:
                outcomes.append(pickle.loads(worker.requests.recv_bytes()))
            except (EOFError, OSError):
                reason = f"the worker process died ({_exit_reason(worker.process)})"
                reply = error_reply(message, ErrorCode.CLIENT_APP_CRASHED, reason)
                outcomes.append(Outcome(reply=reply))
                self._replace(worker)
        self._feed()
        return outcomes

    def cancel(self, message_ids: Collection[str]) -> None:
        """Forget messages; workers that are busy with one are replaced."""
        self._waiting = [m for m in self._waiting if m.metadata.message_id not in message_ids]
        for worker in list(self._workers):
            if worker.message is not None and worker.message.metadata.message_id in message_ids:
                self._replace(worker)

    def close(self) -> None:
        """End all worker processes, busy or not."""
        self._waiting.clear()
        self._starter.shutdown(wait=True, cancel_futures=True)
        if self._starting is not None and not self._starting.cancelled():
            self._workers = [] if self._starting.exception() else self._starting.result()
        self._starting = None
        _stop(self._workers)
        self._workers = []

    def _start(self, num_workers: int) -> list[Worker]:
        workers = []
        for _ in range(num_workers):
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=serve, args=(self._fleet, theirs), daemon=True, name="device"
            )
            process.start()
            theirs.close()  # the worker has the only other end: its death closes the pipe
            workers.append(Worker(process=process, requests=ours))
        for worker in workers:
            try:
                assert worker.requests.recv_bytes() == READY
            except (EOFError, OSError) as error:
                reason = _exit_reason(worker.process)
                _stop(workers)
                raise RuntimeError(f"a worker process died while it started ({reason})") from error
        return workers

    def _replace(self, worker: Worker) -> None:
        _stop([worker])
        index = self._workers.index(worker)
        self._workers[index : index + 1] = self._starter.submit(self._start, 1).result()

    def _feed(self) -> None:
        """Give every idle worker a message."""
        for worker in [worker for worker in self._workers if worker.message is None]:
            if not self._waiting:
                return
            self._hand_over(worker, self._next_message(worker))

    def _next_message(self, worker: Worker) -> Message:
        """The oldest message for a node that no other worker ran last, else the oldest.

        What a ClientApp keeps in its process for a device is then seldom kept twice.
        """
        for index, message in enumerate(self._waiting):
            last = self._last_worker.get(message.metadata.dst_node_id, worker)
            if last is worker or last not in self._workers:
                return self._waiting.pop(index)
        return self._waiting.pop(0)

    def _hand_over(self, worker: Worker, message: Message) -> None:
        # Pickled only now: a thousand waiting messages may share one model.
        request = _pickled(message)
        while True:
            try:
                worker.requests.send_bytes(request)
                break
            except OSError:  # it died while it was idle
                index = self._workers.index(worker)
                self._replace(worker)
                worker = self._workers[index]
        worker.message = message
        self._last_worker[message.metadata.dst_node_id] = worker


def _pickled(message: Message) -> bytes:
    """A message as bytes.

    An array whose size was asked for (`common.messages.message_bytes`) keeps slices of itself,
    which can't be pickled: Flower makes them anew.
    """
    for record in message.content.array_records.values():
        for array in record.values():
            vars(array).pop("_chunks", None)
    return pickle.dumps(message)


def _keep_ctrl_c_to_ourselves() -> None:
    """Ctrl-C goes to every process of a terminal, and is for the main thread of this one alone.

    Children inherit the signal mask of the thread that starts them. Starting the resource tracker,
    which the fork server needs, would undo the mask: it has to be there first.
    """
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _stop(workers: list[Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
        worker.requests.close()
    deadline = time.monotonic() + STOP_SECONDS
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _exit_reason(process: ForkServerProcess) -> str:
    process.join(STOP_SECONDS)
    code = process.exitcode
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
