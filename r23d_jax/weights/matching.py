"""Finds the code base and the network of a set of weights, and a class that may load them, from names and shapes."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flax import nnx

from r23d_jax.config import nearest
from r23d_jax.models.network import VideoNetwork
from r23d_jax.models.registry import create_model, model_spec
from r23d_jax.weights import layouts
from r23d_jax.weights.compare import listed
from r23d_jax.weights.sources import SOURCES, Candidate, Source, source_of
from r23d_jax.weights.tables import ConversionError, Table, differences, make_table

# Modules that training code wraps a network in: DataParallel, torch.compile, Lightning and the like
_WRAPPERS = r"(?:(?:module|model|net|network|backbone|encoder|resnet|_orig_mod)\.)*"
# Arrays beside the weights -> why they are not needed
_IGNORED = (
    (r"(.*\.)?total_(ops|params)", "a profiler's counters"),
    (r"(criterion|loss|loss_fn)\..*", "part of the loss"),
    (r"n_averaged", "the count of averaged states"),
)

# Fields of a backbone that are arguments of its class, or do nothing in evaluation
_NOT_COMPARED = ("layers", "widths", "block_dropout", "stochastic_depth", "bn_momentum")


@dataclasses.dataclass(frozen=True)
class Found:
    """A network that a set of weights was compared with."""

    source: str  # a key of `SOURCES`
    model: VideoNetwork  # the network, perhaps abstract
    table: Table  # its values in the source's layout
    arrays: dict[str, np.ndarray]  # the weights under the names of the table
    notes: tuple[str, ...]  # for the user
    problems: list[str]  # differences between the two, one line each
    candidate: Candidate = Candidate("", layouts.TORCHVISION)  # of the source, if the network was found
    num_classes: int = 0  # of its logits, if the network was found; 0 without a classifier


def find(arrays: Mapping[str, np.ndarray], name: str | None = None, source: str | None = None) -> Found:
    """Finds the code base and the network of a set of weights.

    Args:
      name: the expected network's name in the registry; None accepts any.
      source: the code base, a key of `SOURCES`; None finds it.

    Raises:
      ConversionError: if nothing fits exactly; names the nearest network and lists the differences.
    """
    if name is not None:
        model_spec(name)  # refuses an unknown name
    attempts = []
    for key, stripped, notes in _matching(arrays, source):
        for candidate in _plausible(SOURCES[key], stripped):
            model, num_classes = _abstract(candidate, stripped, SOURCES[key])
            found = _compared(key, model, make_table(model, candidate.layout), stripped, notes)
            found = dataclasses.replace(found, candidate=candidate, num_classes=num_classes)
            if found.problems:
                attempts.append(found)
            elif name in (None, candidate.name):
                return found
            else:
                raise ConversionError(
                    f"these weights are {candidate.name} ({SOURCES[key].title}), not {name}: "
                    f"{_why_not(name, candidate.name)}"
                )
    best = _nearest(attempts, arrays, source)
    raise ConversionError(
        f"no network has exactly these weights; the nearest is {best.candidate.name} ({SOURCES[best.source].title}), "
        f"which differs in {len(best.problems)} names or shapes:\n{listed(best.problems)}"
    )


def fit(arrays: Mapping[str, np.ndarray], model: VideoNetwork, source: str | None = None) -> Found:
    """Compares weights with a network; raises ConversionError that lists missing, additional and misshapen names."""
    attempts = []
    for key, stripped, notes in _matching(arrays, source):
        try:
            table = table_of(model, key)
        except ConversionError:
            continue
        attempts.append(_compared(key, model, table, stripped, notes))
    attempts.sort(key=lambda found: found.source != source_of(model))  # if names are those of several sources
    best = _nearest(attempts, arrays, source)
    if best.problems:
        raise ConversionError(f"the weights do not fit this network:\n{listed(best.problems)}")
    return best


def _compared(key: str, model: VideoNetwork, table: Table, arrays: dict[str, np.ndarray], notes: list[str]) -> Found:
    filled, more = _fill_statistics(arrays, table)
    return Found(key, model, table, filled, (*notes, *more), differences(table, filled))


def _nearest(attempts: list[Found], arrays: Mapping[str, np.ndarray], source: str | None) -> Found:
    if not attempts:
        raise ConversionError(_unknown(arrays, source))
    return min(attempts, key=lambda found: len(found.problems))


def table_of(model: VideoNetwork, source: str) -> Table:
    """A network's values under the names of a source; raises ConversionError if it has none, or is unknown."""
    candidates = _known(source).candidates
    fitting = [c.layout for c in candidates if model_spec(c.name).bottleneck == model.spec.bottleneck]
    reason = ""
    for layout in dict.fromkeys(fitting):
        try:
            return make_table(model, layout)
        except ConversionError as error:
            reason = f": {error}"
    raise ConversionError(f"{SOURCES[source].title} has no names for this network{reason}")


