"""The table of code bases whose weights can be converted."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from r23d_jax.config import Preprocessing
from r23d_jax.models.network import VideoNetwork
from r23d_jax.models.registry import FAMILIES, model_spec, names_of
from r23d_jax.weights import layouts
from r23d_jax.weights.layouts import Layout


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network that a source may hold."""

    name: str  # in the registry
    layout: Layout  # of the source
    fields: tuple[tuple[str, Any], ...] = ()  # other arguments of `create_model`


@dataclasses.dataclass(frozen=True)
class Source:
    """A code base whose weights can be read and written."""

    title: str  # for messages
    has: tuple[str, ...]  # distinctive names, after any prefix; first that of the convolution which reads the clip
    candidates: tuple[Candidate, ...]  # networks it may hold, in the order in which they are tried
    preprocessing: Preprocessing  # its networks' usual preprocessing; never part of the weights
    own: tuple[str, ...] = ()  # families that `to_torch` writes under its names by default
    prefixes: tuple[str, ...] = ()  # of its own that may precede every name
    ignored: tuple[str, ...] = ()  # patterns of names that are not part of the network
    lacks: tuple[str, ...] = ()  # names that it does not have
    aliases: tuple[tuple[str, str], ...] = ()  # (pattern, replacement) of names that come in several forms
    automatic: bool = True  # whether it is tried if no source is given
    kinetics400: bool = False  # whether its networks for Kinetics-400 have the classes in alphabetical order


def _preprocessing(
    num_frames: int, frame_stride: int, short_side: int, crop_size: int, mean: tuple, std: tuple, byte_range=False
) -> Preprocessing:
    return Preprocessing("rgb", num_frames, frame_stride, short_side, crop_size, mean, std, byte_range, antialias=False)


_KINETICS = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SYMMETRIC = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # [-1, 1]


def _all(families: Iterable[str], layout: Layout, depths: Iterable[int] = (), **fields: Any) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(name, layout, tuple(fields.items()))
        for family in families
        for name in ([f"{family}_{depth}" for depth in depths] or names_of(family))
    )


