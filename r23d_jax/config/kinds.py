"""Kinds of values that several fields have: a type and what it must hold."""

from typing import Annotated

from r23d_jax.config.fields import above, at_least, at_most, below, between, must

Count = Annotated[int, at_least(1)]
CountOrZero = Annotated[int, at_least(0)]
Positive = Annotated[float, above(0)]
NotNegative = Annotated[float, at_least(0)]
Fraction = Annotated[float, between(0, 1)]
FractionBelowOne = Annotated[float, at_least(0), below(1)]
FractionAboveZero = Annotated[float, above(0), at_most(1)]
FractionRange = Annotated[
    tuple[float, float], must(lambda a: 0 < a[0] <= a[1] <= 1, "(low, high) with 0 < low <= high <= 1")
]
