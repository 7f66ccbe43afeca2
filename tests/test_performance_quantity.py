"""Quantities: the value and the formula are of one making."""

from __future__ import annotations

import pytest

from fpga.performance.quantity import (
    ceil_div,
    explain,
    format_number,
    given,
    line,
    maximum,
    minimum,
    total,
)

A, B, C = given("a", 7, "cycles"), given("b", 2), given("c", 3)


@pytest.mark.parametrize(
    ("expression", "value", "formula"),
    [
        (A + B * C, 13, "a + b * c"),
        ((A + B) * C, 27, "(a + b) * c"),
        (A - (B - C), 8, "a - (b - c)"),
        (A / (B * C), 7 / 6, "a / (b * c)"),
        (1 - A, -6, "1 - a"),
        (2 * A + 1, 15, "2 * a + 1"),
        (10 / B, 5, "10 / b"),
        (maximum(A + B, C, 1), 9, "max(a + b, c, 1)"),
        (minimum(A, B * C), 6, "min(a, b * c)"),
        (ceil_div(A, B), 4, "ceil_div(a, b)"),
        (total([A, given("zero", 0), B]), 9, "a + b"),
        (total([]), 0, "0"),
    ],
)
def test_arithmetic_writes_its_formula(expression, value, formula):
    assert expression.value == pytest.approx(value)
    assert expression.formula == formula


def test_names_stand_for_what_they_name():
    area = (A * B).named("area", "cycles")
    volume = (area * C).named("volume")
    assert volume.formula == "area * c"
    assert [item.name for item in volume.inputs] == ["area", "c"]
    other = area.named("again")
    assert other.formula == "area"
    assert other.unit == "cycles"
    assert other.value == 14


def test_explanation_shows_every_input_once():
    square = (A * A + B).named("square", "cycles")
    text = list(explain(square))
    assert text == [
        "square = a * a + b = 51 cycles",
        "  a = 7 cycles",
        "  b = 2",
    ]
    assert list(explain(square, 0)) == text[:1]


def test_numbers_and_sources():
    assert format_number(1234567) == "1,234,567"
    assert format_number(2.0) == "2"
    assert format_number(0.123456) == "0.1235"
    assert line(given("eta", 0.9, "", "assumed")) == "eta = 0.9   [assumed]"
    assert float(A) == 7.0
    assert int(A / B) == 3
