"""The in-process engine, with a toy ClientApp that fails, dies and sleeps on demand."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    ConfigRecordValues,
    Context,
    Message,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from common.messages import message_bytes
from simulations.engines.local import LocalGrid
from simulations.engines.terminated import Terminated
from tests.waiting import PATIENCE_SECONDS, wait_until

app = ClientApp()


@app.train()
def count(message: Message, context: Context) -> Message:
    """Counts its own calls in the node's state, and the message's weights up by the count."""
    calls = int(context.state.config_records.get("calls", ConfigRecord({"n": 0}))["n"]) + 1  # type: ignore[arg-type]
    context.state["calls"] = ConfigRecord({"n": calls})
    weights = message.content.array_records["weights"]["w"].numpy()
    generator = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    change = torch.randn(weights.shape, generator=generator).numpy() * calls
    facts: dict[str, ConfigRecordValues] = {
        "partition-id": int(context.node_config["partition-id"]),
        "num-partitions": int(context.node_config["num-partitions"]),
        "learning-rate": float(context.run_config["learning-rate"]),
        "calls": calls,
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
    }
    content = RecordDict(
        {
            "facts": ConfigRecord(facts),
            "weights": _weights(torch.from_numpy(weights + change)),
        }
    )
    return Message(content, reply_to=message)


@app.query("fail")
def fail(message: Message, context: Context) -> Message:
    """Raises on odd partitions, after it touched its state."""
    context.state["calls"] = ConfigRecord({"n": 1000})
    if int(context.node_config["partition-id"]) % 2:
        raise ValueError("no such image")
    return Message(RecordDict(), reply_to=message)


@app.query("die")
def die(message: Message, context: Context) -> Message:
    """Kills its own process on partition 1."""
    if context.node_config["partition-id"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return Message(RecordDict(), reply_to=message)


@app.query("sleep")
def sleep(message: Message, context: Context) -> Message:
    """Partition 0 answers last, partition 2 never in a test's time, and says that it sleeps."""
    partition_id = int(context.node_config["partition-id"])
    if partition_id == 2 and (told := message.content.config_records.get("told")):
        Path(str(told["file"])).touch()
    time.sleep({0: 0.3, 2: 3600.0}.get(partition_id, 0.0))
    return Message(RecordDict(), reply_to=message)


@app.query("leave")
def leave(message: Message, context: Context) -> Message:
    """Calls sys.exit, as a careless library might."""
    sys.exit(3)


@app.query("end")
def end(message: Message, context: Context) -> Message:
    """Is told to end while it works, as a run without worker processes is."""
    raise Terminated(143)


@app.query("nothing")
def nothing(message: Message, context: Context) -> Message:
    """Forgets its answer."""
    return None  # type: ignore[return-value]


def _weights(values: torch.Tensor) -> ArrayRecord:
    return ArrayRecord({"w": Array.from_torch_tensor(values)})


def _grid(num_workers: int, num_nodes: int = 4, **arguments: object) -> LocalGrid:
    return LocalGrid(
        client_app="tests.unit.test_engines_local:app",
        run_config={"learning-rate": 0.25},
        num_nodes=num_nodes,
        num_workers=num_workers,
        threads=3,
        **arguments,  # type: ignore[arg-type]
    )


def _messages(grid: LocalGrid, kind: str, content: RecordDict | None = None) -> list[Message]:
    return [Message(content or RecordDict(), node, kind) for node in grid.get_node_ids()]


def _train_content() -> RecordDict:
    return RecordDict({"weights": _weights(torch.zeros(5))})


def _fact(reply: Message, name: str) -> object:
    return reply.content.config_records["facts"][name]


@pytest.fixture(params=[0, 2], ids=["in-process", "2-workers"])
def grid(request: pytest.FixtureRequest) -> Iterator[LocalGrid]:
    with _grid(request.param) as grid:
        yield grid


@pytest.fixture
def workers() -> Iterator[LocalGrid]:
    with _grid(2) as grid:
        yield grid


def test_every_node_has_its_partition_the_run_config_and_its_threads(grid: LocalGrid) -> None:
    replies = grid.send_and_receive(_messages(grid, "train", _train_content()))
    assert [_fact(reply, "partition-id") for reply in replies] == [0, 1, 2, 3]
    assert {_fact(reply, "num-partitions") for reply in replies} == {4}
    assert {_fact(reply, "learning-rate") for reply in replies} == {0.25}
    assert {_fact(reply, "threads") for reply in replies} == {3}
    assert [reply.metadata.src_node_id for reply in replies] == list(grid.get_node_ids())


def test_messages_whose_size_was_asked_for_arrive(grid: LocalGrid) -> None:
    """As the server asks for all of them: also of those with arrays, as large models come."""
    messages = _messages(grid, "train", _train_content())
    sizes = [message_bytes(message) for message in messages]
    replies = grid.send_and_receive(messages)
    assert [_fact(reply, "partition-id") for reply in replies] == [0, 1, 2, 3]
    assert [message_bytes(message) for message in messages] == sizes