def differs_from_class(model: VideoNetwork, source: str) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """The fields, but for depth and widths, in which a network is not what a class computes that may load its values.

    Args:
      source: under whose names they are. A code base has a class for them. This project has none, but its names are
        torchvision's, so that a class of another code base may load them.

    Returns:
      The code base of the class, and by name (the network's, that of the most similar network of the class); ("", {})
      if they agree, or no class loads the values.
    """
    keys, table = [source], None
    if source == "r23d_jax":
        keys, table = [key for key in SOURCES if key != source], table_of(model, source)
    unlike = []
    for key in keys:
        for candidate in SOURCES[key].candidates:
            spec = model_spec(candidate.name).vary(dict(candidate.fields))
            kin = type(spec) is type(model.spec) and spec.bottleneck == model.spec.bottleneck
            if kin and (table is None or (candidate.layout is table.layout and _takes(spec, model, table))):
                changes = model.spec.changes(spec).items()
                unlike.append((key, {name: pair for name, pair in changes if name not in _NOT_COMPARED}))
    key, fields = min(unlike, key=lambda item: len(item[1]), default=("", {}))
    return (key, fields) if fields else ("", {})


def _takes(spec: Any, model: VideoNetwork, table: Table) -> bool:
    """Whether a backbone, in the depth and widths of a network, with an average pool has the names of its table."""
    if any(entry.path[0] == "head" and entry.path[1] != "classifier" for entry in table.entries):
        return False
    spec = dataclasses.replace(spec, **{name: getattr(model.spec, name) for name in ("layers", "widths")})
    like = nnx.eval_shape(
        lambda: spec.build(
            model.head,
            in_channels=model.in_channels,
            num_frames=model.num_frames,
            dtype=np.float32,
            remat=False,
            rngs=nnx.Rngs(0),
        )
    )
    return make_table(like, table.layout).shapes == table.shapes


def _known(source: str) -> Source:
    if source not in SOURCES:
        raise ConversionError(f"source {source!r} is unknown; {nearest(source, SOURCES)}")
    return SOURCES[source]


def _matching(
    arrays: Mapping[str, np.ndarray], only: str | None
) -> Iterator[tuple[str, dict[str, np.ndarray], list[str]]]:
    """Sources whose distinctive names are there, automatic ones first, each with what `_strip` gives."""
    keys = sorted(SOURCES, key=lambda key: not SOURCES[key].automatic)
    if only is not None:
        _known(only)
        keys = [only]
    for key in keys:
        prefix = None if is_2d(arrays) else _prefix(arrays, SOURCES[key])
        if prefix is not None:
            yield key, *_strip(arrays, SOURCES[key], prefix)


