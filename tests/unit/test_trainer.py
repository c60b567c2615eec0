"""Tests of client.trainer."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from client.optimizer import make_optimizer
from client.task import TrainingTask
from client.trainer import (
    DivergedError,
    TrainingResult,
    add_proximal_gradient,
    batches,
    proximal_anchors,
    require_finite,
    train,
)
from common.config import QuantizationConfig
from common.data.augmentation import normalize
from common.data.datasets import Dataset, ImageSet
from common.models import create_model
from common.qat import calibrate, prepare
from common.quantization import SMALLEST_STEP
from tests.unit.datasets import dataset_of

NUM_IMAGES = 30


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_images() -> tuple[ImageSet, Dataset]:
    """Three classes told apart by which third of the rows is bright, with some noise."""
    labels = torch.arange(NUM_IMAGES) % 3
    noise = torch.randint(0, 60, (NUM_IMAGES, 1, 9, 9), generator=seeded(0))
    rows = torch.arange(9)[None, None, :, None] // 3
    bright = 180 * (rows == labels[:, None, None, None])
    images = ImageSet(
        images=(noise + bright).to(torch.uint8), labels=labels, class_names=("a", "b", "c")
    )
    return images, dataset_of(images, mean=0.35, std=0.34, crop_padding=1)


IMAGES, DATASET = make_images()
EVERYTHING = torch.arange(NUM_IMAGES)


def make_task(**changes: Any) -> TrainingTask:
    fields: dict[str, Any] = {
        "num_epochs": 1,
        "batch_size": 10,
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "step_learning_rate_scale": 0.1,
        "schedule": "constant",
        "loss": "ce",
        "correction": "none",
        "beta": 1.0,
        "beta_schedule": "constant",
        "augment": False,
        "first_epoch": 0,
        "total_epochs": 10,
    }
    return TrainingTask(**{**fields, **changes})


def make_model(seed: int = 1) -> nn.Module:
    return create_model("resnet8", num_classes=3, in_channels=1, generator=seeded(seed))


def make_teacher() -> nn.Module:
    return make_model(2).eval().requires_grad_(False)


def make_student(activation_bits: int = 32) -> nn.Module:
    config = QuantizationConfig(weight_bits=2, activation_bits=activation_bits)
    student = prepare(make_model(), config)
    calibrate(student, [normalize(IMAGES.images[:10], DATASET.mean, DATASET.std)], config)
    return student


def run(
    model: nn.Module,
    task: TrainingTask,
    teacher: nn.Module | None = None,
    *,
    seed: int = 5,
    indices: Tensor = EVERYTHING,
    **options: Any,
) -> TrainingResult:
    return train(model, teacher, DATASET, IMAGES, indices, task, seeded(seed), **options)


def same_state(left: nn.Module, right: nn.Module) -> bool:
    states = left.state_dict(), right.state_dict()
    return all(torch.equal(values, states[1][name]) for name, values in states[0].items())


class TestTrain:
    def test_weights_are_the_images_own(self) -> None:
        """Weights 2 and 0 in turn: the step of a batch of the first of each pair alone. (A linear
        model: batch normalisation would see both.)"""
        model = nn.Sequential(nn.Flatten(), nn.Linear(81, 3))
        nn.init.zeros_(model[1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(model[1].bias)  # type: ignore[arg-type]
        weights = torch.tensor([2.0, 0.0]).repeat(NUM_IMAGES // 2)
        weighted, halved = copy.deepcopy(model), copy.deepcopy(model)
        task = make_task(batch_size=NUM_IMAGES, momentum=0.0, weight_decay=0.0)
        result = run(weighted, task, weights=weights)
        run(halved, task, indices=EVERYTHING[::2])
        # Even outputs at first: ln 3 for every image, and a mean weight of 1.
        assert result.mean_loss == pytest.approx(math.log(3))
        for name, values in weighted.state_dict().items():
            torch.testing.assert_close(values, halved.state_dict()[name], rtol=1e-4, atol=1e-6)

    def test_float_training_learns(self) -> None:
        model = make_model()
        first = run(model, make_task())
        last = run(model, make_task(num_epochs=4, first_epoch=1))
        assert last.mean_loss < first.mean_loss
        logits = model.eval()(normalize(IMAGES.images, DATASET.mean, DATASET.std))
        assert (logits.argmax(1) == IMAGES.labels).float().mean() > 0.9

    @pytest.mark.parametrize("correction", ["none", "clc-channel", "mse"])
    def test_quantized_training_approaches_the_teacher(self, correction: str) -> None:
        teacher = make_model(2)
        run(teacher, make_task(num_epochs=4))
        teacher.eval().requires_grad_(False)
        student = make_student()
        task = make_task(loss="kd", correction=correction)
        first = run(student, task, teacher)
        last = run(student, replace(task, num_epochs=3, first_epoch=1), teacher)
        assert last.mean_loss < first.mean_loss

    @pytest.mark.parametrize("activation_bits", [4, 32])
    @pytest.mark.parametrize("correction", ["none", "clc-channel"])
    def test_bfloat16_is_nearly_float32(self, correction: str, activation_bits: int) -> None:
        """One step: the same loss but for eight binary digits, and parameters that stay float32."""
        task = make_task(loss="kd", correction=correction, batch_size=NUM_IMAGES)
        students = [make_student(activation_bits) for _ in range(2)]
        exact = run(students[0], task, make_teacher())
        rounded = run(students[1], replace(task, precision="bfloat16"), make_teacher())
        assert rounded.mean_loss != exact.mean_loss
        assert rounded.mean_loss == pytest.approx(exact.mean_loss, rel=0.02)
        assert {p.dtype for p in students[1].parameters()} == {torch.float32}

    @pytest.mark.parametrize("activation_bits", [4, 32])
    @pytest.mark.parametrize("augment", [False, True])
    def test_a_seed_gives_the_same_weights(self, augment: bool, activation_bits: int) -> None:
        task = make_task(loss="kd", correction="clc-channel", augment=augment)
        students = [make_student(activation_bits) for _ in range(3)]
        for student, seed in zip(students, (5, 5, 6), strict=True):
            run(student, task, make_teacher(), seed=seed)
        assert same_state(students[0], students[1])
        assert not same_state(students[0], students[2])

    def test_global_randomness_is_left_alone(self) -> None:
        before = torch.get_rng_state()
        run(make_student(), make_task(loss="kd", augment=True), make_teacher())
        assert torch.equal(torch.get_rng_state(), before)

    def test_one_optimizer_carries_momentum_over_calls(self) -> None:
        """Two calls of one epoch with one optimizer and generator are one call of two epochs."""
        task = make_task(num_epochs=2)
        together, apart = make_model(), make_model()
        run(together, task)
        optimizer, generator = make_optimizer(apart, task), seeded(5)
        for epoch in range(2):
            part = replace(task, num_epochs=1, first_epoch=epoch)
            train(apart, None, DATASET, IMAGES, EVERYTHING, part, generator, optimizer=optimizer)
        assert same_state(together, apart)

    def test_only_the_chosen_images_are_seen(self) -> None:
        """Five images for two epochs, in batches of 2, 2 and 1: six steps, ten images."""
        result = run(
            make_model(), make_task(num_epochs=2, batch_size=2), indices=torch.arange(0, 10, 2)
        )
        assert (result.num_seen, result.num_steps) == (10, 6)

    def test_fewer_images_than_a_batch(self) -> None:
        result = run(make_model(), make_task(batch_size=64), indices=torch.arange(7))
        assert (result.num_seen, result.num_steps) == (7, 1)

    def test_the_loss_is_the_mean_over_images(self) -> None:
        """Without learning, float cross-entropy in the batches of sizes 4, 3, 3 that were drawn,
        weighted by these sizes.
        """
        model, task = make_model(), make_task(learning_rate=1e-20, batch_size=4)
        chosen = torch.arange(10)
        reference = copy.deepcopy(model)
        result = run(model, task, indices=chosen)
        total = 0.0
        for _, batch in batches(chosen, task, seeded(5)):
            inputs = normalize(IMAGES.images[batch], DATASET.mean, DATASET.std)
            loss = functional.cross_entropy(reference(inputs), IMAGES.labels[batch])
            total += loss.item() * len(batch)
        assert result.mean_loss == pytest.approx(total / 10, rel=1e-5)

    def test_beta_weighs_the_correction(self) -> None:
        """L = L_KD + beta L_CLC: without learning, L(2) - L(0) = 2 (L(1) - L(0))."""
        losses = []
        for beta in (0.0, 1.0, 2.0):
            task = make_task(loss="kd", correction="clc-channel", beta=beta, learning_rate=1e-20)
            losses.append(run(make_student(), task, make_teacher()).mean_loss)
        assert losses[1] > losses[0]
        assert losses[2] - losses[0] == pytest.approx(2 * (losses[1] - losses[0]), rel=1e-3)

    def test_beta_falls_over_all_rounds(self) -> None:
        """Epoch two of two, one step: linearly 2 (1 - 1/2), as a cosine 2 (1 + cos(pi/2)) / 2;
        both weigh as much as a constant 1 does."""
        weights = []
        for schedule, beta in (("constant", 1.0), ("linear", 2.0), ("cosine", 2.0)):
            model = make_student()
            task = make_task(
                loss="kd",
                correction="clc-channel",
                beta=beta,
                beta_schedule=schedule,
                first_epoch=1,
                total_epochs=2,
                batch_size=len(IMAGES),
            )
            run(model, task, make_teacher())
            weights.append(torch.cat([values.flatten() for values in model.parameters()]))
        torch.testing.assert_close(weights[1], weights[0])
        torch.testing.assert_close(weights[2], weights[0])

    def test_progress_is_reported_every_step(self) -> None:
        """Epochs 2 and 3 of 8, three batches each: (2 + 0/3) / 8, (2 + 1/3) / 8, ..."""
        progress: list[float] = []
        task = make_task(num_epochs=2, first_epoch=2, total_epochs=8)
        run(make_model(), task, on_progress=progress.append)
        expected = [(epoch + step / 3) / 8 for epoch in (2, 3) for step in range(3)]
        assert progress == pytest.approx(expected)


class TestPasses:
    """How often the models run: what a step costs."""

    def count(self, model: nn.Module) -> list[bool]:
        """Whether gradients were on, one entry per forward pass from now on."""
        passes: list[bool] = []
        model.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
        return passes

    @pytest.mark.parametrize("correction", ["none", "clc-channel", "clc-pooled", "mse"])
    def test_one_of_student_and_teacher_a_step(self, correction: str) -> None:
        student, teacher = make_student(), make_teacher()
        student_passes, teacher_passes = self.count(student), self.count(teacher)
        result = run(student, make_task(loss="kd", correction=correction), teacher)
        assert result.num_steps == 3
        assert student_passes == [True] * 3
        assert teacher_passes == [False] * 3

    @pytest.mark.parametrize(("correction", "beta"), [("none", 1.0), ("clc-channel", 0.0)])
    def test_none_of_a_teacher_that_the_loss_does_not_need(
        self, correction: str, beta: float
    ) -> None:
        teacher = make_teacher()
        passes = self.count(teacher)
        task = make_task(loss="ce", correction=correction, beta=beta)
        run(make_student(), task, teacher)
        assert passes == []
        run(make_student(), task, None)

    def test_cross_entropy_with_a_correction_needs_one(self) -> None:
        teacher = make_teacher()
        passes = self.count(teacher)
        run(make_student(), make_task(loss="ce", correction="mse"), teacher)
        assert len(passes) == 3

    @pytest.mark.parametrize(("loss", "correction"), [("kd", "none"), ("ce", "mse")])
    def test_a_missing_teacher_is_refused(self, loss: str, correction: str) -> None:
        with pytest.raises(ValueError, match="needs a teacher"):
            run(make_student(), make_task(loss=loss, correction=correction))

    def test_the_teacher_is_left_alone(self) -> None:
        teacher = make_teacher()
        before = copy.deepcopy(teacher)
        run(make_student(), make_task(loss="kd", correction="clc-flat"), teacher)
        assert same_state(teacher, before)
        assert not teacher.training
        assert not any(module._forward_hooks for module in teacher.modules())


class TestDivergence:
    def test_a_weight_that_is_not_a_number(self) -> None:
        model = make_model()
        with torch.no_grad():
            model.get_parameter("fc.weight")[0, 0] = math.nan
        with pytest.raises(DivergedError, match="loss is nan in step 0"):
            run(model, make_task())

    def test_not_a_number_passes_through_the_quantizers(self) -> None:
        """A quantizer that clamped it to a code would hide it from the loss."""
        student = make_student(activation_bits=4)
        with torch.no_grad():
            student.get_parameter("layer1.0.bn1.weight")[0] = math.nan
        with pytest.raises(DivergedError, match="loss is nan"):
            run(student, make_task(loss="kd"), make_teacher())

    def test_steps_too_large(self) -> None:
        with pytest.raises(DivergedError):
            run(make_model(), make_task(num_epochs=5, learning_rate=1e30))

    def test_the_last_update_is_checked_as_well(self) -> None:
        """One step: the loss before it is fine, what it makes of the weights is not."""
        task = make_task(batch_size=NUM_IMAGES, learning_rate=1e38, momentum=0.0)
        model = make_model()
        with torch.no_grad():
            model.get_parameter("fc.bias").fill_(1.0)
        with pytest.raises(DivergedError, match="is not finite after training"):
            run(model, replace(task, weight_decay=1e6))

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("name", ["fc.bias", "layer2.0.bn1.running_var"])
    def test_names_the_entry(self, name: str, value: float) -> None:
        model = make_model()
        require_finite(model)
        with torch.no_grad():
            model.state_dict()[name][1] = value
        with pytest.raises(DivergedError, match=f"{name} is not finite"):
            require_finite(model)

    def test_large_entries_are_finite(self) -> None:
        """The square of 1e30 is beyond float32, and so is the norm of the model."""
        model = make_model()
        with torch.no_grad():
            model.state_dict()["fc.bias"][1] = 1e30
        require_finite(model)

    def test_steps_stay_positive(self) -> None:
        """A learning rate of the steps that throws them below zero."""
        student = make_student(activation_bits=4)
        task = make_task(loss="kd", learning_rate=1e-3, step_learning_rate_scale=1e6)
        run(student, task, make_teacher())
        steps = [p for name, p in student.named_parameters() if name.endswith(".step")]
        smallest = torch.tensor(SMALLEST_STEP)
        assert min(step.min() for step in steps) == smallest


class TestBatches:
    def test_by_hand(self) -> None:
        """Seven images in batches of at most 3: 3, 2, 2. Epochs 2, 3 of 4, so 2/4, 2.33/4, ..."""
        task = make_task(num_epochs=2, batch_size=3, first_epoch=2, total_epochs=4)
        indices = torch.tensor([3, 5, 8, 13, 21, 34, 55])
        drawn = list(batches(indices, task, seeded(0)))
        assert [len(chosen) for _, chosen in drawn] == [3, 2, 2] * 2
        expected = [(epoch + step / 3) / 4 for epoch in (2, 3) for step in range(3)]
        assert [progress for progress, _ in drawn] == pytest.approx(expected)
        for epoch in (drawn[:3], drawn[3:]):
            together = torch.cat([chosen for _, chosen in epoch])
            assert sorted(together.tolist()) == indices.tolist()
        assert [c.tolist() for _, c in drawn[:3]] != [c.tolist() for _, c in drawn[3:]]

    @settings(deadline=None, max_examples=50)
    @given(num_images=st.integers(1, 200), batch_size=st.integers(1, 64))
    def test_sizes_differ_by_at_most_one(self, num_images: int, batch_size: int) -> None:
        task = make_task(batch_size=batch_size, total_epochs=1)
        drawn = list(batches(torch.arange(num_images), task, seeded(0)))
        sizes = [len(chosen) for _, chosen in drawn]
        assert len(sizes) == math.ceil(num_images / batch_size)
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch_size
        assert sum(sizes) == num_images
        assert all(0 <= progress < 1 for progress, _ in drawn)


class TestSchedule:
    def test_spans_all_rounds(self) -> None:
        """Two rounds of one epoch in two steps: progress 0, 1/4 and 1/2, 3/4 of four steps.

        Linear: 0.4 times 1, 3/4, 1/2, 1/4; the steps' own rate is a tenth of that.
        """
        rates: list[list[float]] = []
        student = make_student()
        for first_epoch in (0, 1):
            task = make_task(
                learning_rate=0.4,
                schedule="linear",
                batch_size=15,
                first_epoch=first_epoch,
                total_epochs=2,
            )
            optimizer = make_optimizer(student, task)
            optimizer.register_step_pre_hook(
                lambda opt, *_: rates.append([group["lr"] for group in opt.param_groups])
            )
            run(student, task, optimizer=optimizer)
        weights, plain, steps = zip(*rates, strict=True)
        assert weights == plain == pytest.approx((0.4, 0.3, 0.2, 0.1))
        assert steps == pytest.approx((0.04, 0.03, 0.02, 0.01))


class TestProximal:
    def test_gradient(self) -> None:
        """g + mu (w - w_global) = (0.5, 0.5) + 0.1 ((1, 2) - (0, 4)) = (0.6, 0.3)."""
        parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
        parameter.grad = torch.tensor([0.5, 0.5])
        frozen = nn.Parameter(torch.ones(2))
        anchors = [(parameter, torch.tensor([0.0, 4.0])), (frozen, torch.zeros(2))]
        add_proximal_gradient(anchors, 0.1)
        assert parameter.grad.tolist() == pytest.approx([0.6, 0.3])
        assert frozen.grad is None
        assert parameter.tolist() == [1.0, 2.0]

    def test_gradient_is_that_of_the_term(self) -> None:
        """Of mu / 2 |w - w_global|^2, by automatic differentiation."""
        parameter = nn.Parameter(torch.randn(7, generator=seeded(0)))
        anchor = torch.randn(7, generator=seeded(1))
        (0.3 / 2 * (parameter - anchor).square().sum()).backward()
        expected = parameter.grad
        parameter.grad = torch.zeros(7)
        add_proximal_gradient([(parameter, anchor)], 0.3)
        torch.testing.assert_close(parameter.grad, expected)

    def test_anchors_are_copies(self) -> None:
        model = make_model()
        anchors = proximal_anchors(model, make_task(proximal_mu=0.1))
        before = model.get_parameter("fc.bias").detach().clone()
        nn.init.zeros_(model.get_parameter("fc.bias"))
        assert torch.equal(anchors[-1][1], before)
        assert len(anchors) == len(list(model.parameters()))
        assert proximal_anchors(model, make_task()) == ()

    def test_a_step_is_drawn_to_the_global_model(self) -> None:
        """w - lr (g + mu (w - w_global)): with w_global = 0 the term moves w by -lr mu w more."""
        task = make_task(momentum=0.0, weight_decay=0.0, batch_size=NUM_IMAGES)
        plain, drawn, start = make_model(), make_model(), make_model()
        run(plain, task)
        anchors = [(parameter, torch.zeros_like(parameter)) for parameter in drawn.parameters()]
        run(drawn, replace(task, proximal_mu=0.4), anchors=anchors)
        name = "layer1.0.conv1.weight"
        difference = drawn.get_parameter(name) - plain.get_parameter(name)
        expected = -0.05 * 0.4 * start.get_parameter(name)
        torch.testing.assert_close(difference, expected, rtol=1e-3, atol=1e-6)

    def test_the_start_is_the_global_model_unless_told(self) -> None:
        """At the start w = w_global: one step with the term is one without."""
        task = make_task(batch_size=NUM_IMAGES)
        plain, drawn = make_model(), make_model()
        run(plain, task)
        run(drawn, replace(task, proximal_mu=0.4))
        assert same_state(plain, drawn)
        run(plain, task)
        run(drawn, replace(task, proximal_mu=0.4, num_epochs=2))
        assert not same_state(plain, drawn)


def test_results_add_up() -> None:
    """10 over 5 images and 2 over 3 images: 12 / 8, in 3 steps."""
    total = TrainingResult(loss_sum=10.0, num_seen=5, num_steps=2)
    total = total + TrainingResult(loss_sum=2.0, num_seen=3, num_steps=1)
    assert total == TrainingResult(loss_sum=12.0, num_seen=8, num_steps=3)
    assert total.mean_loss == 1.5
    assert TrainingResult(loss_sum=0.0, num_seen=0, num_steps=0).mean_loss == 0.0
