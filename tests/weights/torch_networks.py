"""The networks of other code bases in torch, written from their definitions, under the names that they have there.

Each is a tree of named modules and a `stages` function from a clip (B, C, T, H, W) to the outputs of its stem and its
stages. Widths can be narrowed; names and order of layers do not change with them.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from r23d_jax.weights import torch_definition

DEPTHS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
DEPTHS |= {152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
WIDTHS = (64, 128, 256, 512)


def conv(
    entering: int, leaving: int, kernel: Any, stride: Any = 1, padding: Any = 0, groups: int = 1, bias: bool = False
) -> nn.Conv3d:
    return nn.Conv3d(entering, leaving, kernel, stride, padding, groups=groups, bias=bias)


def formula(entering: int, leaving: int, time: int = 3, size: int = 3) -> int:
    return time * size**2 * entering * leaving // (size**2 * entering + time * leaving)


class Network(nn.Module):
    """Modules by dotted name, and the functions that run them."""

    def __init__(self, epsilon: float = 1e-5):
        super().__init__()
        self.epsilon = epsilon
        self.parts: list[Callable] = []
        self.head: Callable = lambda x: x

    def add(self, name: str, module: nn.Module) -> nn.Module:
        parent: nn.Module = self
        *path, leaf = name.split(".")
        for part in path:
            if part not in dict(parent.named_children()):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(leaf, module)
        return module

    def norm(self, name: str, channels: int, epsilon: float | None = None) -> nn.Module:
        return self.add(name, nn.BatchNorm3d(channels, eps=self.epsilon if epsilon is None else epsilon))

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        outputs = []
        for part in self.parts:
            x = part(x)
            outputs.append(x)
        return outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(x)[-1])


def chain(*steps: Callable) -> Callable:
    return lambda x: functools.reduce(lambda value, step: step(value), steps, x)


def mean_then(linear: nn.Module) -> Callable:
    return lambda x: linear(x.mean(dim=(2, 3, 4)))


def residual(body: Callable, shortcut: Callable | None, relu: bool = True) -> Callable:
    def run(x: torch.Tensor) -> torch.Tensor:
        y = body(x) + (x if shortcut is None else shortcut(x))
        return functional.relu(y) if relu else y

    return run


# -- torchvision's style: the published video_resnet.py, VMZ -----------------------------------------------------------


def torchvision_style(depth: int, kind: str | tuple[str, ...], widths=WIDTHS, classes=400, **fields: Any) -> nn.Module:
    """The project's own torch definition, whose fields are given by hand; `kind` of all stages, or of each."""
    kinds = (kind,) * 4 if isinstance(kind, str) else kind
    fields |= {"backbone": "resnet", "convolutions": kinds, "layers": DEPTHS[depth], "bottleneck": depth >= 50}
    return torch_definition.build(fields | {"widths": widths, "num_classes": classes})


# -- resnet_2d3d.py of the published code and DPC ----------------------------------------------------------------------


def resnet_2d3d(depth: int, prefix: str = "", widths=(64, 128, 256, 256), track=True) -> Network:
    net, relu = Network(), functional.relu
    expansion = 4 if depth >= 50 else 1

    def norm(name: str, channels: int) -> nn.Module:
        return net.add(name, nn.BatchNorm3d(channels, track_running_stats=track))

    first = net.add(f"{prefix}conv1", conv(3, widths[0], (1, 7, 7), (1, 2, 2), (0, 3, 3)))
    pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
    net.parts.append(chain(first, norm(f"{prefix}bn1", widths[0]), relu, pool))
    entering = widths[0]
    for stage, (width, count) in enumerate(zip(widths, DEPTHS[depth], strict=True), start=1):
        size, pad = ((1, 3, 3), (0, 1, 1)) if stage < 3 else (3, 1)
        blocks = []
        for block in range(count):
            name, stride = f"{prefix}layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            strides = (1, stride, stride) if stage < 3 else stride
            if expansion == 4:
                steps = [net.add(f"{name}.conv1", conv(entering, width, 1)), norm(f"{name}.bn1", width), relu]
                steps += [net.add(f"{name}.conv2", conv(width, width, size, strides, pad)), norm(f"{name}.bn2", width)]
                steps += [relu, net.add(f"{name}.conv3", conv(width, width * 4, 1)), norm(f"{name}.bn3", width * 4)]
            else:
                steps = [
                    net.add(f"{name}.conv1", conv(entering, width, size, strides, pad)),
                    norm(f"{name}.bn1", width),
                ]
                steps += [relu, net.add(f"{name}.conv2", conv(width, width, size, 1, pad)), norm(f"{name}.bn2", width)]
            shortcut = None
            if stride > 1 or entering != width * expansion:
                down = net.add(f"{name}.downsample.0", conv(entering, width * expansion, 1, strides))
                shortcut = chain(down, norm(f"{name}.downsample.1", width * expansion))
            blocks.append(residual(chain(*steps), shortcut, relu=not (stage == 4 and block == count - 1)))
            entering = width * expansion
        net.parts.append(chain(*blocks))
    return net


