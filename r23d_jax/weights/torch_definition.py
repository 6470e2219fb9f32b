"""The networks of r23d_jax in PyTorch. Written by `export --definition`, this file needs torch alone.

    model = load("r23d.pth")  # and r23d.pth.json, which describes the network
    logits = model(model.prepare(clips))  # clips are (B, T, H, W, C) uint8

Modules are named as in torchvision's video ResNets and S3D, and as in pytorch-i3d. Heads that those do not have are
below `head`.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from r23d_jax.weights.torch_heads import HEADS

Triple = tuple[int, int, int]  # (time, height, width)
ONE = (1, 1, 1)
# What a description leaves out. BN's `bn_momentum` is one minus torch's. A `mid_bn_epsilon` of 0 is `bn_epsilon`.
DEFAULTS: dict[str, Any] = {
    "layers": (2, 2, 2, 2), "bottleneck": False, "stem": "3x7x7", "stem_mid_channels": 45, "stem_time_kernel": 3,
    "stem_pool": "none", "widths": (64, 128, 256, 512), "mid_planes": "per_conv", "shortcut": "projection",
    "final_relu": True, "bn_epsilon": 1e-5, "bn_momentum": 0.9, "mid_bn_epsilon": 0.0, "block_dropout": 0.0,
    "in_channels": 3, "num_frames": 0, "stochastic_depth": 0.0, "temporal_strides": (),
    "separable": False, "gated": False, "head": {"kind": "avgpool", "dropout": 0.0},
}  # fmt: skip


def load(path: str | Path) -> "Network":
    """The network in a weight file and the .json beside it, in evaluation mode."""
    about = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))
    model = build(about["torch"])
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    model.class_names, model.preprocessing = about["class_names"], about["preprocessing"]
    return model.eval()


def build(fields: dict[str, Any]) -> "Network":
    """The network that the fields describe, with random weights: `backbone` is a key of `BACKBONES`."""
    return BACKBONES[fields["backbone"]](SimpleNamespace(**(DEFAULTS | fields)))


class Network(nn.Module):
    """A backbone and a head. A subclass has the backbone, `feature_map`, and its average pool's `classify`."""

    class_names: list[str]
    preprocessing: dict[str, Any]
    window: Triple = ONE  # of the average pool, whose mean over all windows counts; ONE is a plain mean

    def __init__(self, spec: Any, channels: int):
        super().__init__()
        self.kind = spec.head["kind"]
        self.dropout = nn.Dropout(spec.head["dropout"])
        if self.kind in HEADS:
            self.head = HEADS[self.kind](channels, spec.num_classes, spec.head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, T, H, W) float32 -> (B, num_classes) logits; without a head, the last feature map."""
        x = self.feature_map(x)
        if self.kind == "none":
            return x
        averaged = x
        if self.window != ONE:
            window = [min(pair) for pair in zip(self.window, x.shape[2:], strict=True)]
            averaged = functional.avg_pool3d(x, window, 1)
        mean = averaged.mean((2, 3, 4))
        return self.head(x, mean) if self.kind in HEADS else self.classify(self.dropout(mean))

    def feature_map(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, T, H, W) -> the last feature map (B, C', T', H', W')."""
        raise NotImplementedError

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C') -> (B, num_classes)."""
        raise NotImplementedError

    def prepare(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips (B, T, H, W, C) uint8 as the network reads them, (B, C, T, H, W) float32."""
        about = self.preprocessing
        mean, std = (torch.tensor(about[name], device=clips.device) for name in ("mean", "std"))
        x = clips.float() / (1.0 if about["byte_range"] else 255.0)
        normalized = (x - mean) / std
        if about["input"] == "rgb_diff":
            normalized = x.diff(dim=1) / std
        if about["input"] == "rgb_and_diff":
            normalized = torch.cat([normalized[:, 1:], x.diff(dim=1) / std], dim=-1)
        return normalized.permute(0, 4, 1, 2, 3)


def conv(entering: int, leaving: int, kernel: Triple, strides: Triple = ONE, groups: int = 1) -> nn.Conv3d:
    """Without bias; padded by half the kernel."""
    half = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Conv3d(entering, leaving, kernel, strides, half, groups=groups, bias=False)


class MotionConv(nn.Conv3d):
    """Less its mean over time; sees the first and the last frame again before and after the clip, instead of zeros."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x, kernel = torch.cat([input[:, :, :1], input, input[:, :, -1:]], 2), self.weight - self.weight.mean(2, True)
        return functional.conv3d(x, kernel, None, self.stride, self.padding)


def batch_norm(channels: int, spec: Any, epsilon: float = 0.0) -> nn.BatchNorm3d:
    return nn.BatchNorm3d(channels, eps=epsilon or spec.bn_epsilon, momentum=1 - spec.bn_momentum)


def relu() -> nn.ReLU:
    return nn.ReLU(inplace=True)


# -- residual networks: R2D, R3D, MCx, rMCx, R(2+1)D, R(2+3)D, CSN -----------------------------------------------------

POOLS = {"2d": nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)), "3d": nn.MaxPool3d(3, 2, 1)}