_FC_ALIASES = ((r"fc\.\d+\.(weight|bias)", r"fc.\1"),)  # fc as a Sequential of dropout and linear
IMAGENET = _preprocessing(16, 1, 128, 112, *_IMAGENET)  # of inflated image networks
_TORCHVISION = _preprocessing(16, 2, 128, 112, *_KINETICS)
_VMZ = _preprocessing(32, 1, 128, 112, *_KINETICS)
_HARA = _preprocessing(16, 1, 112, 112, (0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737))
_DEEPMIND = _preprocessing(64, 1, 256, 224, *SYMMETRIC)
# The first one counts if two code bases agree in every name and shape.
SOURCES: dict[str, Source] = {
    "torchvision": Source(
        title="torchvision",
        has=("stem.0.weight", "stem.1.weight"),
        candidates=(
            *_all(("r3d", "mc3"), layouts.TORCHVISION, (18,)),
            *_all(("r2plus1d_tv",), layouts.TORCHVISION_2PLUS1D),
        ),
        own=("r2plus1d_tv",),
        kinetics400=True,
        preprocessing=_TORCHVISION,
        aliases=_FC_ALIASES,
    ),
    "torchvision_s3d": Source(
        title="torchvision s3d (S3D-G in its style)",
        has=("features.0.0.0.weight",),
        candidates=_all(("s3d", "s3d_g"), layouts.TORCHVISION_S3D),
        own=("s3d", "s3d_g"),
        kinetics400=True,
        preprocessing=_preprocessing(128, 2, 256, 224, *_KINETICS),
    ),
    "vmz": Source(
        title="VMZ / ig65m R(2+1)D",
        has=("stem.0.weight", "stem.3.weight"),
        candidates=(
            *_all(("r2plus1d",), layouts.TORCHVISION_2PLUS1D, (34, 18, 10)),
            *_all(("r2plus1d",), layouts.TORCHVISION_2PLUS1D, (50, 101, 152), stem_pool="2d"),
        ),
        own=("r2plus1d",),
        kinetics400=True,  # ig65m's README names the list; VMZ tests with torchvision's data set
        preprocessing=_VMZ,
        aliases=_FC_ALIASES,
    ),
    **{
        key: Source(
            title="VMZ CSN",
            has=("stem.0.weight", f"layer1.0.{depthwise}.weight"),
            candidates=_all((family,), layout),
            own=(family,),
            kinetics400=True,
            preprocessing=dataclasses.replace(_VMZ, short_side=256, crop_size=224),
            aliases=_FC_ALIASES,
        )
        for key, family, layout, depthwise in (
            ("vmz_csn", "ir_csn", layouts.VMZ_IR_CSN, "conv2.0"),
            ("vmz_ip_csn", "ip_csn", layouts.VMZ_IP_CSN, "conv2.0.2"),
        )
    },
    "published": Source(
        title="the published video_resnet.py, whose names are torchvision's",
        has=("stem.0.weight", "stem.1.weight"),
        candidates=(
            *_all(("r3d", "mc3"), layouts.TORCHVISION, (18,), block_dropout=0.3),
            *_all(("r2plus1d_tv",), layouts.TORCHVISION_2PLUS1D, (18,), block_dropout=0.3),
        ),
        preprocessing=_preprocessing(16, 1, 136, 112, *SYMMETRIC, byte_range=True),
        automatic=False,
    ),
    "2d3d": Source(
        title="the published resnet_2d3d.py / DPC",
        has=("conv1.weight", "layer1.0.conv1.weight"),
        candidates=_all(("r2plus3d",), layouts.FLAT),
        preprocessing=_preprocessing(5, 3, 136, 128, *_IMAGENET),
        # DPC's aggregation, prediction, and the classifier of its linear evaluation
        ignored=(r"(agg|network_pred|convrnn|final_bn|final_fc)\..*",),
        lacks=("conv1_s.weight",),
        aliases=_FC_ALIASES,
    ),
    "mmaction2": Source(
        title="mmaction2 R(2+1)D",
        has=("backbone.conv1.conv.conv_s.weight",),
        candidates=_all(("r2plus1d_mmaction",), layouts.MMACTION),
        own=("r2plus1d_mmaction",),
        kinetics400=True,
        preprocessing=_preprocessing(8, 8, 256, 224, *_IMAGENET),
    ),
    "hara_r3d": Source(
        title="3D-ResNets-PyTorch (K. Hara) R3D",
        has=("conv1.weight", "layer1.0.conv1.weight"),
        candidates=_all(("r3d_hara",), layouts.FLAT),
        own=("r3d_hara",),
        preprocessing=_HARA,
        lacks=("conv1_s.weight",),
    ),
    # Its branch CVPR2018. Networks with projections are not told apart: `--source hara_2018` asks for these pixels
    "hara_2018": Source(
        title="3D-ResNets-PyTorch (K. Hara) R3D of 2018",
        has=("conv1.weight", "layer1.0.conv1.weight"),
        candidates=_all(("r3d_hara_a", "r3d_hara"), layouts.FLAT),
        own=("r3d_hara_a",),
        preprocessing=_preprocessing(16, 1, 112, 112, (114.7748, 107.7354, 99.475), (1.0, 1.0, 1.0), byte_range=True),
        lacks=("conv1_s.weight",),
    ),
    "hara": Source(
        title="3D-ResNets-PyTorch (K. Hara) R(2+1)D",
        has=("conv1_s.weight",),
        candidates=(
            *_all(("r2plus1d_hara",), layouts.HARA_BASIC, (10, 18, 34)),
            *_all(("r2plus1d_hara",), layouts.HARA_BOTTLENECK, (50, 101, 152, 200)),
        ),
        own=("r2plus1d_hara",),
        preprocessing=_HARA,
    ),
    "i3d_piergiaj": Source(
        title="pytorch-i3d (piergiaj)",
        has=("Conv3d_1a_7x7.conv3d.weight",),
        candidates=_all(("i3d", "i3d_gamma"), layouts.PIERGIAJ),
        own=("i3d", "i3d_gamma"),
        kinetics400=True,
        preprocessing=_DEEPMIND,
    ),
    "i3d_hassony2": Source(
        title="kinetics_i3d_pytorch (hassony2)",
        has=("conv3d_1a_7x7.conv3d.weight",),
        candidates=_all(("i3d", "i3d_gamma"), layouts.HASSONY2),
        kinetics400=True,
        preprocessing=_DEEPMIND,
    ),
    "i3d_deepmind": Source(
        title="kinetics-i3d (DeepMind)",
        has=("Conv3d_1a_7x7/conv_3d/w",),
        candidates=_all(("i3d",), layouts.DEEPMIND),
        kinetics400=True,
        preprocessing=_DEEPMIND,
        prefixes=("RGB/inception_i3d/", "Flow/inception_i3d/"),
    ),
}
_OWNED = {family for source in SOURCES.values() for family in source.own}
_UNOWNED = [name for name, spec in FAMILIES.items() if spec.block_count and name not in _OWNED]
# Those whose own names are not in torchvision's style, as the torch definition's are
_RESTYLED = ("hara", "hara_r3d", "hara_2018", "mmaction2")
# Last: residual networks that no other code base has, or has at one depth only; and the restyled ones
SOURCES["r23d_jax"] = Source(
    title="r23d_jax (torchvision's style)",
    has=("stem.0.weight", "stem.1.weight"),
    candidates=(
        *_all(_UNOWNED, layouts.TORCHVISION),
        *_all(("r3d_hara", "r3d_hara_a"), layouts.TORCHVISION),
        *_all(("r2plus1d_hara", "r2plus1d_mmaction"), layouts.TORCHVISION_2PLUS1D),
    ),
    preprocessing=_TORCHVISION,
)


def source_of(model: VideoNetwork) -> str:
    """The source whose names a network gets by default: its own code base's, or this project's."""
    if any(model_spec(candidate.name) == model.spec for candidate in SOURCES["torchvision"].candidates):
        return "torchvision"
    if getattr(model.spec, "stem", "") == "motion":  # no other code has it
        return "r23d_jax"
    return next((key for key, source in SOURCES.items() if model.spec.family in source.own), "r23d_jax")


def definition_source(model: VideoNetwork) -> str:
    """The source whose names the torch definition has for a network."""
    source = source_of(model)
    return "r23d_jax" if source in _RESTYLED else source
