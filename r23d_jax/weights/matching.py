"""Which code base and which network a set of weights is of, from names and shapes alone."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from r23d_jax.config import nearest
from r23d_jax.models.network import VideoNetwork
from r23d_jax.models.registry import create_model, model_spec
from r23d_jax.weights import layouts
from r23d_jax.weights.compare import listed
from r23d_jax.weights.layouts import Layout
from r23d_jax.weights.sources import SOURCES, Candidate, Source
from r23d_jax.weights.tables import ConversionError, Table, differences, make_table


@dataclasses.dataclass(frozen=True)
class Found:
    """Which network a set of weights is of.

    Attributes:
      source: a key of `SOURCES`.
      candidate: its network.
      model: the network, abstract.
      table: its values in the source's layout.
      arrays: the weights under the names of the table.
      num_classes: of its logits; 0 without a classifier.
      notes: what the user should know besides.
    """

    source: str
    candidate: Candidate
    model: VideoNetwork
    table: Table
    arrays: dict[str, np.ndarray]
    num_classes: int
    notes: tuple[str, ...]


def find(arrays: Mapping[str, np.ndarray], name: str | None = None, source: str | None = None) -> Found:
    """Finds the code base and the network that weights are of, from names and shapes alone.

    Args:
      arrays: the weights.
      name: the network that is expected, in the registry's words; None takes what it finds.
      source: the code base, a key of `SOURCES`; None finds it.

    Raises:
      ConversionError: if nothing fits exactly; names the nearest network and lists what differs from it.
    """
    if source is not None:
        _known(source)
    if name is not None:
        model_spec(name)  # refuses an unknown name
    closest: tuple[int, str, list[str]] | None = None
    matches = [key for key in _matching(arrays) if source is None or key == source]
    for key in matches:
        stripped, notes = _strip(arrays, SOURCES[key])
        for candidate in _plausible(SOURCES[key], stripped):
            model, num_classes = _abstract(candidate, stripped)
            table = make_table(model, candidate.layout)
            filled, more = _fill_statistics(stripped, table)
            problems = differences(table, filled)
            if not problems:
                found = Found(key, candidate, model, table, filled, num_classes, (*notes, *more))
                if name is not None and candidate.name != name:
                    raise ConversionError(
                        f"these weights are {candidate.name} ({SOURCES[key].title}), not {name}: "
                        f"{_why_not(name, candidate.name)}"
                    )
                return found
            if closest is None or len(problems) < closest[0]:
                closest = len(problems), f"{candidate.name} ({SOURCES[key].title})", problems
    if closest is not None:
        raise ConversionError(
            f"no network has exactly these weights; the nearest is {closest[1]}, which differs in {closest[0]} names "
            f"or shapes:\n{listed(closest[2])}"
        )
    raise ConversionError(_unknown(arrays, source))


def fit(arrays: Mapping[str, np.ndarray], model: VideoNetwork, source: str | None = None) -> tuple[Table, Layout, dict]:
    """A network's values under the names that `arrays` has, and the arrays under exactly these.

    Raises:
      ConversionError: if they do not fit; lists what is missing, left over or of another shape.
    """
    closest: list[str] | None = None
    for key in [key for key in _matching(arrays) if source is None or key == source]:
        try:
            table, layout = table_of(model, key)
        except ConversionError:
            continue
        stripped, _ = _strip(arrays, SOURCES[key])
        filled, _ = _fill_statistics(stripped, table)
        problems = differences(table, filled)
        if not problems:
            return table, layout, filled
        if closest is None or len(problems) < len(closest):
            closest = problems
    if closest is None:
        raise ConversionError(_unknown(arrays, source))
    raise ConversionError(f"the weights do not fit this network:\n{listed(closest)}")


def table_of(model: VideoNetwork, source: str) -> tuple[Table, Layout]:
    """A network's values under the names of a source.

    Raises:
      ConversionError: for an unknown source, or one that has no names for this network.
    """
    candidates = _known(source).candidates
    fitting = [c.layout for c in candidates if model_spec(c.name).bottleneck == model.spec.bottleneck]
    reason = ""
    for layout in dict.fromkeys(fitting):
        try:
            return make_table(model, layout), layout
        except ConversionError as error:
            reason = f": {error}"
    raise ConversionError(f"{SOURCES[source].title} has no names for this network{reason}")


def _known(source: str) -> Source:
    if source not in SOURCES:
        raise ConversionError(f"source {source!r} is unknown; {nearest(source, SOURCES)}")
    return SOURCES[source]


def _matching(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Sources whose telling names are there, those that are tried unasked first."""
    if is_2d(arrays):
        return []
    fitting = [key for key, source in SOURCES.items() if _prefix(arrays, source) is not None]
    return sorted(fitting, key=lambda key: not SOURCES[key].automatic)