def test_state_survives_rounds_and_is_each_nodes_own(grid: LocalGrid) -> None:
    for _ in range(2):
        grid.send_and_receive(_messages(grid, "train", _train_content()))
    first = grid.get_node_ids()[0]
    (reply,) = grid.send_and_receive([Message(_train_content(), first, "train")])
    assert _fact(reply, "calls") == 3
    replies = grid.send_and_receive(_messages(grid, "train", _train_content()))
    assert [_fact(reply, "calls") for reply in replies] == [4, 3, 3, 3]


def test_same_numbers_in_this_process_and_in_workers() -> None:
    """Three rounds that feed back: w <- mean of replies; equal bytes whatever ran them."""
    results = []
    for num_workers in (0, 2, 1):
        with _grid(num_workers) as grid:
            weights = torch.zeros(5)
            for _ in range(3):
                content = RecordDict({"weights": _weights(weights)})
                replies = grid.send_and_receive(_messages(grid, "train", content))
                trained = [reply.content.array_records["weights"]["w"] for reply in replies]
                weights = torch.stack([torch.from_numpy(w.numpy().copy()) for w in trained]).mean(0)
        results.append(weights)
    assert results[0].abs().sum() > 0
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_an_exception_is_an_error_reply_and_leaves_the_state_alone(grid: LocalGrid) -> None:
    replies = grid.send_and_receive(_messages(grid, "query.fail"))
    assert [reply.has_error() for reply in replies] == [False, True, False, True]
    error = replies[1].error
    assert error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert error.reason is not None
    assert error.reason.startswith("ValueError: no such image (test_engines_local.py:")
    after = grid.send_and_receive(_messages(grid, "train", _train_content()))
    assert [_fact(reply, "calls") for reply in after] == [1001, 1, 1001, 1]


@pytest.mark.parametrize(("action", "said"), [("leave", "SystemExit"), ("nothing", "NoneType")])
def test_exits_and_missing_answers_are_error_replies(
    grid: LocalGrid, action: str, said: str
) -> None:
    replies = grid.send_and_receive(_messages(grid, f"query.{action}"))
    assert {reply.error.code for reply in replies} == {ErrorCode.CLIENT_APP_RAISED_EXCEPTION}
    assert all(said in str(reply.error.reason) for reply in replies)


def test_a_run_without_workers_that_is_told_to_end_ends() -> None:
    """In the middle of a device's task, whose failures are otherwise replies."""
    with _grid(0) as grid, pytest.raises(Terminated):
        grid.send_and_receive(_messages(grid, "query.end"))


def test_an_unknown_message_type_is_an_error_reply(grid: LocalGrid) -> None:
    (reply,) = grid.send_and_receive([Message(RecordDict(), 2, "query.unheard")])
    assert reply.has_error()


def test_replies_can_be_pulled_once(grid: LocalGrid) -> None:
    message_ids = grid.push_messages(_messages(grid, "train", _train_content()))
    assert len(set(message_ids)) == 4
    pulled: list[Message] = []

    def pull() -> bool:
        pulled.extend(grid.pull_messages(message_ids))
        return len(pulled) == 4

    wait_until(pull, "four replies", interval=0.01)
    assert {reply.metadata.reply_to_message_id for reply in pulled} == set(message_ids)
    assert grid.pull_messages(message_ids) == []


def test_in_order_replies_come_as_they_are_asked_for() -> None:
    """Partition 0 answers last, and first of all when it is asked for first."""
    with _grid(2, num_nodes=2, in_order=True) as grid:
        first, second = grid.push_messages(_messages(grid, "query.sleep"))
        for message_ids in ([first, second], [second, first]):
            (reply,) = grid.pull_messages(message_ids)
            assert reply.metadata.reply_to_message_id == message_ids[0]
        assert grid.pull_messages([first]) == []


def test_a_message_to_nobody_is_refused(grid: LocalGrid) -> None:
    with pytest.raises(ValueError, match="node 6: expected a node id from 2 to 5"):
        grid.push_messages([Message(RecordDict(), 6, "train")])


def test_the_sender_does_not_see_what_a_device_changes(grid: LocalGrid) -> None:
    """Messages share one RecordDict here; a device works on a copy, as on another machine."""
    content = _train_content()
    before = content.array_records["weights"]["w"].data
    grid.send_and_receive(_messages(grid, "train", content))
    assert content.array_records["weights"]["w"].data == before


def test_a_dead_worker_costs_one_message_and_is_replaced(workers: LocalGrid) -> None:
    replies = workers.send_and_receive(_messages(workers, "query.die"))
    assert [reply.has_error() for reply in replies] == [False, True, False, False]
    assert replies[1].error.code == ErrorCode.CLIENT_APP_CRASHED
    assert "SIGKILL" in str(replies[1].error.reason)
    after = workers.send_and_receive(_messages(workers, "train", _train_content()))
    assert len({_fact(reply, "pid") for reply in after}) == 2


