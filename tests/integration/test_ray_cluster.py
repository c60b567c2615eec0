"""Flower's Simulation Runtime on a Ray cluster of two nodes: the same model to the last bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import simulate

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
cluster_utils = pytest.importorskip("ray.cluster_utils", reason="the cluster is Ray's")


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Two nodes on this machine, raylets of their own, with one CPU each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.mark.timeout(600)
def test_a_cluster_gives_the_same_model(address: str, tmp_path: Path) -> None:
    """Four devices, one CPU each: Flower starts an actor for every CPU, so that both nodes work.

    Slow: two raylets, Flower's servers and every actor start for it.
    """
    cluster = simulate(tmp_path / "cluster", "--engine", "ray")
    assert cluster.exit_code == 0, cluster.errors
    assert f"on the Ray cluster at {address}" in cluster.output
    local = simulate(tmp_path / "local", "--workers", "2")
    assert local.exit_code == 0, local.errors
    for name in ("teacher.safetensors", "last.safetensors"):
        digests = {
            hashlib.sha256((run.folder / name).read_bytes()).hexdigest() for run in (cluster, local)
        }
        assert len(digests) == 1, name
