"""Differences between two tables of named values, for foreign weights, checkpoints and warm starts."""

from collections.abc import Mapping

MOST_LINES = 12


def differences(found: Mapping[str, object], wanted: Mapping[str, object]) -> list[str]:
    """One line for each name that is missing, unexpected, or has another description, such as the value's shape."""
    problems = [f"{name}: missing" for name in wanted if name not in found]
    problems += [f"{name}: not in this network" for name in found if name not in wanted]
    other = (name for name in wanted if name in found and found[name] != wanted[name])
    return problems + [f"{name}: {found[name]}, expected {wanted[name]}" for name in other]


def listed(problems: list[str]) -> str:
    """At most a dozen lines, and how many more there are."""
    rest = len(problems) - MOST_LINES
    return "\n".join(f"  {line}" for line in [*problems[:MOST_LINES], *[f"and {rest} more"] * (rest > 0)])
