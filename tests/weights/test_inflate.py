"""Image networks as video networks: a clip that does not move gives the image network's features."""

import argparse
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import r23d_jax
from r23d_jax import models
from r23d_jax.commands.convert import _inflated
from r23d_jax.models.functional import split_model
from r23d_jax.weights.state_dicts import to_arrays
from r23d_jax.weights.tables import ConversionError
from tests.weights.random_networks import trained

torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")

from tests.weights import torch_networks as peers  # noqa: E402

pytestmark = pytest.mark.parity


def blank(name: str, **fields: Any) -> models.VideoNetwork:
    """A network of zeros, whose values inflation replaces."""
    model = nnx.eval_shape(lambda: models.create_model(name, rngs=nnx.Rngs(0), **{"num_classes": 5, **fields}))
    network, params, batch_stats = split_model(model)
    return network.build(*jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), (params, batch_stats)))


def features_of_resnet(net: Any, image: Any) -> np.ndarray:
    x = net.maxpool(net.relu(net.bn1(net.conv1(image))))
    return net.layer4(net.layer3(net.layer2(net.layer1(x)))).numpy().transpose(0, 2, 3, 1)


def still(size: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """A frame (H, W, C), and a clip (1, T, H, W, C) of it."""
    frame = np.random.default_rng(0).standard_normal((size, size, 3)).astype(np.float32)
    return frame, np.broadcast_to(frame, (1, frames, size, size, 3))


@pytest.mark.parametrize(
    ("depth", "name", "how", "frames"),
    [
        (18, "f_r2d_18", "repeat", 2),  # every kernel is one frame long
        (18, "r3d_18", "center", 8),
        pytest.param(18, "mc3_18", "repeat", 20, marks=pytest.mark.long),
        (50, "r2plus3d_50", "center", 4),
        pytest.param(34, "rmc3_34", "center", 8, marks=pytest.mark.long),
    ],
)
def test_a_still_clip_gives_the_features_of_the_image(
    depth: int, name: str, how: str, frames: int, torchvision_video: Any
) -> None:
    from torchvision.models import resnet

    image_network: Any = peers.randomize(getattr(resnet, f"resnet{depth}")(weights=None, num_classes=5)).eval()
    skip = ("stage4",) if name == "r2plus3d_50" else ()  # 256 wide, where ResNets have 512
    model = blank(name, **({} if name == "r2plus3d_50" else {"stem_pool": "2d"}))
    model = r23d_jax.inflate(image_network.state_dict(), model, how, skip)
    frame, clip = still(64, frames)
    with torch.no_grad():
        image = torch.tensor(frame.transpose(2, 0, 1))[None]
        x = image_network.maxpool(torch.relu(image_network.bn1(image_network.conv1(image))))
        for index in range(1, 5 - len(skip)):
            x = getattr(image_network, f"layer{index}")(x)
        want = x.numpy().transpose(0, 2, 3, 1)

    @jax.jit
    def run(model: Any, x: jax.Array) -> jax.Array:
        x = model.stem(x)
        for stage in list(model.stages)[: 4 - len(skip)]:
            x = stage(x)
        return x

    ours = np.asarray(run(model, clip))
    middle = ours[:, ours.shape[1] // 2]
    np.testing.assert_allclose(middle, want, atol=1e-4 * float(np.abs(want).max()))
    if how == "center":  # at every time, the ends included
        np.testing.assert_allclose(ours, np.broadcast_to(want[:, None], ours.shape), atol=1e-4 * np.abs(want).max())


def test_repeat_reaches_the_logits_away_from_the_ends(torchvision_video: Any) -> None:
    """R3D-10's last stage sees 24 frames to either side: of 64 frames, the middle of the feature map is untouched."""
    from torchvision.models import resnet

    image_network = peers.randomize(resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)).eval()
    model: Any = r23d_jax.inflate(image_network.state_dict(), blank("r3d_10", stem_pool="2d"))
    frame, clip = still(32, 64)
    with torch.no_grad():
        image = torch.tensor(frame.transpose(2, 0, 1))[None]
        want, logits = features_of_resnet(image_network, image), image_network(image).numpy()
    ours = np.asarray(jax.jit(lambda model, x: model.features(x))(model, clip))
    assert ours.shape[1] == 8
    np.testing.assert_allclose(ours[:, 4], want, atol=1e-4 * float(np.abs(want).max()))
    classifier = model.head.classifier
    np.testing.assert_allclose(classifier(ours[:, 4].mean(axis=(1, 2))), logits, atol=1e-4 * np.abs(logits).max())
    assert np.abs(ours[:, 0] - want).max() > 1e-2 * np.abs(want).max()  # zeros beyond the ends are seen there


@pytest.mark.long
def test_pixels_of_a_converted_googlenet_are_those_of_its_published_weights(torchvision_video: Any) -> None:
    """They come with transform_input=True."""
    from torchvision.models import googlenet

    image_network: Any = googlenet(weights=None, aux_logits=False, init_weights=False, transform_input=True)
    pixels = torch.rand(1, 3, 8, 8)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen = image_network._transform_input((pixels - mean) / std)
    args = argparse.Namespace(model="i3d_gamma", inflate="center", num_classes=0, num_frames=16, crop_size=63)
    pre = _inflated(args, image_network.state_dict()).preprocessing
    ours = (pixels - torch.tensor(pre.mean)[:, None, None]) / torch.tensor(pre.std)[:, None, None]
    np.testing.assert_allclose(ours, seen, atol=1e-5)


def test_googlenet_becomes_i3d(torchvision_video: Any) -> None:
    """At 63 pixels the pools of both lie alike; at other sizes I3D pads as TensorFlow does."""
    from torchvision.models import googlenet

    image_network: Any = googlenet(
        weights=None, aux_logits=False, init_weights=False, transform_input=False, num_classes=5
    )
    image_network = peers.randomize(image_network).eval()
    model = r23d_jax.inflate(image_network.state_dict(), blank("i3d_gamma"), "center")
    frame, clip = still(63, 16)
    with torch.no_grad():
        kept: list[Any] = []
        image_network.inception5b.register_forward_hook(lambda module, inputs, output: kept.append(output))
        logits = image_network(torch.tensor(frame.transpose(2, 0, 1))[None]).numpy()
    want = kept[0].numpy().transpose(0, 2, 3, 1)
    features, ours_logits = jax.jit(lambda model, x: (model.features(x), model(x)))(model, clip)
    ours = np.asarray(features)
    assert ours.shape[2:] == want.shape[1:]
    np.testing.assert_allclose(ours, np.broadcast_to(want[:, None], ours.shape), atol=1e-4 * np.abs(want).max())
    np.testing.assert_allclose(ours_logits, logits, atol=1e-4 * np.abs(logits).max())


def test_other_channels_get_the_mean_over_colors(torchvision_video: Any) -> None:
    from torchvision.models import resnet

    state = peers.randomize(resnet.resnet18(weights=None)).state_dict()
    model: Any = r23d_jax.inflate(state, blank("r3d_18", in_channels=2), "center")
    kernel = model.stem.conv.kernel[...]
    want = state["conv1.weight"].numpy().transpose(2, 3, 1, 0).mean(axis=2)
    np.testing.assert_allclose(kernel[1], np.stack([want, want], axis=2), atol=1e-7)
    assert not np.any(kernel[0]) and not np.any(model.head.classifier.kernel[...])  # 1000 classes are not 5


@pytest.mark.parametrize("how", ["repeat", "center"])
def test_a_motion_stem_sees_motion_however_it_is_inflated(how: str, torchvision_video: Any) -> None:
    from torchvision.models import resnet

    state = peers.randomize(resnet.resnet18(weights=None)).state_dict()
    model: Any = r23d_jax.inflate(state, blank("r3d_18", stem="motion", stem_pool="2d"), how)
    image = state["conv1.weight"].numpy().transpose(2, 3, 1, 0)
    for values, share in zip(model.stem.conv.values(), (-1 / 3, 2 / 3, -1 / 3), strict=True):
        np.testing.assert_allclose(values, share * image, rtol=1e-5, atol=1e-6)


def test_differences_beside_colors_start_at_zero(torchvision_video: Any) -> None:
    from torchvision.models import resnet

    state = peers.randomize(resnet.resnet18(weights=None)).state_dict()
    colors, both = (
        r23d_jax.inflate(state, blank("r3d_18", in_channels=channels)).stem.conv.kernel[...]  # type: ignore[union-attr]
        for channels in (3, 6)
    )
    np.testing.assert_array_equal(both[:, :, :, :3], colors)
    assert np.any(colors) and not np.any(both[:, :, :, 3:])


def test_what_does_not_fit_is_refused(torchvision_video: Any) -> None:
    from torchvision.models import resnet

    state = resnet.resnet18(weights=None).state_dict()
    for name, message in (
        ("r2plus1d_18", "inflates to networks of full 2D and 3D convolutions only"),
        ("ir_csn_50", "inflates to networks of full 2D and 3D convolutions only"),
        (
            "r2plus3d_18",
            r"(?s)init_skip=\('stage4',\).*layer4\.0\.conv1\.weight: \[512, 256, 3, 3\], expected \[256, 256",
        ),
        ("r3d_34", r"layer1\.2\.conv1\.weight: missing"),
    ):
        with pytest.raises(ConversionError, match=message):
            r23d_jax.inflate(state, blank(name))
    with pytest.raises(ConversionError, match="inflate='twice': unknown; known: repeat, center"):
        r23d_jax.inflate(state, blank("r3d_18"), "twice")
    with pytest.raises(ConversionError, match="not the weights of an image network"):
        r23d_jax.inflate(to_arrays(trained("r3d_10")), blank("r3d_10"))
    with pytest.raises(ConversionError, match="GoogLeNet inflates to i3d_gamma only"):
        r23d_jax.inflate({"conv1.conv.weight": np.zeros((64, 3, 7, 7))}, blank("i3d"))