def test_a_worker_that_dies_idle_is_replaced_unnoticed(workers: LocalGrid) -> None:
    replies = workers.send_and_receive(_messages(workers, "train", _train_content()))
    pids = {int(_fact(reply, "pid")) for reply in replies}  # type: ignore[call-overload]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    # Not there: reaped by the fork server, so that every one of its threads has let go of its pipe.
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "both are gone")
    again = workers.send_and_receive(_messages(workers, "train", _train_content()))
    assert [_fact(reply, "calls") for reply in again] == [2, 2, 2, 2]
    assert not pids & {_fact(reply, "pid") for reply in again}


def test_a_late_node_has_no_reply_and_its_worker_is_free_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Partition 2 sleeps, 0 a moment: three replies in order. Time stands still until they are
    there, and is over then."""
    now = [0.0]
    monkeypatch.setattr("simulations.engines.local.time", SimpleNamespace(monotonic=lambda: now[0]))

    def pass_time(num_replies: int, num_messages: int) -> None:
        now[0] = 1800.0 * (num_replies == 3)

    with _grid(2, on_reply=pass_time) as workers:
        replies = workers.send_and_receive(_messages(workers, "query.sleep"), timeout=1800.0)
        assert [reply.metadata.src_node_id - 2 for reply in replies] == [0, 1, 3]
        after = workers.send_and_receive(_messages(workers, "train", _train_content()))
        assert len(after) == 4


def test_no_reply_comes_after_the_timeout_in_this_process() -> None:
    """Partition 0 answers after 0.3 s > 0.1 s; the others are never started."""
    with _grid(0) as grid:
        assert grid.send_and_receive(_messages(grid, "query.sleep"), timeout=0.1) == []


def test_in_process_messages_do_not_change_this_processs_threads() -> None:
    before = torch.get_num_threads()
    assert before != 3
    with _grid(0) as grid:
        grid.send_and_receive(_messages(grid, "train", _train_content()))
    assert torch.get_num_threads() == before


def test_progress_is_told_for_every_reply() -> None:
    told: list[tuple[int, int]] = []
    with _grid(0, on_reply=lambda done, total: told.append((done, total))) as grid:
        grid.send_and_receive(_messages(grid, "query.fail"))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with _grid(1) as grid:
        (reply,) = grid.send_and_receive([Message(_train_content(), 2, "train")])
        assert len(list(tmp_path.glob("fedquarc-states-*/2.state"))) == 1
    assert not list(tmp_path.glob("fedquarc-states-*"))
    assert not _is_running(int(_fact(reply, "pid")))  # type: ignore[call-overload]


def test_states_of_another_run_are_left_alone(tmp_path: Path) -> None:
    """A run that is refused, as another goes on in its folder, has trained nothing there."""
    kept = tmp_path / "states" / "2.state"
    with _grid(0, num_nodes=1, state_folder=kept.parent) as first:
        first.send_and_receive([Message(_train_content(), 2, "train")])
        content = kept.read_bytes()
        with _grid(0, num_nodes=1, state_folder=kept.parent) as second:
            second.send_and_receive(_messages(second, "query.sleep"))
        assert kept.read_bytes() == content
    assert not kept.parent.exists()


def test_a_missing_client_app_is_an_error_at_once() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        LocalGrid(client_app="no_such_module:app", run_config={}, num_nodes=1, num_workers=1)
    with pytest.raises(TypeError, match="no ClientApp"):
        LocalGrid(client_app="os:path", run_config={}, num_nodes=1, num_workers=1)


PARENT = """
import sys
from flwr.app import ConfigRecord, Message, RecordDict
from tests.unit.test_engines_local import _fact, _grid, _messages, _train_content

if __name__ == "__main__":
    with _grid(2) as grid:
        replies = grid.send_and_receive(_messages(grid, "train", _train_content()))
        print(*{_fact(reply, "pid") for reply in replies}, flush=True)
        content = RecordDict({"told": ConfigRecord({"file": sys.argv[1]})})
        grid.send_and_receive([Message(content, 4, "query.sleep")])
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_workers_do_not_outlive_their_parent(tmp_path: Path, how: signal.Signals) -> None:
    """Busy workers too: one is in the middle of its sleep."""
    asleep = tmp_path / "asleep"
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen(
        [sys.executable, str(script), str(asleep)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=root,
        start_new_session=True,
        # A job in the background ignores Ctrl-C, and so do its children: a terminal's do not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    wait_until(asleep.exists, "a worker sleeps")
    if how is signal.SIGINT:
        os.killpg(parent.pid, how)  # what a terminal does: everyone in the group gets it
    else:
        parent.kill()
    _, errors = parent.communicate(timeout=PATIENCE_SECONDS)
    wait_until(lambda: not any(_is_running(pid) for pid in pids), "no worker is left")
    if how is signal.SIGINT:
        assert errors.count("KeyboardInterrupt") == 1  # the parent's own, none of a worker's
        assert not list(tmp_path.glob("fedquarc-states-*"))


def _is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
