"""Groups of typed fields with constraints, and errors that name the wrong field and its remedy."""

import dataclasses
import difflib
import operator
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

T = TypeVar("T")


class UserError(Exception):
    """A mistake that the user can correct. Only its message is shown: what is wrong, where, and the remedy."""


class ConfigError(UserError, ValueError):
    """A value in a config is wrong; the message names the field, the value and the remedy."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the nearest known ones, or all of them if none is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    near = near or [other for other in known if "".join(word[:1] for word in other.split("_")) == name]  # lr, wd
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"


def look_up(table: Mapping[Any, T], name: Any, field: str) -> T:
    """The entry of a table under a user's name; raises ConfigError with the field and the nearest keys."""
    try:
        return table[name]
    except (KeyError, TypeError):  # TypeError: not hashable
        raise ConfigError(f"{field}={name!r}: {one_of(*table)(name)}") from None


# -- constraints -------------------------------------------------------------------------------------------------------

# Returns a complaint about a value of the field's type; "" if it is right.
Constraint = Callable[[Any], str]


def must(holds: Callable[[Any], bool], be: str) -> Constraint:
    """A constraint from a condition and the words that follow "must be"."""
    return lambda value: "" if holds(value) else f"must be {be}"


def _compared(holds: Callable[[Any, float], bool], words: str) -> Callable[[float], Constraint]:
    return lambda limit: must(lambda value: holds(value, limit), f"{words} {limit}")


at_least, at_most = _compared(operator.ge, "at least"), _compared(operator.le, "at most")
above, below = _compared(operator.gt, "above"), _compared(operator.lt, "below")


def between(low: float, high: float) -> Constraint:
    """A constraint to [low, high]."""
    return must(lambda value: low <= value <= high, f"between {low} and {high}")


def one_of(*known: Any) -> Constraint:
    """A constraint to the keys of a table, or to a few numbers."""

    def check(value: Any) -> str:
        if value in known:
            return ""
        if isinstance(value, str):
            return f"unknown; {nearest(value, filter(None, map(str, known)))}"
        return f"unknown; known: {', '.join(map(str, known))}"

    return check


# -- groups ------------------------------------------------------------------------------------------------------------


@typing.dataclass_transform()
class Group:
    """Base of the groups of a config, which are dataclasses that refuse unknown names.

    A field is `name: Annotated[type, constraint, ...] = default`; the elements of a tuple may have constraints too.
    `validate` checks constraints, not assignment, so that a config file may set fields in any order.
    """

    place: ClassVar[str]  # the group's name in messages, e.g. `config.optimizer`
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]

    def __init_subclass__(cls, place: str) -> None:
        cls.place = place
        dataclasses.dataclass(cls)
        plain = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            field.type = plain[field.name]  # ml_collections parses overrides by it, and does not know Annotated

    def __new__(cls, *args: Any, **values: Any) -> typing.Self:
        for name in values:
            cls.check_name(name)
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        self.check_name(name)
        super().__setattr__(name, value)

    @classmethod
    def check_name(cls, name: str) -> None:
        """Raises ConfigError, with the nearest names, if the group has no such field."""
        if name not in cls.__dataclass_fields__:
            raise ConfigError(f"{cls.place}.{name}: unknown; {nearest(name, cls.__dataclass_fields__)}")

    def conflicts(self) -> Iterator[str]:
        """A message for each combination of fields that does not work."""
        return iter(())


G = TypeVar("G", bound=Group)


def validate(group: G) -> G:
    """Checks every field of a config or one of its groups and returns it; the ConfigError lists all wrong ones."""
    groups = list(_groups(group))
    values = [(part, field.name, field.type) for part in groups for field in dataclasses.fields(part)]
    checked = (type_problem(f"{part.place}.{name}", getattr(part, name), kind) for part, name, kind in values)
    problems = list(filter(None, checked))
    if not problems:  # constraints assume right types
        problems = [problem for part in groups for problem in (*_value_problems(part), *part.conflicts())]
    if problems:
        raise ConfigError("wrong configuration:\n" + "\n".join(f"  {problem}" for problem in problems))
    return group


def _groups(group: Group) -> Iterator[Group]:
    yield group
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if isinstance(value, Group):
            yield from _groups(value)


def _value_problems(group: Group) -> Iterator[str]:
    hints = typing.get_type_hints(type(group), include_extras=True)
    for field in dataclasses.fields(group):
        yield from _broken(f"{group.place}.{field.name}", getattr(group, field.name), hints[field.name])


def _broken(path: str, value: Any, hint: Any) -> Iterator[str]:
    """The first constraint that a value breaks, or those that its elements break."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        wrong = next(filter(None, (constraint(value) for constraint in args[1:])), "")
        if wrong:
            yield f"{path}={value!r}: {wrong}"
        else:
            yield from _broken(path, value, args[0])
    elif typing.get_origin(hint) is tuple:
        for element, kind in zip(value, args[:1] * len(value) if args[-1] is Ellipsis else args, strict=True):
            yield from _broken(path, element, kind)


# -- types -------------------------------------------------------------------------------------------------------------

# Numbers go into int32 and float32 arrays. NaN is refused too, because every comparison with it is false.
_LARGEST_INT, _LARGEST_FLOAT = 2**31 - 1, 1e30


def type_problem(path: str, value: Any, kind: Any) -> str:
    """A complaint about the type of a value; "" if it is right."""
    return "" if _is_a(value, kind) else f"{path}={value!r}: must be {_describe(kind)}"


def _is_a(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is tuple:
        args = typing.get_args(kind)
        if not isinstance(value, tuple):
            return False
        if args[-1] is Ellipsis:
            return all(_is_a(v, args[0]) for v in value)
        return len(value) == len(args) and all(_is_a(v, a) for v, a in zip(value, args, strict=True))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST_FLOAT
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_INT
    return isinstance(value, kind)


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is not tuple:
        return {
            int: f"a whole number up to {_LARGEST_INT}",
            float: "a finite number",
            str: "a string",
            bool: "True or False",
        }.get(kind, f"a {kind.__name__}")
    args = typing.get_args(kind)
    if args[-1] is Ellipsis:
        return f"a tuple of {args[0].__name__}s"
    return f"a tuple ({', '.join(a.__name__ for a in args)})"


# -- from JSON ---------------------------------------------------------------------------------------------------------


def kinds_of(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, without constraints."""
    return {field.name: field.type for field in dataclasses.fields(kind)}


def build(values: Any, kind: Any, path: str) -> Any:
    """A dataclass from the result of `dataclasses.asdict`; see `config.from_dict`."""
    kinds = kinds_of(kind)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}={values!r}: must be the group {', '.join(kinds)}")
    for name in values:
        if name not in kinds:
            raise ConfigError(f"{path}.{name}: unknown; {nearest(str(name), kinds)}")
    built = {}
    for field in dataclasses.fields(kind):
        place = f"{path}.{field.name}"
        if field.name not in values:
            if field.default is field.default_factory is dataclasses.MISSING:
                raise ConfigError(f"{place}: missing")
            continue
        value = values[field.name]
        if dataclasses.is_dataclass(field.type):
            value = build(value, field.type, place)
        built[field.name] = value = tuple(value) if isinstance(value, list) else value
        if problem := type_problem(place, value, field.type):
            raise ConfigError(problem)
    return kind(**built)
