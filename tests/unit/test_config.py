"""Tests of common.config."""

import ast
import dataclasses
import inspect
from typing import Any, get_type_hints

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from common.config import (
    DEFAULT_KEYS,
    MODELS,
    NEVER,
    SECTION_TYPES,
    Config,
    CoresetConfig,
    DataConfig,
    FederationConfig,
    ModelConfig,
    QuantizationConfig,
    Section,
    TrainingConfig,
    WarmupConfig,
    pool_factor,
    selection_interval,
)
from common.errors import UserError


def allowed_values(field: dataclasses.Field[Any], kind: type) -> st.SearchStrategy[Any]:
    """Values that a field's metadata allow."""
    limits = field.metadata
    if limits["choices"] is not None:
        return st.sampled_from(limits["choices"])
    if kind is bool:
        return st.booleans()
    if kind is str:
        return st.text(max_size=20)
    lowest = limits["minimum"] if limits["above"] is None else limits["above"]
    if kind is int:
        highest = 2**40 if limits["maximum"] is None else limits["maximum"]
        return st.integers(int(lowest), int(highest))
    highest = 1e30 if limits["maximum"] is None else limits["maximum"]
    return st.floats(lowest, highest, exclude_min=limits["above"] is not None)


ALLOWED = {
    f"{name}.{field.name.replace('_', '-')}": allowed_values(field, kinds[field.name])
    for name, section_type in SECTION_TYPES.items()
    for kinds in [get_type_hints(section_type)]
    for field in dataclasses.fields(section_type)  # type: ignore[arg-type]
}
"""Settings, and the values that their own sections allow."""


class TestFlat:
    def test_defaults(self) -> None:
        assert Config.from_flat({}) == Config()

    def test_keys_are_section_and_kebab_case_name(self) -> None:
        assert "quantization.weight-bits" in DEFAULT_KEYS
        assert set(Config().to_flat()) == DEFAULT_KEYS
        assert ALLOWED.keys() == DEFAULT_KEYS

    @settings(
        max_examples=50,
        deadline=None,
        # On a busy machine examples are made slowly.
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )
    @given(st.fixed_dictionaries({}, optional=ALLOWED))
    def test_round_trip(self, flat: dict[str, Any]) -> None:
        try:
            config = Config.from_flat(flat)
        except UserError:  # settings that contradict each other
            reject()
        result = config.to_flat()
        assert Config.from_flat(result) == config
        assert flat.items() <= result.items()

    def test_values_reach_their_section(self) -> None:
        config = Config.from_flat({"quantization.weight-bits": 4, "training.local-epochs": 3})
        assert config.quantization.weight_bits == 4
        assert config.training.local_epochs == 3
        assert config.warmup == WarmupConfig()

    def test_an_int_is_accepted_for_a_float(self) -> None:
        alpha = Config.from_flat({"data.alpha": 1}).data.alpha
        assert isinstance(alpha, float)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("federation.num-rounds", True),
            ("federation.num-rounds", "1"),
            ("federation.num-rounds", 1.0),
            ("data.augment", 1),
            ("data.alpha", "0.5"),
            ("data.alpha", True),
            ("model.name", 8),
        ],
    )
    def test_refuses_other_types(self, key: str, value: Any) -> None:
        with pytest.raises(UserError, match=rf"{key} = {value!r}: expected"):
            Config.from_flat({key: value})

    @pytest.mark.parametrize(
        ("key", "value", "allowed"),
        [
            ("quantization.weight-bits", 1, "2, 3, 4, 5, 6, 7, 8, 32"),
            ("quantization.activation-bits", 9, "2, 3, 4, 5, 6, 7, 8, 32"),
            ("federation.delta-bits", 32, "2, 3, 4, 5, 6, 7, 8"),
            ("coreset.fraction", 0.0, "> 0.0, <= 1.0"),
            ("strategy.name", "fedsgd", "'fedavg'"),
            ("data.num-devices", 0, ">= 1"),
            ("run.seed", -1, ">= 0"),
        ],
    )
    def test_refuses_values_out_of_range(self, key: str, value: Any, allowed: str) -> None:
        with pytest.raises(UserError, match=f"{key} = ") as caught:
            Config.from_flat({key: value})
        assert allowed in str(caught.value)

    @pytest.mark.parametrize(
        ("key", "near"),
        [
            ("quantization.weight_bits", "quantization.weight-bits"),
            ("quantisation.weight-bits", "quantization.weight-bits"),
            ("training.learningrate", "training.learning-rate"),
            ("num-rounds", "federation.num-rounds"),
        ],
    )
    def test_unknown_keys_are_answered_with_near_ones(self, key: str, near: str) -> None:
        with pytest.raises(UserError, match=f"unknown setting '{key}'") as caught:
            Config.from_flat({key: 1})
        assert near in str(caught.value)

    def test_an_unknown_key_is_refused_beside_known_ones(self) -> None:
        with pytest.raises(UserError, match=r"unknown setting 'data\.nope'"):
            Config.from_flat({"run.seed": 1, "data.nope": 2})


