"""Tests of simulations.bench: what is timed is timed in turn, and peers compute the same."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.quantization import fake_quantize
from common.quantized_layers import FakeQuantizer
from simulations.bench import deltas, noise, peers, timing
from simulations.bench.packing import numpy_pack, numpy_unpack
from simulations.bench.report import Report, format_figure
from simulations.bench.rows import Figure, Row, Target
from simulations.bench.sizes import QUICK
from simulations.bench.textbook_lsq import TextbookLSQ
from simulations.bench.timing import Timer
from simulations.cli import main


class FakeClock:
    """Time that only passes in actions."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def action(self, name: str, seconds: float) -> timing.Action:
        def act() -> None:
            self.calls.append(name)
            self.now += seconds

        return act


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr("simulations.bench.timing.time.perf_counter", lambda: fake.now)
    return fake


class TestTimer:
    def test_pairs_take_turns(self, clock: FakeClock) -> None:
        """3 s against 2 s: 1.5 in every pair; both are warmed up, every other pair is reversed."""
        figure = Timer(repeats=3, least_seconds=0.0).ratio(
            clock.action("a", 3.0), clock.action("b", 2.0)
        )
        assert figure == Figure(median=1.5, low=1.5, high=1.5, count=3)
        assert "".join(clock.calls) == "ab" + "ab" + "ba" + "ab"

    def test_pairs_go_on_for_the_least_time(self, clock: FakeClock) -> None:
        """A pair takes 5 s: the warm-up before does not count, after three pairs 15 s are over."""
        timer = Timer(repeats=1, least_seconds=0.0, least_seconds_of_pairs=12.0)
        figure = timer.ratio(clock.action("a", 3.0), clock.action("b", 2.0))
        assert figure == Figure(median=1.5, low=1.5, high=1.5, count=3)
        assert "".join(clock.calls) == "ab" + "ab" + "ba" + "ab"

    def test_each_may_settle_before_it_is_timed(self, clock: FakeClock) -> None:
        """3 s against 2 s, but 10 s more where the other one came before: not in what is timed."""

        def action(name: str, seconds: float) -> timing.Action:
            def act() -> None:
                clock.now += seconds + (10.0 if clock.calls[-1:] != [name] else 0.0)
                clock.calls.append(name)

            return act

        timer = Timer(repeats=2, least_seconds=0.0)
        figure = timer.ratio(action("a", 3.0), action("b", 2.0), settles=True)
        assert figure == Figure(median=1.5, low=1.5, high=1.5, count=2)
        assert "".join(clock.calls) == "ab" + "aabb" + "bbaa"

    def test_what_is_short_is_done_several_times(self, clock: FakeClock) -> None:
        """0.25 s within at least 1 s: four times a measurement, after one to warm up and one that
        finds that out; four images in 0.25 s are 16 a second."""
        rate = Timer(repeats=2, least_seconds=1.0).rate(clock.action("a", 0.25), 4)
        assert rate.median == 16
        assert len(clock.calls) == 2 + 2 * 4


class TestRows:
    def test_quartiles_lie_between_values(self) -> None:
        """Of 1, 2, 3, 4 at the positions 0.75, 1.5 and 2.25 from the first."""
        figure = Figure.of([4.0, 1.0, 3.0, 2.0])
        assert (figure.low, figure.median, figure.high) == (1.75, 2.5, 3.25)
        assert format_figure(figure) == "2.5 (1.75-3.25)"

    def test_a_target_is_met_at_its_bound(self) -> None:
        one = Figure.of([1.0])
        assert Target(bound=1.0).is_met(one)
        assert Target(bound=1.0, at_least=True).is_met(one)
        assert not Target(bound=0.9).is_met(one)
        assert not Target(bound=1.1, at_least=True).is_met(one)

    def test_what_was_not_measured_meets_nothing(self) -> None:
        row = Row(group="g", subject="s", unit="u", figure=None, target=Target(bound=1.0))
        assert row.is_met is None