def is_2d(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether these are the weights of an image network."""
    return any(value.ndim == 4 for value in arrays.values()) and not any(value.ndim == 5 for value in arrays.values())


def _prefix(arrays: Mapping[str, Any], source: Source) -> str | None:
    """What precedes the names of a source: nothing, modules that wrap a network, or the source's own prefix."""
    first = source.has[0]
    prefixes = [name.removesuffix(first) for name in arrays if name.endswith(first)]
    fitting = [
        prefix
        for prefix in prefixes
        if (re.fullmatch(_WRAPPERS, prefix) or prefix in source.prefixes)
        and all(prefix + name in arrays for name in source.has)
        and not any(prefix + name in arrays for name in source.lacks)
    ]
    return min(fitting, key=len, default=None)


def without_prefix(name: str, prefix: str) -> str:
    """A name without a prefix, or without as many of the prefix's leading modules as it has."""
    while prefix and not name.startswith(prefix):
        prefix = re.sub(r"[^.]*\.?$", "", prefix[:-1])
    return name.removeprefix(prefix)


def unwrapped(arrays: Mapping[str, np.ndarray], names: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays without modules that wrap a network which has one of `names`; ConversionError if two collide."""
    pattern = rf"({_WRAPPERS})({'|'.join(map(re.escape, names))})"
    prefix = next((match[1] for name in arrays if (match := re.fullmatch(pattern, name))), "")
    short = {without_prefix(name, prefix): value for name, value in arrays.items()}
    if len(short) < len(arrays):
        raise ConversionError(f"arrays with and without the prefix {prefix} have the same names; save only one network")
    return short


def _strip(arrays: Mapping[str, np.ndarray], source: Source, prefix: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """The network's weights under the source's names, and notes on those left out; ConversionError if two collide."""
    kept, origins = {}, {}
    dropped: dict[str, list[str]] = {}
    ignored = (*_IGNORED, *((pattern, "not part of the backbone") for pattern in source.ignored))
    for name, value in arrays.items():
        short = without_prefix(name, prefix)
        reason = next((reason for pattern, reason in ignored if re.fullmatch(pattern, short)), None)
        if reason is not None:
            dropped.setdefault(reason, []).append(short)
            continue
        for pattern, replacement in source.aliases:
            short = re.sub(rf"^{pattern}$", replacement, short)
        if short in kept:
            raise ConversionError(
                f"{origins[short]} and {name} would both become {short}: a classifier of several layers is not "
                "supported, and no array may be lost. To convert the backbone alone, save the file without the "
                "classifier; --num-classes then adds a new one"
            )
        kept[short], origins[short] = value, name
    return kept, [
        f"left out {len(names)} arrays, {reason}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for reason, names in dropped.items()
    ]


def _plausible(source: Source, arrays: Mapping[str, np.ndarray]) -> list[Candidate]:
    """Candidates with the same number and kind of residual blocks; shapes decide among them."""
    blocks = len({match.group() for name in arrays if (match := re.search(r"layer\d+\.\d+\.", name))})
    bottleneck = any(re.search(r"\.conv3[._]", name) for name in arrays)

    def fits(candidate: Candidate) -> bool:
        spec = model_spec(candidate.name)
        return spec.block_count == blocks and spec.bottleneck == bottleneck

    return [candidate for candidate in source.candidates if fits(candidate)]


def _abstract(candidate: Candidate, arrays: Mapping[str, np.ndarray], source: Source) -> tuple[VideoNetwork, int]:
    layout = candidate.layout
    weight = arrays.get(f"{layout.classifier}{layout.separator}{dict(layout.leaves)['kernel']}")
    stem, out_axis, in_axis = arrays[source.has[0]], *((-1, -2) if layout.kernel == "tensorflow" else (0, 1))
    num_classes = 0 if weight is None or not weight.ndim else weight.shape[out_axis]
    return _build(candidate, num_classes, stem.shape[in_axis] if stem.ndim == 5 else 3), num_classes


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
    """Fills in mean 0 and variance 1, with a note, if there are no running statistics at all (DPC's training)."""
    wanted = [entry for entry in table.entries if entry.path[-1] in ("mean", "var")]
    filled = {name: value for name, value in arrays.items() if name not in table.counters}
    if any(entry.name in arrays for entry in wanted):
        return filled, []
    for entry in wanted:
        filled[entry.name] = np.full(entry.shape, 0.0 if entry.path[-1] == "mean" else 1.0, np.float32)
    return filled, [
        "these weights have no running statistics of BN (track_running_stats=False): mean 0 and variance 1 were filled "
        "in. Train the network before you evaluate it"
    ]


def _why_not(name: str, found: str) -> str:
    """How the network that was found differs from the expected one."""
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
            f"these are not weights of {SOURCES[source].title}, which have {' and '.join(SOURCES[source].has)}: they "
            f"have {first}"
        )
    known = "\n".join(f"  {item.title}: {item.has[0]}" for item in SOURCES.values() if item.automatic)
    return (
        f"no known code base names its weights like this ({first}, ...). Known ones, each with a typical name:\n{known}"
    )