class TestSectionsTogether:
    def test_devices_that_must_be_there(self) -> None:
        with pytest.raises(UserError) as caught:
            Config(data=DataConfig(num_devices=3), federation=FederationConfig(min_devices=4))
        assert str(caught.value) == (
            "federation.min-devices = 4: expected at most data.num-devices = 3"
        )

    def test_a_float_model_has_to_come_from_somewhere(self) -> None:
        with pytest.raises(UserError, match=r"warmup\.num-rounds = 0.*model\.teacher"):
            Config(warmup=WarmupConfig(num_rounds=0))
        Config(warmup=WarmupConfig(num_rounds=0), model=ModelConfig(teacher="shipped"))

    @pytest.mark.parametrize("pool", [0.0, 1.0, 2.5])
    def test_a_pool_holds_the_coreset(self, pool: float) -> None:
        Config(coreset=CoresetConfig(pool=pool))
        with pytest.raises(UserError, match=r"coreset\.pool = 0\.5"):
            Config(coreset=CoresetConfig(pool=0.5))

    def test_a_pool_by_its_share_of_the_time(self) -> None:
        """A tenth of the time for scoring, nine for 18 epochs: what 2 epochs cost, and of scoring,
        at half of an image trained on, 4 coresets."""
        assert pool_factor(CoresetConfig(pool_share=0.1, interval=18)) == pytest.approx(4.0)
        assert pool_factor(CoresetConfig(pool=3.0, interval=18)) == 3.0
        assert pool_factor(CoresetConfig()) == 0.0

    def test_a_pool_by_its_share_holds_the_coreset(self) -> None:
        """A tenth of the time pays for 0.89 coresets every 4 epochs (4 / 9 / 0.5), 1.1 every 5."""
        scored = CoresetConfig(selection="res", pool_share=0.1, interval=5)
        Config(coreset=scored)
        with pytest.raises(UserError, match=r"pool-share = 0\.1.*interval = 4 .*0\.89 times"):
            Config(coreset=dataclasses.replace(scored, interval=4))
        with pytest.raises(UserError, match=r"pool-share = 0\.1: .*coreset\.pool = 2\.0"):
            Config(coreset=CoresetConfig(pool_share=0.1, pool=2.0, interval=18))

    @pytest.mark.parametrize("selection", ["random", "res-online", "full"])
    def test_a_pool_that_nothing_is_scored_of_may_be_small(self, selection: str) -> None:
        """A comparison of selections sets one share for all, and these need no pool."""
        Config(coreset=CoresetConfig(selection=selection, pool_share=0.1))

    @pytest.mark.parametrize("update_format", ["codes", "delta", "float32"])
    def test_a_float_model_has_no_codes(self, update_format: str) -> None:
        sections: dict[str, Any] = {
            "quantization": QuantizationConfig(weight_bits=32),
            "federation": FederationConfig(update_format=update_format),
        }
        if update_format == "codes":
            with pytest.raises(UserError, match=r"update-format = 'codes'.*weight-bits = 32"):
                Config(**sections)
        else:
            Config(**sections)