class TestReport:
    ROWS = (
        Row(
            group="Steps",
            subject="model",
            against="peer",
            unit="x the time",
            figure=Figure.of([0.5]),
            target=Target(bound=1.0),
        ),
        Row(group="Steps", subject="model", against="x", unit="u", figure=None, note="missing"),
        Row(group="Data", subject="images", unit="images/s", figure=Figure.of([12345.6])),
    )

    @pytest.fixture
    def report(self) -> Report:
        return Report(command="python -m x", threads=1, load=0.0, seconds=60.0, rows=self.ROWS)

    def test_markdown_holds_a_table_for_every_group(self, report: Report) -> None:
        text = report.as_markdown()
        assert text.index("## Steps") < text.index("## Data")
        assert "| model | peer | 0.5 x the time | <= 1 | yes |  |" in text
        assert "| model | x | not measured |  |  | missing |" in text
        assert "| images |  | 12,346 images/s |  |  |  |" in text

    def test_json_holds_the_figures(self, report: Report, tmp_path: Path) -> None:
        report.write(tmp_path)
        read = json.loads((tmp_path / "bench.json").read_text())
        assert [row["is_met"] for row in read["rows"]] == [True, None, None]
        assert read["rows"][0]["figure"]["median"] == 0.5
        assert {"torch", "numpy", "brevitas"} <= read["versions"].keys()

    def test_a_folder_that_cannot_be_is_refused_before_anything_runs(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        assert main(["bench", "--quick", "--out", str(tmp_path / "file")]) == 2


class TestPeers:
    def test_textbook_lsq_has_our_values_and_gradients(self) -> None:
        """The same sums in another order: equal but for rounding."""
        quantizer = FakeQuantizer(2, signed=True)
        with torch.no_grad():
            quantizer.step.fill_(0.4)
        textbook = TextbookLSQ(quantizer)
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(8, 4, 3, 3, generator=generator).requires_grad_()
        upstream = torch.randn(8, 4, 3, 3, generator=generator)
        (ours,) = fake_quantize([quantizer.operand(values, values.numel())])
        ours.backward(upstream)
        our_gradient, values.grad = values.grad, None
        theirs = textbook(values)
        theirs.backward(upstream)
        assert torch.equal(ours, theirs)
        assert our_gradient is not None
        torch.testing.assert_close(our_gradient, values.grad)
        torch.testing.assert_close(quantizer.step.grad, textbook.step.grad)

    @pytest.mark.parametrize(
        "name", ["textbook LSQ, default layout", "PyTorch learnable fake quantization"]
    )
    @pytest.mark.parametrize("bits", [(2, 32), (4, 4)])
    def test_peers_that_learn_steps_express_the_same_model(
        self, name: str, bits: tuple[int, int]
    ) -> None:
        """At the same steps they give the same logits, but for values that rounding tips over."""
        dataset = noise.images(16, 8)
        prepared = noise.quantized_model("resnet8", *bits, dataset).eval()
        peer = peers.PEERS[name](prepared).eval()
        inputs = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected, given = prepared(inputs), peer(inputs)
        assert torch.cosine_similarity(expected, given).min() > 0.999

    def test_a_missing_peer_is_named_with_its_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "brevitas.nn", None)
        with pytest.raises(UserError, match=r"brevitas.*fedquarc\[bench\]"):
            peers.brevitas(torch.nn.Identity())

    def test_torchao_does_not_pretend_to_quantize_inputs(self) -> None:
        pytest.importorskip("torchao")
        prepared = noise.quantized_model("resnet8", 4, 4, noise.images(16, 8))
        with pytest.raises(peers.NotExpressibleError, match="inputs"):
            peers.torchao(prepared)


class TestNumpyPacking:
    def test_the_documented_example(self) -> None:
        """5 | 2 << 3 | (6 & 0b11) << 6 = 5 + 16 + 128, and 6 >> 2."""
        codes = np.array([5, 2, 6], np.uint8)
        packed = numpy_pack(codes, 3)
        assert packed.tolist() == [149, 1]
        assert numpy_unpack(packed, 3, 3).tolist() == [5, 2, 6]


class TestDeltas:
    def test_every_encoding_is_of_a_round_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Or headers that are kept would serve. The one that is decoded, a warm-up, three more."""
        encode, rounds = deltas.encode_delta, []

        def encode_and_note(*arguments: Any) -> Any:
            rounds.append(arguments[-1].get("round"))
            return encode(*arguments)

        monkeypatch.setattr(deltas, "encode_delta", encode_and_note)
        deltas._measure(replace(QUICK, timer=Timer(repeats=3, least_seconds=0.0)), "resnet8")
        assert len(set(rounds)) == len(rounds) == 5