# -- mmaction2 ---------------------------------------------------------------------------------------------------------


def mmaction(depth: int, widths=WIDTHS, classes=400) -> Network:
    """BN inside the pairs has torch's epsilon: `norm_cfg` of the config does not reach it."""
    net, relu = Network(1e-3), functional.relu

    def pair(name: str, entering: int, leaving: int, kernel: tuple, stride: tuple, mid: int) -> Callable:
        time, size, _ = kernel
        spatial = conv(entering, mid, (1, size, size), (1, *stride[1:]), (0, size // 2, size // 2))
        temporal = conv(mid, leaving, (time, 1, 1), (stride[0], 1, 1), (time // 2, 0, 0))
        steps = [net.add(f"{name}.conv.conv_s", spatial), net.norm(f"{name}.conv.bn_s", mid, 1e-5), relu]
        return chain(*steps, net.add(f"{name}.conv.conv_t", temporal), net.norm(f"{name}.bn", leaving))

    stem = pair("backbone.conv1", 3, widths[0], (3, 7, 7), (1, 2, 2), 83)
    net.parts.append(chain(stem, relu, nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))))
    entering = widths[0]
    for stage, (width, count) in enumerate(zip(widths, DEPTHS[depth], strict=True), start=1):
        blocks = []
        for block in range(count):
            name, stride = f"backbone.layer{stage}.{block}", (2,) * 3 if stage > 1 and block == 0 else (1,) * 3
            one = pair(f"{name}.conv1", entering, width, (3, 3, 3), stride, formula(entering, width))
            two = pair(f"{name}.conv2", width, width, (3, 3, 3), (1, 1, 1), formula(width, width))
            shortcut = None
            if stride[0] > 1 or entering != width:
                shortcut = pair(
                    f"{name}.downsample", entering, width, (1, 1, 1), stride, formula(entering, width, 3, 1)
                )
            blocks.append(residual(chain(one, relu, two), shortcut))
            entering = width
        net.parts.append(chain(*blocks))
    net.head = mean_then(net.add("cls_head.fc_cls", nn.Linear(entering, classes)))
    return net


# -- 3D-ResNets-PyTorch ------------------------------------------------------------------------------------------------


def hara(depth: int, widths=WIDTHS, classes=400) -> Network:
    net, relu = Network(), functional.relu
    bottleneck = depth >= 50
    expansion = 4 if bottleneck else 1

    def pair(name: str, number: int, entering: int, leaving: int, mid: int, stride: int, first=(1, 3, 3), time=3):
        prefix = f"{name}.conv{number}" if name else f"conv{number}"
        norm = f"{name}.bn{number}" if name else f"bn{number}"
        pad = (0, first[1] // 2, first[2] // 2)
        strides = (1, 2, 2) if not name else (1, stride, stride)
        spatial = net.add(f"{prefix}_s", conv(entering, mid, first, strides, pad))
        steps = [spatial, net.norm(f"{norm}_s", mid), relu]
        temporal = conv(mid, leaving, (time, 1, 1), (stride, 1, 1), (time // 2, 0, 0))
        return chain(*steps, net.add(f"{prefix}_t", temporal), net.norm(f"{norm}_t", leaving))

    stem = pair("", 1, 3, widths[0], 110, 1, (1, 7, 7), 7)
    net.parts.append(chain(stem, relu, nn.MaxPool3d(3, 2, 1)))
    entering = widths[0]
    for stage, (width, count) in enumerate(zip(widths, DEPTHS[depth], strict=True), start=1):
        blocks = []
        for block in range(count):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            if bottleneck:
                steps = [net.add(f"{name}.conv1", conv(entering, width, 1)), net.norm(f"{name}.bn1", width), relu]
                steps += [pair(name, 2, width, width, formula(width, width), stride), relu]
                steps += [net.add(f"{name}.conv3", conv(width, width * 4, 1)), net.norm(f"{name}.bn3", width * 4)]
            else:
                steps = [pair(name, 1, entering, width, formula(entering, width), stride), relu]
                steps += [pair(name, 2, width, width, formula(width, width), 1)]
            shortcut = None
            if stride > 1 or entering != width * expansion:
                down = net.add(f"{name}.downsample.0", conv(entering, width * expansion, 1, stride))
                shortcut = chain(down, net.norm(f"{name}.downsample.1", width * expansion))
            blocks.append(residual(chain(*steps), shortcut))
            entering = width * expansion
        net.parts.append(chain(*blocks))
    net.head = mean_then(net.add("fc", nn.Linear(entering, classes)))
    return net


def hara_r3d(depth: int, widths=WIDTHS, classes=400, shortcut="B") -> Network:
    """models/resnet.py. Its shortcut A takes `out.data`, so that no gradient passes there; this one lets it pass."""
    net, relu = Network(), functional.relu
    expansion = 4 if depth >= 50 else 1

    def unit(name: str, number: int, entering: int, leaving: int, size: int, stride: int = 1) -> Callable:
        layer = net.add(f"{name}.conv{number}", conv(entering, leaving, size, stride, size // 2))
        return chain(layer, net.norm(f"{name}.bn{number}", leaving))

    def padded(leaving: int, stride: int) -> Callable:
        def run(x: torch.Tensor) -> torch.Tensor:
            x = functional.avg_pool3d(x, kernel_size=1, stride=stride)
            return torch.cat([x, x.new_zeros(len(x), leaving - x.shape[1], *x.shape[2:])], dim=1)

        return run

    first = net.add("conv1", conv(3, widths[0], 7, (1, 2, 2), 3))
    net.parts.append(chain(first, net.norm("bn1", widths[0]), relu, nn.MaxPool3d(3, 2, 1)))
    entering = widths[0]
    for stage, (width, count) in enumerate(zip(widths, DEPTHS[depth], strict=True), start=1):
        blocks = []
        for block in range(count):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            if expansion == 4:
                steps = [unit(name, 1, entering, width, 1), relu, unit(name, 2, width, width, 3, stride), relu]
                steps += [unit(name, 3, width, width * 4, 1)]
            else:
                steps = [unit(name, 1, entering, width, 3, stride), relu, unit(name, 2, width, width, 3)]
            past = None
            if (stride > 1 or entering != width * expansion) and shortcut == "A":
                past = padded(width * expansion, stride)
            elif stride > 1 or entering != width * expansion:
                down = net.add(f"{name}.downsample.0", conv(entering, width * expansion, 1, stride))
                past = chain(down, net.norm(f"{name}.downsample.1", width * expansion))
            blocks.append(residual(chain(*steps), past))
            entering = width * expansion
        net.parts.append(chain(*blocks))
    net.head = mean_then(net.add("fc", nn.Linear(entering, classes)))
    return net


# -- Inception-I3D -----------------------------------------------------------------------------------------------------

MIXED = {
    "3b": (192, 64, 96, 128, 16, 32, 32),
    "3c": (256, 128, 128, 192, 32, 96, 64),
    "4b": (480, 192, 96, 208, 16, 48, 64),
    "4c": (512, 160, 112, 224, 24, 64, 64),
    "4d": (512, 128, 128, 256, 24, 64, 64),
    "4e": (512, 112, 144, 288, 32, 64, 64),
    "4f": (528, 256, 160, 320, 32, 128, 128),
    "5b": (832, 256, 160, 320, 32, 128, 128),
    "5c": (832, 384, 192, 384, 48, 128, 128),
}
PIERGIAJ = {
    "conv": "Conv3d_{}", "mixed": "Mixed_{}", "branches": ("b0", "b1a", "b1b", "b2a", "b2b", "b3b"), "norm": "bn",
    "logits": "logits.conv3d",
}  # fmt: skip
HASSONY2 = {
    "conv": "conv3d_{}", "mixed": "mixed_{}", "norm": "batch3d", "logits": "conv3d_0c_1x1.conv3d",
    "branches": ("branch_0", "branch_1.0", "branch_1.1", "branch_2.0", "branch_2.1", "branch_3.1"),
}  # fmt: skip


def same(x: torch.Tensor, kernel: int | tuple, stride: int | tuple, value: float = 0.0) -> torch.Tensor:
    """TensorFlow's SAME: as much as the window needs beyond the last stride, the odd one after."""
    kernel, stride = [(v,) * 3 if isinstance(v, int) else v for v in (kernel, stride)]
    pads: list[int] = []
    for size, k, s in list(zip(x.shape[2:], kernel, stride, strict=True))[::-1]:
        total = max(k - s if size % s == 0 else k - size % s, 0)
        pads += [total // 2, total - total // 2]
    return functional.pad(x, pads, value=value)


def i3d(names: dict, channels: int = 3, classes: int = 400) -> Network:
    net = Network(1e-3)

    def unit(name: str, entering: int, leaving: int, size: int, stride: int = 1) -> Callable:
        layer = net.add(f"{name}.conv3d", conv(entering, leaving, size, stride))
        norm = net.norm(f"{name}.{names['norm']}", leaving)
        return lambda x: functional.relu(norm(layer(same(x, size, stride))))

    def pool(kernel: tuple, stride: tuple) -> Callable:
        return lambda x: functional.max_pool3d(same(x, kernel, stride, -float("inf")), kernel, stride)

    def mixed(suffix: str) -> Callable:
        entering, *c = MIXED[suffix]
        names_of = [f"{names['mixed'].format(suffix)}.{branch}" for branch in names["branches"]]
        b0 = unit(names_of[0], entering, c[0], 1)
        b1 = chain(unit(names_of[1], entering, c[1], 1), unit(names_of[2], c[1], c[2], 3))
        b2 = chain(unit(names_of[3], entering, c[3], 1), unit(names_of[4], c[3], c[4], 3))
        b3 = chain(pool((3, 3, 3), (1, 1, 1)), unit(names_of[5], entering, c[5], 1))
        return lambda x: torch.cat([b0(x), b1(x), b2(x), b3(x)], dim=1)

    name = names["conv"].format
    space, both = ((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2))
    net.parts = [
        chain(unit(name("1a_7x7"), channels, 64, 7, 2), pool(*space)),
        chain(unit(name("2b_1x1"), 64, 64, 1), unit(name("2c_3x3"), 64, 192, 3), pool(*space)),
        chain(mixed("3b"), mixed("3c"), pool(*both)),
        chain(*(mixed(f"4{letter}") for letter in "bcdef"), pool((2, 2, 2), (2, 2, 2))),
        chain(mixed("5b"), mixed("5c")),
    ]
    logits = net.add(names["logits"], conv(1024, classes, 1, bias=True))

    def head(x: torch.Tensor) -> torch.Tensor:  # windows of 2 x 7 x 7, or what there is
        window = [min(k, n) for k, n in zip((2, 7, 7), x.shape[2:], strict=True)]
        return logits(functional.avg_pool3d(x, window, 1)).mean(dim=(2, 3, 4))

    net.head = head
    return net


# -- values ------------------------------------------------------------------------------------------------------------


class Gate(nn.Module):
    """What a module gives, weighed by a sigmoid of its mean over the clip."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.fc(x.mean((2, 3, 4))))[:, :, None, None, None]


class GatedMixed(nn.Module):
    """torchvision's Mixed block of S3D with a gate after each of its branches."""

    def __init__(self, block: nn.Module):
        super().__init__()
        for index in range(4):
            branch = block.get_submodule(f"branch{index}")
            norms = [part for part in branch.modules() if isinstance(part, nn.BatchNorm3d)]
            self.add_module(f"branch{index}", branch)
            self.add_module(f"gate{index}", Gate(norms[-1].num_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [(self.get_submodule(f"branch{index}"), self.get_submodule(f"gate{index}")) for index in range(4)]
        return torch.cat([gate(branch(x)) for branch, gate in parts], dim=1)


def add_gates(s3d: nn.Module) -> nn.Module:
    """torchvision's S3D made S3D-G: gates after Conv2 and in every Mixed block."""
    features = s3d.get_submodule("features")
    features.get_submodule("3").add_module("gate", Gate(192))
    for name, block in list(features.named_children()):
        if hasattr(block, "branch0"):
            features.add_module(name, GatedMixed(block))
    return s3d


def randomize(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that keep activations of size one, and BN values as after training."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator) * scale

    with torch.no_grad():
        for name, value in net.state_dict().items():
            leaf = name.split(".")[-1]
            if leaf == "running_var" or (leaf == "weight" and value.ndim == 1):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif leaf == "weight":
                value.copy_(normal(value, (2.0 / value[0].numel()) ** 0.5))
            elif leaf != "num_batches_tracked":
                value.copy_(normal(value, 0.1))
    return net