class TestSections:
    @pytest.mark.parametrize(
        ("key", "value"),
        [("fleet.over-selection", 1.5), ("strategy.concurrency", 11)],
    )
    def test_what_asynchronous_training_does_not_go_with(self, key: str, value: Any) -> None:
        """Ten devices."""
        Config.from_flat({key: value})
        with pytest.raises(UserError, match=f"{key} = '?{value}'?: expected"):
            Config.from_flat({key: value, "strategy.name": "fedbuff"})

    def test_a_section_checks_itself(self) -> None:
        with pytest.raises(UserError, match=r"quantization\.weight-bits = 16"):
            QuantizationConfig(weight_bits=16)

    @pytest.mark.parametrize("section_type", SECTION_TYPES.values())
    def test_frozen_and_keyword_only(self, section_type: type[Section]) -> None:
        with pytest.raises(TypeError):
            section_type("value")  # type: ignore[call-arg]
        name = dataclasses.fields(section_type)[0].name  # type: ignore[arg-type]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(section_type(), name, 1)

    def test_a_section_knows_its_name(self) -> None:
        assert SECTION_TYPES["quantization"] is QuantizationConfig
        assert {name: kind.section_name for name, kind in SECTION_TYPES.items()} == {
            name: name for name in SECTION_TYPES
        }

    def test_every_setting_is_described(self) -> None:
        """A string follows every field of every section."""
        for section_type in SECTION_TYPES.values():
            (node,) = ast.parse(inspect.getsource(section_type)).body
            assert isinstance(node, ast.ClassDef)
            body = node.body[1:]
            for field, text in zip(body[::2], body[1::2], strict=True):
                assert isinstance(field, ast.AnnAssign)
                assert isinstance(text, ast.Expr)
                assert isinstance(text.value, ast.Constant)


def test_names_are_those_of_the_modules_that_use_them() -> None:
    from common.models import MODEL_NAMES
    from common.payloads.updates import DOWNLINK_FORMATS, UPDATE_FORMATS

    def choices(section_type: type[Section], name: str) -> Any:
        (field,) = [f for f in dataclasses.fields(section_type) if f.name == name]  # type: ignore[arg-type]
        return field.metadata["choices"]

    assert MODELS == MODEL_NAMES
    assert choices(FederationConfig, "update_format") == UPDATE_FORMATS
    assert choices(FederationConfig, "downlink_format") == DOWNLINK_FORMATS


def test_selections_and_corrections_are_those_that_the_device_knows() -> None:
    from client.coreset import MODEL_FREE
    from client.losses import CORRECTION_LOSSES
    from common.config import CORRECTIONS, SELECTIONS

    assert set(CORRECTIONS) == {"none", *CORRECTION_LOSSES}
    assert set(SELECTIONS) > MODEL_FREE


@pytest.mark.parametrize(
    ("selection", "interval", "expected"),
    [
        ("random", 0, 1),
        ("res-online", 0, 1),
        ("quarc", 0, 5),
        ("random", 7, 7),
        ("quarc", 1, 1),
        ("full", 0, NEVER),
        ("full", 1, NEVER),
    ],
)
def test_selections_that_cost_nothing_are_made_in_every_epoch(
    selection: str, interval: int, expected: int
) -> None:
    assert selection_interval(CoresetConfig(selection=selection, interval=interval)) == expected


def test_views_that_are_never_seen_again_are_refused() -> None:
    """Every epoch draws a new coreset: nothing that is kept of the last one is of use."""
    training = TrainingConfig(teacher_views=4)
    with pytest.raises(UserError, match=r"teacher-views = 4: expected coreset\.interval above 1"):
        Config(training=training, coreset=CoresetConfig(selection="random"))
    Config(training=training, coreset=CoresetConfig(selection="random", interval=2))
    Config(training=training, coreset=CoresetConfig(selection="full", interval=1))
