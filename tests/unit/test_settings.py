"""Tests of common.settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.settings import (
    build_section,
    check_section,
    describe_allowed,
    flatten,
    kebab,
    refuse_unknown,
    setting,
)


@dataclass(frozen=True, kw_only=True)
class Oven:
    shelves: int = setting(2, minimum=1, maximum=5)
    heat: float = setting(180.0, above=0.0, maximum=300.0)
    fan: bool = setting(True)
    mode: str = setting("bake", choices=("bake", "grill"))
    cook_name: str = setting("")
    size: int = setting(60, choices=(45, 60))


def check(**values: Any) -> None:
    check_section(Oven(**values), "oven")


class TestCheckSection:
    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"shelves": 1},
            {"shelves": 5},
            {"heat": 1e-9},
            {"heat": 300.0},
            {"fan": False},
            {"mode": "grill"},
            {"cook_name": "any"},
            {"size": 45},
        ],
    )
    def test_accepts(self, values: dict[str, Any]) -> None:
        check(**values)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"shelves": 0}, "oven.shelves = 0: expected int, >= 1, <= 5"),
            ({"shelves": 6}, "oven.shelves = 6: expected int, >= 1, <= 5"),
            ({"heat": 0.0}, "oven.heat = 0.0: expected float, > 0.0, <= 300.0"),
            ({"heat": 301.0}, "oven.heat = 301.0: expected float, > 0.0, <= 300.0"),
            ({"mode": "steam"}, "oven.mode = 'steam': expected one of 'bake', 'grill'"),
            ({"size": 50}, "oven.size = 50: expected one of 45, 60"),
        ],
    )
    def test_refuses_values_out_of_range(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError) as caught:
            check(**values)
        assert str(caught.value) == message

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"shelves": "2"}, "oven.shelves = '2': expected int, >= 1, <= 5"),
            ({"shelves": 2.0}, "oven.shelves = 2.0: expected int, >= 1, <= 5"),
            ({"shelves": True}, "oven.shelves = True: expected int, >= 1, <= 5"),
            ({"heat": True}, "oven.heat = True: expected float, > 0.0, <= 300.0"),
            ({"fan": 1}, "oven.fan = 1: expected true or false"),
            ({"fan": "true"}, "oven.fan = 'true': expected true or false"),
            ({"cook_name": 7}, "oven.cook-name = 7: expected a string"),
            ({"mode": 1}, "oven.mode = 1: expected one of 'bake', 'grill'"),
            ({"cook_name": None}, "oven.cook-name = None: expected a string"),
        ],
    )
    def test_refuses_other_types(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError) as caught:
            check(**values)
        assert str(caught.value) == message

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_refuses_what_is_not_finite(self, value: float) -> None:
        with pytest.raises(UserError, match=r"oven\.heat"):
            check(heat=value)

    @given(st.floats())
    def test_a_float_is_accepted_exactly_when_in_range(self, value: float) -> None:
        try:
            check(heat=value)
        except UserError:
            assert not 0 < value <= 300
        else:
            assert 0 < value <= 300


class TestBuildSection:
    def test_absent_keys_keep_their_defaults(self) -> None:
        assert build_section(Oven, "oven", {"oven.fan": False}) == Oven(fan=False)

    def test_other_sections_are_left_out(self) -> None:
        assert build_section(Oven, "oven", {"fridge.shelves": 4, "oven.shelves": 3}).shelves == 3

    def test_kebab_case(self) -> None:
        assert build_section(Oven, "oven", {"oven.cook-name": "Ada"}).cook_name == "Ada"

    def test_an_int_becomes_a_float(self) -> None:
        heat = build_section(Oven, "oven", {"oven.heat": 200}).heat
        assert heat == 200.0
        assert isinstance(heat, float)

    @pytest.mark.parametrize(("key", "value"), [("oven.heat", True), ("oven.shelves", 2.0)])
    def test_nothing_else_is_converted(self, key: str, value: Any) -> None:
        oven = build_section(Oven, "oven", {key: value})
        with pytest.raises(UserError, match=key):
            check_section(oven, "oven")

    def test_round_trip(self) -> None:
        oven = Oven(shelves=3, heat=90.5, fan=False, mode="grill", cook_name="Ada", size=45)
        flat = flatten(oven, "oven")
        assert flat == {
            "oven.shelves": 3,
            "oven.heat": 90.5,
            "oven.fan": False,
            "oven.mode": "grill",
            "oven.cook-name": "Ada",
            "oven.size": 45,
        }
        assert build_section(Oven, "oven", flat) == oven


class TestRefuseUnknown:
    KNOWN = ("oven.shelves", "oven.heat", "oven.cook-name", "fridge.light")

    def test_accepts_known_keys(self) -> None:
        refuse_unknown(["oven.heat", "fridge.light"], self.KNOWN)

    def test_names_the_nearest(self) -> None:
        with pytest.raises(UserError) as caught:
            refuse_unknown(["oven.heat", "oven.shelve"], self.KNOWN)
        message = str(caught.value)
        assert message.startswith("unknown setting 'oven.shelve': expected one of oven.shelves")

    def test_names_the_section_where_nothing_is_near(self) -> None:
        with pytest.raises(UserError) as caught:
            refuse_unknown(["fridge.zzzzzzzzzzzzzzzz"], self.KNOWN)
        assert str(caught.value).endswith("expected one of fridge.light")

    @pytest.mark.parametrize(
        ("known", "expected"), [(KNOWN, "fridge.*, oven.*"), (("heat", "light"), "heat, light")]
    )
    def test_names_the_sections_where_the_section_is_unknown(
        self, known: tuple[str, ...], expected: str
    ) -> None:
        with pytest.raises(UserError) as caught:
            refuse_unknown(["qqqqqqqqqqqqqq"], known)
        assert str(caught.value).endswith(f"expected one of {expected}")


@pytest.mark.parametrize(
    ("kind", "limits", "expected"),
    [
        (int, {}, "int"),
        (bool, {}, "true or false"),
        (str, {}, "a string"),
        (float, {"above": 0.0, "maximum": 1.0}, "float, > 0.0, <= 1.0"),
        (int, {"minimum": 1}, "int, >= 1"),
        (str, {"choices": ("a", "b")}, "one of 'a', 'b'"),
    ],
)
def test_describe_allowed(kind: type, limits: dict[str, Any], expected: str) -> None:
    assert describe_allowed(kind, limits) == expected


def test_kebab() -> None:
    assert kebab("step_learning_rate_scale") == "step-learning-rate-scale"
