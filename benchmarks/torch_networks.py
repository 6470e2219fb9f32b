"""The networks to time r23d_jax against, in plain torch: torchvision's r3d_18 and r2plus1d_18, and R(2+3)D-18 + ViT.

Modules are named and nested as in torchvision/models/video/resnet.py, so that `r23d_jax.to_torch` fills them.
"""

import torch
from torch import nn


def _convolution(kind: str, entering: int, leaving: int, mid: int, stride: int) -> nn.Module:
    if kind == "2d":
        return nn.Conv3d(entering, leaving, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
    if kind == "3d":
        return nn.Conv3d(entering, leaving, 3, stride, 1, bias=False)
    return nn.Sequential(
        nn.Conv3d(entering, mid, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
        nn.BatchNorm3d(mid),
        nn.ReLU(inplace=True),
        nn.Conv3d(mid, leaving, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
    )


class BasicBlock(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, kind: str, entering: int, leaving: int, stride: int, final_relu: bool = True):
        super().__init__()
        mid = entering * leaving * 27 // (entering * 9 + 3 * leaving)
        self.conv1 = nn.Sequential(
            _convolution(kind, entering, leaving, mid, stride), nn.BatchNorm3d(leaving), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(_convolution(kind, leaving, leaving, mid, 1), nn.BatchNorm3d(leaving))
        self.downsample = None
        if stride > 1 or entering != leaving:
            strides = (1, stride, stride) if kind == "2d" else stride
            self.downsample = nn.Sequential(
                nn.Conv3d(entering, leaving, 1, strides, bias=False), nn.BatchNorm3d(leaving)
            )
        self.final_relu = final_relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, T, H, W) -> (B, C', T', H', W')."""
        y = self.conv2(self.conv1(x)) + (x if self.downsample is None else self.downsample(x))
        return torch.relu(y) if self.final_relu else y


class VisionTransformerHead(nn.Module):
    """CLS and all places through one pre-LN layer of eight heads."""

    def __init__(self, dim: int, places: int, num_classes: int):
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, places, dim))
        self.layer = nn.TransformerEncoderLayer(dim, 8, 4 * dim, 0.1, "gelu", batch_first=True, norm_first=True)
        self.norm, self.dropout, self.fc = nn.LayerNorm(dim), nn.Dropout(0.5), nn.Linear(dim, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, T, H, W) -> (B, num_classes)."""
        tokens = x.flatten(2).transpose(1, 2) + self.positions
        tokens = self.layer(torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1))
        return self.fc(self.dropout(self.norm(tokens[:, 0])))


class VideoResNet(nn.Module):
    """18 layers, two blocks per stage.

    Args:
      kinds: of the stages: "2d", "3d" or "2plus1d".
      widths: of the stages.
      stem: "3x7x7", "1x7x7" followed by a pool over space, or "factorized".
      head: of the last feature map; None for an average pool and a linear layer.
      num_classes: logits.
      final_relu: whether the last block ends with a ReLU.
    """

    def __init__(
        self,
        kinds: tuple[str, ...],
        widths: tuple[int, ...],
        stem: str,
        num_classes: int,
        head: nn.Module | None = None,
        final_relu: bool = True,
    ):
        super().__init__()
        if stem == "factorized":
            spatial = nn.Conv3d(3, 45, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
            temporal = nn.Conv3d(45, widths[0], (3, 1, 1), 1, (1, 0, 0), bias=False)
            layers: list[nn.Module] = [spatial, nn.BatchNorm3d(45), nn.ReLU(inplace=True), temporal]
        else:
            time = int(stem[0])
            layers = [nn.Conv3d(3, widths[0], (time, 7, 7), (1, 2, 2), (time // 2, 3, 3), bias=False)]
        layers += [nn.BatchNorm3d(widths[0]), nn.ReLU(inplace=True)]
        if stem == "1x7x7":
            layers.append(nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
        self.stem = nn.Sequential(*layers)
        entering = widths[0]
        for number, (kind, width) in enumerate(zip(kinds, widths, strict=True), start=1):
            last = number == len(kinds)
            first = BasicBlock(kind, entering, width, 1 if number == 1 else 2)
            second = BasicBlock(kind, width, width, 1, final_relu or not last)
            self.add_module(f"layer{number}", nn.Sequential(first, second))
            entering = width
        self.head = head
        self.fc = nn.Linear(entering, num_classes) if head is None else None

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, T, H, W) -> (B, C, T', H', W')."""
        x = self.stem(x)
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, T, H, W) -> (B, num_classes)."""
        x = self.features(x)
        if self.fc is not None:
            return self.fc(x.mean((2, 3, 4)))
        assert self.head is not None
        return self.head(x)


def make_network(name: str, num_frames: int, size: int, num_classes: int = 101) -> VideoResNet:
    """The peer of a row of `steps.NETWORKS`."""
    widths = (64, 128, 256, 512)
    if name == "r3d_18":
        return VideoResNet(("3d",) * 4, widths, "3x7x7", num_classes)
    if name == "r2plus1d_18":
        return VideoResNet(("2plus1d",) * 4, widths, "factorized", num_classes)
    side = -(-size // 32)
    head = VisionTransformerHead(256, -(-num_frames // 4) * side**2, num_classes)
    return VideoResNet(("2d", "2d", "3d", "3d"), (64, 128, 256, 256), "1x7x7", num_classes, head, final_relu=False)