def pair(entering: int, leaving: int, mid: int, kernels: tuple[Triple, Triple], strides: Triple, spec: Any) -> list:
    """A convolution over space, BN, ReLU and a second convolution, over time."""
    first = conv(entering, mid, kernels[0], (1, *strides[1:]))
    second = conv(mid, leaving, kernels[1], (strides[0], 1, 1))
    return [first, batch_norm(mid, spec, spec.mid_bn_epsilon), relu(), second]


def unit(kind: str, entering: int, leaving: int, strides: Triple, counted: int, spec: Any) -> nn.Module:
    """A stage's 3x3x3 convolution; `counted` is the input width in the formula of the mid-planes."""
    if kind in ("2d", "3d"):
        return conv(entering, leaving, (1 if kind == "2d" else 3, 3, 3), strides)
    if kind in ("ir_csn", "ip_csn"):
        depthwise = conv(leaving, leaving, (3, 3, 3), strides, leaving)
        if kind == "ir_csn":
            return depthwise
        return nn.Sequential(conv(entering, leaving, ONE), batch_norm(leaving, spec), depthwise)
    second = {"2plus1d": (3, 1, 1), "2plus3d": (3, 3, 3)}[kind]
    mid = max(1, 27 * counted * leaving // (9 * counted + math.prod(second) * leaving))
    return nn.Sequential(*pair(entering, leaving, mid, ((1, 3, 3), second), strides, spec))


class PaddedShortcut(nn.Module):
    """Every stride-th value, and zeros for the channels that are added."""

    def __init__(self, added: int, strides: Triple):
        super().__init__()
        self.added, self.strides = added, strides

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time, height, width = self.strides
        return functional.pad(x[:, :, ::time, ::height, ::width], (0, 0, 0, 0, 0, 0, 0, self.added))


def shortcut(entering: int, leaving: int, strides: Triple, spec: Any) -> nn.Module | None:
    if entering == leaving and strides == ONE:
        return None
    if spec.shortcut == "padded":
        return PaddedShortcut(leaving - entering, strides)
    first: nn.Module = conv(entering, leaving, ONE, strides)
    if spec.shortcut == "factorized":
        mid = max(1, 3 * entering * leaving // (entering + 3 * leaving))
        first = nn.Sequential(*pair(entering, leaving, mid, (ONE, ONE), strides, spec))
    return nn.Sequential(first, batch_norm(leaving, spec))


class ResidualBlock(nn.Module):
    """The sum of a shortcut and two convolutions, or three in a bottleneck."""

    def __init__(
        self, kind: str, entering: int, width: int, strides: Triple, ends_with_relu: bool, skipped: float, spec: Any
    ):
        super().__init__()
        self.skipped = skipped  # probability of leaving only the shortcut of a clip while training
        leaving = width * 4 if spec.bottleneck else width
        counted = entering if spec.mid_planes == "per_block" else width
        inside = [relu(), *[nn.Dropout(spec.block_dropout)] * (spec.block_dropout > 0)]
        if spec.bottleneck:
            self.conv1 = nn.Sequential(conv(entering, width, ONE), batch_norm(width, spec), *inside)
            middle = unit(kind, width, width, strides, counted, spec)
            self.conv2 = nn.Sequential(middle, batch_norm(width, spec), relu())
            self.conv3 = nn.Sequential(conv(width, leaving, ONE), batch_norm(leaving, spec))
        else:
            first = unit(kind, entering, width, strides, entering, spec)
            self.conv1 = nn.Sequential(first, batch_norm(width, spec), *inside)
            self.conv2 = nn.Sequential(unit(kind, width, width, ONE, counted, spec), batch_norm(width, spec))
            self.conv3 = nn.Identity()
        self.downsample, self.ends_with_relu = shortcut(entering, leaving, strides, spec), ends_with_relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv3(self.conv2(self.conv1(x)))
        if self.training and self.skipped:
            kept = torch.rand(len(y), 1, 1, 1, 1, device=y.device) >= self.skipped
            y = y * kept / (1 - self.skipped)
        y = y + (x if self.downsample is None else self.downsample(x))
        return functional.relu(y) if self.ends_with_relu else y


class VideoResNet(Network):
    """A stem and four stages of residual blocks; the fields are those of `VideoResNetSpec`."""

    def __init__(self, spec: Any):
        expansion = 4 if spec.bottleneck else 1
        super().__init__(spec, spec.widths[3] * expansion)
        entering = spec.widths[0]
        if spec.stem == "factorized":
            kernels = (1, 7, 7), (spec.stem_time_kernel, 1, 1)
            stem = pair(spec.in_channels, entering, spec.stem_mid_channels, kernels, (1, 2, 2), spec)
        elif spec.stem == "motion":
            stem = [MotionConv(spec.in_channels, entering, (3, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)]
        else:  # "1x7x7", "3x7x7", "7x7x7", or "Lx7x7", as long as the clip and not padded in time
            time = spec.num_frames if spec.stem == "Lx7x7" else int(spec.stem[0])
            stem = [conv(spec.in_channels, entering, (time, 7, 7), (1, 2, 2))]
            stem[0].padding = (0 if spec.stem == "Lx7x7" else time // 2, 3, 3)
        pool = [] if spec.stem_pool == "none" else [POOLS[spec.stem_pool]]
        self.stem = nn.Sequential(*stem, batch_norm(entering, spec), relu(), *pool)
        stages = zip(spec.convolutions, spec.widths, spec.layers, strict=True)
        for number, (kind, width, count) in enumerate(stages, start=1):
            blocks = []
            time = spec.temporal_strides[number - 2] if spec.temporal_strides else (1 if kind == "2d" else 2)
            for index in range(count):
                strides = (time, 2, 2) if number > 1 and index == 0 else ONE
                ends_with_relu = spec.final_relu or number < 4 or index < count - 1
                skipped = spec.stochastic_depth * (sum(spec.layers[: number - 1]) + index + 1) / sum(spec.layers)
                blocks.append(ResidualBlock(kind, entering, width, strides, ends_with_relu, skipped, spec))
                entering = width * expansion
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        if self.kind == "avgpool":
            self.fc = nn.Linear(entering, spec.num_classes)

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What leaves the stem and each stage."""
        outputs = [self.stem(x)]
        for number in range(1, 5):
            outputs.append(self.get_submodule(f"layer{number}")(outputs[-1]))
        return outputs

    def feature_map(self, x: torch.Tensor) -> torch.Tensor:
        return self.stages(x)[-1]

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


# -- Inceptions --------------------------------------------------------------------------------------------------------

# Of a Mixed block: channels that enter it; of branch 0; of branches 1 and 2, reduced and full; and of branch 3.
MIXED = {
    "3b": (192, 64, 96, 128, 16, 32, 32), "3c": (256, 128, 128, 192, 32, 96, 64),
    "4b": (480, 192, 96, 208, 16, 48, 64), "4c": (512, 160, 112, 224, 24, 64, 64),
    "4d": (512, 128, 128, 256, 24, 64, 64), "4e": (512, 112, 144, 288, 32, 64, 64),
    "4f": (528, 256, 160, 320, 32, 128, 128), "5b": (832, 256, 160, 320, 32, 128, 128),
    "5c": (832, 384, 192, 384, 48, 128, 128),
}  # fmt: skip


def same(x: torch.Tensor, kernel: tuple[int, ...], strides: tuple[int, ...], value: float = 0.0) -> torch.Tensor:
    """Pads as TensorFlow's SAME does: what the windows lack in all, the odd one after."""
    pads: list[int] = []
    for size, window, stride in list(zip(x.shape[2:], kernel, strides, strict=True))[::-1]:
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        pads += [total // 2, total - total // 2]
    return functional.pad(x, pads, value=value)


class SamePool(nn.Module):
    """Max-pool with TensorFlow's SAME padding."""

    def __init__(self, kernel: Triple, strides: Triple):
        super().__init__()
        self.kernel, self.strides = kernel, strides

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.max_pool3d(same(x, self.kernel, self.strides, -math.inf), self.kernel, self.strides)


class I3DUnit(nn.Module):
    """Convolution with SAME padding, BN, ReLU."""

    def __init__(self, entering: int, leaving: int, size: int, stride: int, spec: Any):
        super().__init__()
        self.conv3d = nn.Conv3d(entering, leaving, size, stride, bias=False)
        self.bn = batch_norm(leaving, spec)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn(self.conv3d(same(x, self.conv3d.kernel_size, self.conv3d.stride))))


class Gate(nn.Module):
    """S3D-G's: weighs channels by a sigmoid of their mean over the clip."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.fc(x.mean((2, 3, 4))))[:, :, None, None, None]


class Classifier(nn.Conv3d):
    """A linear layer whose weights have the shape of a 1x1x1 convolution's."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C) -> (B, num_classes)."""
        return super().forward(input[:, :, None, None, None]).flatten(1)


class Mixed(nn.Module):
    """Branches side by side; the modules of each have names and run in order."""

    def __init__(self, branches: list[dict[str, nn.Module]]):
        super().__init__()
        self.branches = [list(branch) for branch in branches]
        for branch in branches:
            for name, module in branch.items():
                self.add_module(name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = []
        for branch in self.branches:
            outputs.append(x)
            for name in branch:
                outputs[-1] = self.get_submodule(name)(outputs[-1])
        return torch.cat(outputs, dim=1)


class Inception(Network):
    """I3D; or if the spec is `separable`, S3D, whose kernels are pairs, padded by half; S3D-G if it is also `gated`."""

    window = (2, 7, 7)

    def __init__(self, spec: Any):
        super().__init__(spec, 1024)

        def plain(entering: int, leaving: int, kernel: Triple, strides: Triple = ONE) -> nn.Module:
            return nn.Sequential(conv(entering, leaving, kernel, strides), batch_norm(leaving, spec), relu())

        def unit(entering: int, leaving: int, size: int = 1, stride: int = 1) -> nn.Module:
            if not spec.separable:
                return I3DUnit(entering, leaving, size, stride, spec)
            if size == 1:
                return plain(entering, leaving, ONE)
            first = plain(entering, leaving, (1, size, size), (1, stride, stride))
            return nn.Sequential(first, plain(leaving, leaving, (size, 1, 1), (stride, 1, 1)))

        def pool(kernel: Triple, strides: Triple) -> nn.Module:
            half = tuple(size // 2 if size % 2 else 0 for size in kernel)
            return nn.MaxPool3d(kernel, strides, half) if spec.separable else SamePool(kernel, strides)

        def mixed(
            entering: int, whole: int, reduced1: int, full1: int, reduced2: int, full2: int, pooled: int
        ) -> Mixed:
            branches = [
                [unit(entering, whole)],
                [unit(entering, reduced1), unit(reduced1, full1, 3)],
                [unit(entering, reduced2), unit(reduced2, full2, 3)],
                [pool((3, 3, 3), ONE), unit(entering, pooled)],
            ]
            if not spec.separable:
                names = ("b0",), ("b1a", "b1b"), ("b2a", "b2b"), ("b3a", "b3b")
                return Mixed([dict(zip(*pair, strict=True)) for pair in zip(names, branches, strict=True)])
            named: list[dict[str, nn.Module]] = [{"branch0": branches[0][0]}]
            for index in (1, 2, 3):
                named.append({f"branch{index}": nn.Sequential(*branches[index])})
            if spec.gated:
                for index, channels in enumerate((whole, full1, full2, pooled)):
                    named[index][f"gate{index}"] = Gate(channels)
            return Mixed(named)

        last, space = unit(64, 192, 3), pool((1, 3, 3), (1, 2, 2))
        if spec.gated:
            last.add_module("gate", Gate(192))
        parts = {"Conv3d_1a_7x7": unit(spec.in_channels, 64, 7, 2), "MaxPool3d_2a_3x3": space}
        parts |= {"Conv3d_2b_1x1": unit(64, 64), "Conv3d_2c_3x3": last, "MaxPool3d_3a_3x3": space}
        pools = {"4b": pool((3, 3, 3), (2, 2, 2)), "5b": pool((2, 2, 2), (2, 2, 2))}
        for name, row in MIXED.items():
            parts |= {f"MaxPool3d_before_{name}": pools[name]} if name in pools else {}
            parts[f"Mixed_{name}"] = mixed(*row)
        classifier = Classifier(1024, spec.num_classes, 1) if self.kind == "avgpool" else nn.Identity()
        if self.kind in HEADS:
            self.head.classifier = Classifier(self.head.classifier.in_features, spec.num_classes, 1)
        if spec.separable:
            self.features, self.classifier = nn.Sequential(*parts.values()), nn.Sequential(nn.Identity(), classifier)
        else:
            for name, part in parts.items():
                self.add_module(name, part)
            self.logits = nn.ModuleDict({"conv3d": classifier})
        self.parts = ["features"] if spec.separable else list(parts)

    def feature_map(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.parts:
            x = self.get_submodule(name)(x)
        return x

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        return (self.classifier if self.parts == ["features"] else self.logits["conv3d"])(x)


BACKBONES = {"resnet": VideoResNet, "inception": Inception}
