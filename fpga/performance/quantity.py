"""Numbers that know how they came about.

A `Quantity` is a value with a unit and the formula that gave it. Arithmetic on quantities writes
the formula down: `(passes * tokens).named("lookup", "cycles")` holds the product, the text
"passes * tokens" and its two inputs, so that what is printed is what was computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Union

Number = Union[int, float, "Quantity"]
#: How tightly an expression holds together: sums, products, names and calls.
_SUM, _PRODUCT, _ATOM = 1, 2, 3


class Quantity:
    """A value, its unit, and the formula over named inputs that it was computed by.

    name      what formulas call it; empty while an expression is being built
    formula   text over the names of `inputs`; empty for a value that is given
    source    where a given value comes from
    """

    __slots__ = ("_rank", "formula", "inputs", "name", "source", "unit", "value")

    def __init__(
        self,
        value: float,
        name: str = "",
        unit: str = "",
        formula: str = "",
        inputs: tuple[Quantity, ...] = (),
        source: str = "",
        rank: int = _ATOM,
    ):
        self.value = value
        self.name = name
        self.unit = unit
        self.formula = formula
        self.inputs = inputs
        self.source = source
        self._rank = rank

    def named(self, name: str, unit: str = "") -> Quantity:
        """This expression under a name, which formulas from here on use."""
        if self.name:  # another name for a quantity that has one: keep the link
            return Quantity(self.value, name, unit or self.unit, self.name, (self,))
        return Quantity(self.value, name, unit, self.formula, self.inputs)

    def __add__(self, other: Number) -> Quantity:
        return _combine(self, other, "+", _SUM)

    def __radd__(self, other: Number) -> Quantity:
        return _combine(other, self, "+", _SUM)

    def __sub__(self, other: Number) -> Quantity:
        return _combine(self, other, "-", _SUM)

    def __rsub__(self, other: Number) -> Quantity:
        return _combine(other, self, "-", _SUM)

    def __mul__(self, other: Number) -> Quantity:
        return _combine(self, other, "*", _PRODUCT)

    def __rmul__(self, other: Number) -> Quantity:
        return _combine(other, self, "*", _PRODUCT)

    def __truediv__(self, other: Number) -> Quantity:
        return _combine(self, other, "/", _PRODUCT)

    def __rtruediv__(self, other: Number) -> Quantity:
        return _combine(other, self, "/", _PRODUCT)

    def __float__(self) -> float:
        return float(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __repr__(self) -> str:
        return line(self)


def given(name: str, value: float, unit: str = "", source: str = "") -> Quantity:
    """A value that is not computed here."""
    return Quantity(value, name, unit, source=source)


def value_of(x: Number) -> float:
    return x.value if isinstance(x, Quantity) else x


def _text(x: Number, rank: int) -> str:
    if not isinstance(x, Quantity):
        return format_number(x)
    if x.name:
        return x.name
    return f"({x.formula})" if x._rank < rank else x.formula


def _inputs(parts: Iterable[Number]) -> tuple[Quantity, ...]:
    found: dict[int, Quantity] = {}
    for part in parts:
        if isinstance(part, Quantity):
            for item in (part,) if part.name else part.inputs:
                found[id(item)] = item
    return tuple(found.values())


def _combine(a: Number, b: Number, sign: str, rank: int) -> Quantity:
    x, y = value_of(a), value_of(b)
    if sign == "+":
        value = x + y
    elif sign == "-":
        value = x - y
    elif sign == "*":
        value = x * y
    else:
        value = x / y
    right = rank + 1 if sign in "-/" else rank  # a - (b - c) keeps its brackets
    formula = f"{_text(a, rank)} {sign} {_text(b, right)}"
    return Quantity(value, "", "", formula, _inputs((a, b)), "", rank)


def _call(function: str, value: float, parts: tuple[Number, ...]) -> Quantity:
    text = f"{function}({', '.join(_text(part, _SUM) for part in parts)})"
    return Quantity(value, "", "", text, _inputs(parts))


def maximum(*parts: Number) -> Quantity:
    return _call("max", max(value_of(part) for part in parts), parts)


def minimum(*parts: Number) -> Quantity:
    return _call("min", min(value_of(part) for part in parts), parts)


def ceil_div(a: Number, b: Number) -> Quantity:
    return _call("ceil_div", math.ceil(value_of(a) / value_of(b)), (a, b))


def total(parts: Iterable[Number]) -> Quantity:
    """The sum of all parts; those that are zero are left out of the formula."""
    kept = [part for part in parts if value_of(part)]
    if not kept:
        return Quantity(0, formula="0")
    out = kept[0] if isinstance(kept[0], Quantity) else Quantity(kept[0], formula=_text(kept[0], 1))
    for part in kept[1:]:
        out = out + part
    return out


def format_number(value: float) -> str:
    """A number as formulas show it: whole ones in full, others to four digits or to the unit."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def line(q: Quantity) -> str:
    """name = formula = value unit, on one line."""
    number = f"{format_number(q.value)} {q.unit}".rstrip()
    parts = [part for part in (q.name, q.formula, number) if part]
    note = f"   [{q.source}]" if q.source else ""
    return " = ".join(parts) + note


def explain(q: Quantity, depth: int = 99, seen: set[int] | None = None) -> Iterator[str]:
    """The formula of a quantity and, indented, of what it was computed from, each once.

    seen: identities of what was explained before; shared by several calls.
    """
    yield from _explain(q, depth, "", set() if seen is None else seen)


def _explain(q: Quantity, depth: int, indent: str, seen: set[int]) -> Iterator[str]:
    yield indent + line(q)
    if depth <= 0:
        return
    seen.add(id(q))
    for item in q.inputs:
        if id(item) not in seen:
            yield from _explain(item, depth - 1, indent + "  ", seen)
