"""Where weights come from: the table of code bases, and which one a set of names and shapes belongs to."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from r23d_jax.config import HeadConfig, ModelConfig, Preprocessing, UserError, nearest
from r23d_jax.models.functional import split_model
from r23d_jax.models.inception import InceptionSpec
from r23d_jax.models.network import VideoNetwork
from r23d_jax.models.registry import FAMILIES, INCEPTIONS, create_model, depths_of, model_spec
from r23d_jax.weights import layouts
from r23d_jax.weights.layouts import Layout

Shapes = Mapping[str, tuple[int, ...]]


class ConversionError(UserError, ValueError):
    """Weights do not fit the network; the message lists every name that is missing, left over or of another shape."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network that a source may hold, and the names it has there.

    Attributes:
      name: in the registry.
      layout: of the source.
      fields: of `create_model`, besides.
    """

    name: str
    layout: Layout
    fields: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Source:
    """A code base whose weights can be read and written.

    Attributes:
      title: for messages.
      has: names that tell it from all others, after its prefix.
      candidates: what it may hold, in the order in which they are tried.
      preprocessing: what its networks were trained with, as far as known; never part of the weights.
      prefixes: that may precede every name.
      ignored: patterns of names that are no part of the network.
      lacks: names that it does not have.
      aliases: (pattern, replacement) of names that come in several forms.
      automatic: whether it is tried where no source is asked for.
    """

    title: str
    has: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    preprocessing: Preprocessing
    prefixes: tuple[str, ...] = ("",)
    ignored: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    automatic: bool = True


def _preprocessing(
    num_frames: int, frame_stride: int, short_side: int, crop_size: int, mean: tuple, std: tuple, byte_range=False
) -> Preprocessing:
    return Preprocessing(
        input="rgb",
        num_frames=num_frames,
        frame_stride=frame_stride,
        short_side=short_side,
        crop_size=crop_size,
        mean=mean,
        std=std,
        byte_range=byte_range,
        antialias=False,
    )


def config_of(name: str) -> ModelConfig:
    """The config group that builds a network of the registry, without dropout."""
    family, _, depth = name.rpartition("_") if name not in INCEPTIONS else (name, "", "18")
    model_spec(name)  # refuses an unknown name
    return ModelConfig(family=family, depth=int(depth), head=HeadConfig(kind="avgpool", dropout=0.0))


_KINETICS = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SYMMETRIC = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # [-1, 1]


def _all(families: Iterable[str], layout: Layout, depths: Iterable[int] = (), **fields: Any) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(f"{family}_{depth}", layout, tuple(fields.items()))
        for family in families
        for depth in depths or depths_of(family)
    )


_FULL_STEM = tuple(
    name for name, spec in FAMILIES.items() if spec.stem != "factorized" and "csn" not in spec.convolutions[0]
)
_FC_ALIASES = ((r"fc\.\d+\.(weight|bias)", r"fc.\1"),)  # fc as a Sequential of dropout and linear
IMAGENET = _preprocessing(16, 1, 128, 112, *_IMAGENET)  # of inflated image networks
_TORCHVISION = _preprocessing(16, 2, 128, 112, *_KINETICS)
_VMZ = _preprocessing(32, 1, 128, 112, *_KINETICS)
_DEEPMIND = _preprocessing(64, 1, 256, 224, *_SYMMETRIC)

# The order decides where two code bases agree in every name and shape.
SOURCES: dict[str, Source] = {
    "torchvision": Source(
        title="torchvision",
        has=("stem.0.weight", "stem.1.weight"),
        candidates=(
            *_all(("r3d", "mc3"), layouts.TORCHVISION, (18,)),
            *_all(("r2plus1d_tv",), layouts.TORCHVISION_2PLUS1D),
        ),
        preprocessing=_TORCHVISION,
        aliases=_FC_ALIASES,
    ),
    "torchvision_s3d": Source(
        title="torchvision s3d",
        has=("features.0.0.0.weight",),
        candidates=(Candidate("s3d", layouts.TORCHVISION_S3D),),
        preprocessing=_preprocessing(128, 2, 256, 224, *_KINETICS),
    ),
    "vmz": Source(
        title="VMZ / ig65m R(2+1)D",
        has=("stem.3.weight",),
        candidates=(
            *_all(("r2plus1d",), layouts.TORCHVISION_2PLUS1D, (34, 18, 10)),
            *_all(("r2plus1d",), layouts.TORCHVISION_2PLUS1D, (50, 101, 152), stem_pool="2d"),
        ),
        preprocessing=_VMZ,
        aliases=_FC_ALIASES,
    ),
    "vmz_csn": Source(
        title="VMZ CSN",
        has=("stem.0.weight", "layer1.0.conv2.0.weight"),
        candidates=_all(("ir_csn",), layouts.VMZ_IR_CSN),
        preprocessing=dataclasses.replace(_VMZ, short_side=256, crop_size=224),
        aliases=_FC_ALIASES,
    ),
    "vmz_ip_csn": Source(
        title="VMZ CSN",
        has=("stem.0.weight", "layer1.0.conv2.0.2.weight"),
        candidates=_all(("ip_csn",), layouts.VMZ_IP_CSN),
        preprocessing=dataclasses.replace(_VMZ, short_side=256, crop_size=224),
        aliases=_FC_ALIASES,
    ),
    "published": Source(
        title="the published video_resnet.py, whose names are torchvision's",
        has=("stem.0.weight", "stem.1.weight"),
        candidates=(
            *_all(("r3d", "mc3"), layouts.TORCHVISION, (18,), block_dropout=0.3),
            *_all(("r2plus1d_tv",), layouts.TORCHVISION_2PLUS1D, (18,), block_dropout=0.3),
        ),
        preprocessing=_preprocessing(16, 1, 136, 112, *_SYMMETRIC, byte_range=True),
        automatic=False,
    ),
    "2d3d": Source(
        title="the published resnet_2d3d.py / DPC",
        has=("conv1.weight", "layer1.0.conv1.weight"),
        candidates=_all(("r2plus3d",), layouts.FLAT),
        preprocessing=_preprocessing(5, 3, 136, 128, *_IMAGENET),
        prefixes=("backbone.", "resnet.", ""),
        # What DPC puts on top: the aggregation, the prediction, and the classifier of its linear evaluation.
        ignored=(r"(agg|network_pred|convrnn|final_bn|final_fc)\..*",),
        lacks=("conv1_s.weight",),
        aliases=_FC_ALIASES,
    ),
    "mmaction2": Source(
        title="mmaction2 R(2+1)D",
        has=("backbone.conv1.conv.conv_s.weight",),
        candidates=_all(("r2plus1d_mmaction",), layouts.MMACTION),
        preprocessing=_preprocessing(8, 8, 256, 224, *_IMAGENET),
    ),
    "hara": Source(
        title="3D-ResNets-PyTorch (K. Hara) R(2+1)D",
        has=("conv1_s.weight",),
        candidates=(
            *_all(("r2plus1d_hara",), layouts.HARA_BASIC, (10, 18, 34)),
            *_all(("r2plus1d_hara",), layouts.HARA_BOTTLENECK, (50, 101, 152)),
        ),
        preprocessing=_preprocessing(16, 1, 112, 112, (0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737)),
    ),
    "i3d_piergiaj": Source(
        title="pytorch-i3d (piergiaj)",
        has=("Conv3d_1a_7x7.conv3d.weight",),
        candidates=(Candidate("i3d", layouts.PIERGIAJ), Candidate("i3d_gamma", layouts.PIERGIAJ)),
        preprocessing=_DEEPMIND,
    ),
    "i3d_hassony2": Source(
        title="kinetics_i3d_pytorch (hassony2)",
        has=("conv3d_1a_7x7.conv3d.weight",),
        candidates=(Candidate("i3d", layouts.HASSONY2), Candidate("i3d_gamma", layouts.HASSONY2)),
        preprocessing=_DEEPMIND,
    ),
    "i3d_deepmind": Source(
        title="kinetics-i3d (DeepMind)",
        has=("Conv3d_1a_7x7/conv_3d/w",),
        candidates=(Candidate("i3d", layouts.DEEPMIND),),
        preprocessing=_DEEPMIND,
        prefixes=("RGB/inception_i3d/", "Flow/inception_i3d/"),
    ),
    # Last: what `to_torch` writes for networks that no other code base has.
    "r23d_jax": Source(
        title="r23d_jax (torchvision's style)",
        has=("stem.0.weight", "stem.1.weight"),
        candidates=_all(_FULL_STEM, layouts.TORCHVISION),
        preprocessing=_TORCHVISION,
    ),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One value of a network: where it is in our trees, and its name and shape in a layout."""

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """All values of a network in a layout; `gammas` are those that the network does not have, and which must be one."""

    entries: tuple[Entry, ...]
    gammas: tuple[tuple[str, tuple[int, ...]], ...]
    counters: tuple[str, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Their names and shapes."""
        return {entry.name: entry.shape for entry in self.entries} | dict(self.gammas)


def make_table(model: VideoNetwork, layout: Layout) -> Table:
    """Names every value of a network, which may be abstract.

    Raises:
      ConversionError: if the layout has no name for a part of it.
    """
    _, params, batch_stats = split_model(model)
    only_classifier = set(params.get("head", {})) == {"classifier"}
    norm_leaves = dict(layout.norm_leaves)
    entries, gammas, counters = [], [], []
    for path, leaf in (*flatten(params), *flatten(batch_stats)):
        try:
            name = layouts.their_name(path, layout, only_classifier)
        except KeyError as error:
            raise ConversionError(f"these names have none for {error.args[0]}: it is another network's") from None
        empty = np.broadcast_to(np.zeros((), np.float32), leaf.shape)
        shape = layouts.encode(path, empty, layout).shape
        entries.append(Entry(path, name, shape))
        if path[-1] == "var":
            module = name.removesuffix(norm_leaves["var"])
            if layout.counter:
                counters.append(module + layout.counter)
            if layout.gammas and not _has(params, (*path[:-1], "scale")):
                gammas.append((module + norm_leaves["scale"], shape))
    return Table(tuple(entries), tuple(gammas), tuple(counters))


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
    if source is not None and source not in SOURCES:
        raise ConversionError(f"source {source!r} is unknown; {nearest(source, SOURCES)}")
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


def _matching(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Sources whose telling names are there."""

    def fits(key: str) -> bool:
        source = SOURCES[key]
        return _prefix(arrays, source) is not None and (key != "2d3d" or not is_2d(arrays))

    automatic = [key for key, source in SOURCES.items() if source.automatic and fits(key)]
    return automatic + [key for key, source in SOURCES.items() if not source.automatic and fits(key)]


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
        layers = getattr(spec, "layers", ())
        return sum(layers) == blocks and getattr(spec, "bottleneck", bottleneck) == bottleneck

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


def differences(table: Table, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """What keeps weights from being those of the table, one line each."""
    wanted = table.shapes
    problems = [f"{name}: missing" for name in wanted if name not in arrays]
    problems += [f"{name}: not in this network" for name in arrays if name not in wanted]
    problems += [
        f"{name}: {list(arrays[name].shape)}, expected {list(shape)}"
        for name, shape in wanted.items()
        if name in arrays and arrays[name].shape != shape
    ]
    problems += [
        f"{name}: holds values that are not finite"
        for name in wanted
        if name in arrays and not np.all(np.isfinite(arrays[name]))
    ]
    problems += [
        f"{name}: not all ones, and this network's BN has no gamma"
        for name, _ in table.gammas
        if name in arrays and not np.all(arrays[name] == 1)
    ]
    return problems


def listed(problems: list[str]) -> str:
    """At most a dozen lines, and how many more there are."""
    return "\n".join(
        [f"  {line}" for line in problems[:12]] + [f"  and {len(problems) - 12} more"] * (len(problems) > 12)
    )


def _why_not(name: str, found: str) -> str:
    """What tells two networks apart, for those who expected the other."""
    wanted, has = model_spec(name), model_spec(found)
    if type(wanted) is not type(has):
        return "another architecture"
    apart = [
        f"{field.name} is {getattr(has, field.name)!r}, not {getattr(wanted, field.name)!r}"
        for field in dataclasses.fields(has)
        if getattr(has, field.name) != getattr(wanted, field.name)
    ]
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


def source_of(model: VideoNetwork) -> str:
    """The source whose names `to_torch` gives a network by default: its own code base's, or else torchvision's."""
    spec: Any = model.spec
    own = (
        ("torchvision_s3d", getattr(spec, "separable", False)),
        ("i3d_piergiaj", isinstance(spec, InceptionSpec)),
        ("vmz_csn", getattr(spec, "convolutions", ("",))[0] == "ir_csn"),
        ("vmz_ip_csn", getattr(spec, "convolutions", ("",))[0] == "ip_csn"),
        ("mmaction2", getattr(spec, "factorized_shortcut", False)),
        ("hara", getattr(spec, "stem_time_kernel", 3) == 7),
        ("vmz", getattr(spec, "stem", "") == "factorized"),
    )
    return next((source for source, is_so in own if is_so), "r23d_jax")


def table_of(model: VideoNetwork, source: str) -> tuple[Table, Layout]:
    """A network's values under the names of a source.

    Raises:
      ConversionError: for an unknown source, or one that has no names for this network.
    """
    if source not in SOURCES:
        raise ConversionError(f"source {source!r} is unknown; {nearest(source, SOURCES)}")
    bottleneck = getattr(model.spec, "bottleneck", False)
    fitting = [
        candidate.layout
        for candidate in SOURCES[source].candidates
        if getattr(model_spec(candidate.name), "bottleneck", False) == bottleneck
    ]
    reason = ""
    for layout in dict.fromkeys(fitting):
        try:
            return make_table(model, layout), layout
        except ConversionError as error:
            reason = f": {error}"
    raise ConversionError(f"{SOURCES[source].title} has no names for this network{reason}")


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


def flatten(tree: dict[str, Any]) -> list[tuple[tuple[str, ...], Any]]:
    """Every leaf of nested dicts with its path."""
    return [(tuple(e.key for e in path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def part_of(path: tuple[str, ...]) -> str:
    """The part of a network that a value belongs to: "stem", "stage1" .. "stage4" or "head"."""
    return path[0] if path[0] != "stages" else f"stage{int(path[1]) + 1}"


def _has(tree: dict[str, Any], path: tuple[str, ...]) -> bool:
    node: Any = tree
    for key in path:
        if not isinstance(node, dict) or key not in node:
            return False
        node = node[key]
    return True