def is_2d(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether these are the weights of an image network."""
    return any(value.ndim == 4 for value in arrays.values()) and not any(value.ndim == 5 for value in arrays.values())


def _prefix(arrays: Mapping[str, Any], source: Source) -> str | None:
    for prefix in source.prefixes:
        if all(prefix + name in arrays for name in source.has):
            return None if any(prefix + name in arrays for name in source.lacks) else prefix
    return None


def _strip(arrays: Mapping[str, np.ndarray], source: Source) -> tuple[dict[str, np.ndarray], list[str]]:
    """The weights without prefix, other forms of a name, and what is not part of the network."""
    prefix = _prefix(arrays, source)
    assert prefix is not None
    kept, dropped = {}, []
    for name, value in arrays.items():
        short = name.removeprefix(prefix)
        if any(re.fullmatch(pattern, short) for pattern in source.ignored):
            dropped.append(name)
            continue
        for pattern, replacement in source.aliases:
            short = re.sub(rf"^{pattern}$", replacement, short)
        kept[short] = value
    groups = sorted({name.split(".")[0] for name in dropped})
    return kept, [f"left out {len(dropped)} values of {', '.join(groups)}: no part of the backbone"] if dropped else []


def _plausible(source: Source, arrays: Mapping[str, np.ndarray]) -> list[Candidate]:
    """Candidates with as many residual blocks, of the same kind; shapes decide among them."""
    blocks = len({match.group() for name in arrays if (match := re.search(r"layer\d+\.\d+\.", name))})
    bottleneck = any(re.search(r"\.conv3[._]", name) for name in arrays)

    def fits(candidate: Candidate) -> bool:
        spec = model_spec(candidate.name)
        return spec.block_count == blocks and spec.bottleneck == bottleneck

    return [candidate for candidate in source.candidates if fits(candidate)]


def _abstract(candidate: Candidate, arrays: Mapping[str, np.ndarray]) -> tuple[VideoNetwork, int]:
    layout = candidate.layout
    weight = arrays.get(f"{layout.classifier}{layout.separator}{dict(layout.leaves)['kernel']}")
    if weight is None:
        num_classes = 0
    else:
        num_classes = int(weight.shape[-1] if layout.kernel == "tensorflow" else weight.shape[0])
    return _build(candidate, num_classes, _in_channels(candidate, arrays)), num_classes


def _in_channels(candidate: Candidate, arrays: Mapping[str, np.ndarray]) -> int:
    layout = candidate.layout
    for place in ("stem/conv", "stem/conv/spatial", "stem/unit/conv", "stem/unit/spatial/conv"):
        try:
            name = layouts.their_name((*place.split("/"), "kernel"), layout, False)
        except KeyError:
            continue
        if name in arrays and arrays[name].ndim == 5:
            return int(arrays[name].shape[3 if layout.kernel == "tensorflow" else 1])
    return 3


@functools.cache
def _build(candidate: Candidate, num_classes: int, in_channels: int) -> VideoNetwork:
    head = "avgpool" if num_classes else "none"
    return nnx.eval_shape(
        lambda: create_model(
            candidate.name,
            num_classes=num_classes,
            head=head,
            in_channels=in_channels,
            rngs=nnx.Rngs(0),
            **dict(candidate.fields),
        )
    )


def _fill_statistics(arrays: Mapping[str, np.ndarray], table: Table) -> tuple[dict[str, np.ndarray], list[str]]:
    """Without any running statistics (DPC trains so) mean 0 and variance 1 are put in, and said."""
    wanted = [entry for entry in table.entries if entry.path[-1] in ("mean", "var")]
    filled = {name: value for name, value in arrays.items() if name not in table.counters}
    if any(entry.name in arrays for entry in wanted):
        return filled, []
    for entry in wanted:
        filled[entry.name] = np.full(entry.shape, 0.0 if entry.path[-1] == "mean" else 1.0, np.float32)
    return filled, [
        "there are no running statistics of BN in these weights (track_running_stats=False): mean 0 and variance 1 "
        "were put in. Train the network before you evaluate it"
    ]


def _why_not(name: str, found: str) -> str:
    """What tells two networks apart, for those who expected the other."""
    wanted, has = model_spec(name), model_spec(found)
    if type(wanted) is not type(has):
        return "another architecture"
    apart = [f"{field} is {here!r}, not {there!r}" for field, (here, there) in has.changes(wanted).items()]
    return "; ".join(apart) or "the same backbone"


def _unknown(arrays: Mapping[str, np.ndarray], source: str | None) -> str:
    if is_2d(arrays):
        return (
            "these are the weights of an image network: inflate them, with --model NAME --inflate repeat, or in Python "
            "r23d_jax.inflate(weights, model)"
        )
    first = ", ".join(list(arrays)[:3])
    if source is not None:
        return (
            f"these are not weights of {SOURCES[source].title}, which have {SOURCES[source].has[0]}: they have {first}"
        )
    known = "\n".join(f"  {item.title}: {item.has[0]}" for item in SOURCES.values() if item.automatic)
    return f"no known code base names its weights like this ({first}, ...). Known, each with a name it has:\n{known}"
