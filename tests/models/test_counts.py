"""Parameters to the digit and multiply-adds to three decimals, against published counts, for clips of 112 x 112."""

import functools

import pytest
from flax import nnx

from r23d_jax import models
from r23d_jax.models.complexity import Part, count_parts
from r23d_jax.models.factorized import factorized_width
from r23d_jax.models.network import Triple
from r23d_jax.models.registry import FAMILIES, names_of
from r23d_jax.models.video_resnet import VideoResNetSpec

# name: parameters with 400 classes, with 101; GMACs, for 16 frames unless said. Sources: torchvision's model metadata
# and VMZ's model zoo, which agree with analytic counts.
PUBLISHED = {
    "r3d_18": (33_371_472, 33_218_085, 40.697),
    "mc3_18": (11_695_440, 11_542_053, 43.343),
    "r2plus1d_tv_18": (31_505_325, 31_351_938, 40.519),
    "r2plus1d_18": (33_370_839, 33_217_452, 41.496),
    "mc2_18": (11_400_528, 11_247_141, 28.545),
    "mc4_18": (12_727_632, 12_574_245, 39.952),
    "mc5_18": (16_856_400, 16_703_013, 39.900),
    "rmc2_18": (33_352_656, 33_199_269, 39.752),
    "rmc3_18": (33_057_744, 32_904_357, 24.955),
    "rmc4_18": (32_025_552, 31_872_165, 29.091),
    "rmc5_18": (27_896_784, 27_743_397, 30.787),
    "f_r2d_18": (11_381_712, 11_228_325, 27.601),
    "r2d_18": (11_522_832, 11_369_445, 2.168),
    "r2plus1d_tv_34": (61_831_661, 61_678_274, 75.201),
}


# Channels behind S3D-G's gates: Conv2, then the four branches of each Mixed block.
GATED = (
    192, 64, 128, 32, 32, 128, 192, 96, 64, 192, 208, 48, 64, 160, 224, 64, 64, 128, 256, 64, 64, 112, 288, 64, 64,
    256, 320, 128, 128, 256, 320, 128, 128, 384, 384, 128, 128,
)  # fmt: skip
GATES = sum(channels**2 + channels for channels in GATED)


@functools.cache
def parts_of(name: str, num_classes: int, frames: int = 16, size: int = 112) -> tuple[Part, ...]:
    def make() -> models.VideoNetwork:
        return models.create_model(name, num_classes=num_classes, num_frames=frames, rngs=nnx.Rngs(0))

    return tuple(count_parts(make, (frames, size, size, 3)))


def total(parts: tuple[Part, ...], field: str) -> int:
    return sum(getattr(part, field) for part in parts)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    with_400, with_101, gmacs = PUBLISHED[name]
    parts = parts_of(name, 400)
    assert total(parts, "parameters") == with_400
    assert total(parts_of(name, 101), "parameters") == with_101
    assert round(total(parts, "macs") / 1e9, 3) == gmacs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "frames", "gmacs"),
    [
        ("r3d_34", 63_681_104, 8, 37.689),
        ("r2plus1d_34", 63_697_175, 8, 38.089),
        ("r2plus1d_34", 63_697_175, 32, 152.356),
        ("r2plus1d_50", 46_985_057, 32, 115.3),
        ("r2plus1d_101", 86_050_785, 32, 176.5),
        ("r2plus1d_152", 118_226_785, 32, 252.0),
    ],
)
def test_published_counts_of_deeper_networks(name: str, parameters: int, frames: int, gmacs: float) -> None:
    parts = parts_of(name, 400, frames)
    assert total(parts, "parameters") == parameters
    decimals = len(str(gmacs).partition(".")[2])
    assert round(total(parts, "macs") / 1e9, decimals) == gmacs


@pytest.mark.parametrize(
    ("name", "backbone", "with_head", "gmacs"),
    [("r2plus3d_18", 14_057_536, 14_083_493, 6.864), ("r2plus3d_34", 32_422_208, 32_448_165, 15.414)],
)
def test_published_2d3d_layout(name: str, backbone: int, with_head: int, gmacs: float) -> None:
    """DPC's ResNet2d3d, whose output for 16 x 112 x 112 is 256 x 4 x 4 x 4."""
    parts = parts_of(name, 101)
    assert total(parts[:-1], "parameters") == backbone
    assert total(parts, "parameters") == with_head
    assert round(total(parts[:-1], "macs") / 1e9, 3) == gmacs
    assert parts[-2].shape == (4, 4, 4, 256)


@pytest.mark.parametrize(("frames", "size", "gmacs"), [(16, 128, 8.825), (5, 128, 3.043)])
def test_2d3d_18_on_other_clips(frames: int, size: int, gmacs: float) -> None:
    assert round(total(parts_of("r2plus3d_18", 101, frames, size)[:-1], "macs") / 1e9, 3) == gmacs


def test_2d3d_50_backbone() -> None:
    parts = parts_of("r2plus3d_50", 101)[:-1]
    assert total(parts, "parameters") == 23_562_304
    assert round(total(parts, "macs") / 1e9, 3) == 13.756


@pytest.mark.parametrize(
    ("name", "parameters", "frames", "size", "gmacs"),
    [
        # 3D-ResNets: a 7-frame stem over 110 channels, pooled in time
        ("r2plus1d_hara_18", 33_421_164, 16, 112, 8.477),
        # mmaction2's README says 63.8M and 53.1 GMACs; with plain shortcuts it would be 63,710,133
        ("r2plus1d_mmaction_34", 63_759_281, 8, 256, 52.978),
        # kinetics-i3d: 12M; torchvision's metadata for s3d: 8,320,048 and 17.979
        ("i3d", 12_689_984, 64, 224, 111.151),
        ("i3d_gamma", 12_697_264, 64, 224, 111.151),
        ("s3d", 8_320_048, 16, 224, 17.979),
        # S3D and, for every gate, a square matrix and a bias over its channels
        ("s3d_g", 8_320_048 + GATES, 16, 224, 17.980),
        # VMZ's model zoo: ir-CSN-152 29.6M, ip-CSN-152 32.8M
        ("ir_csn_152", 29_703_568, 32, 224, 74.046),
        ("ip_csn_152", 33_016_592, 32, 224, 83.295),
    ],
)
@pytest.mark.slow
def test_counts_of_other_code_bases(name: str, parameters: int, frames: int, size: int, gmacs: float) -> None:
    parts = parts_of(name, 400, frames, size)
    assert total(parts, "parameters") == parameters
    assert round(total(parts, "macs") / 1e9, 3) == gmacs


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("r3d_hara_18", 33_409_104),  # R3D-18 and a stem of 7x7x7 instead of 3x7x7: 4 * 49 * 3 * 64 more
        ("r3d_hara_50", 47_018_576),
        ("r3d_hara_200", 127_423_056),
        ("r3d_hara_a_34", 63_544_912),  # without the 173,824 of three shortcuts
    ],
)
def test_counts_of_3d_resnets(name: str, parameters: int) -> None:
    assert total(parts_of(name, 400), "parameters") == parameters


def test_i3d_of_flow() -> None:
    def make() -> models.VideoNetwork:
        return models.create_model("i3d", num_classes=101, num_frames=64, in_channels=2, rngs=nnx.Rngs(0))

    parts = count_parts(make, (64, 224, 224, 2))
    assert sum(part.parameters for part in parts) == 12_361_557
    assert round(sum(part.macs for part in parts) / 1e9, 2) == 102.34


@pytest.mark.parametrize(
    ("channels", "second_kernel", "width"),
    [
        ((64, 64), (3, 1, 1), 144),
        ((64, 128), (3, 1, 1), 230),
        ((128, 128), (3, 1, 1), 288),
        ((128, 256), (3, 1, 1), 460),
        ((256, 256), (3, 1, 1), 576),
        ((256, 512), (3, 1, 1), 921),
        ((512, 512), (3, 1, 1), 1152),
        ((64, 64), (3, 3, 3), 48),
        ((1, 1), (3, 3, 3), 1),
    ],
)
def test_factorized_width(channels: tuple[int, int], second_kernel: Triple, width: int) -> None:
    assert factorized_width(*channels, second_kernel) == width


def test_units_of_2plus3d_are_as_large_as_the_convolutions_they_replace() -> None:
    ours, full = (total(parts_of(name, 400), "parameters") for name in ("conv2plus3d_18", "r3d_18"))
    assert abs(ours - full) / full < 0.005


def test_temporal_lengths() -> None:
    """Of 16 frames: R3D, rMC2 and rMC3 end with 2, rMC4 and MC5 with 4, rMC5 and MC4 with 8, MC2 and MC3 with 16."""
    lengths = {"r2d": 1, "f_r2d": 16, "r3d": 2, "mc2": 16, "mc3": 16, "mc4": 8, "mc5": 4, "rmc2": 2, "rmc3": 2}
    lengths |= {"r2plus1d_mmaction": 2, "r2plus1d_hara": 1, "r3d_hara": 1, "r3d_hara_a": 1, "ir_csn": 2, "ip_csn": 2}
    lengths |= {"rmc4": 4, "rmc5": 8, "r2plus1d": 2, "r2plus1d_tv": 2, "r2plus3d": 4, "conv2plus3d": 2}
    assert {family: FAMILIES[family].feature_grid(16, 112)[0] for family in lengths} == lengths


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_grid_of_the_last_feature_map(family: str) -> None:
    name, spec = names_of(family)[0], FAMILIES[family]
    # Sizes at which Inceptions pad unevenly; neither gammas nor gates change a size
    odd = ((17, 113), (30, 200), (64, 224)) if family in ("i3d", "s3d") else ()
    for frames, size in ((16, 112), *odd):
        assert parts_of(name, 101, frames, size)[-2].shape[:3] == spec.feature_grid(frames, size)


def test_spec_says_what_leaves() -> None:
    assert VideoResNetSpec(("2d",) * 4, (1, 1, 1, 1), bottleneck=True).out_channels == 2048  # type: ignore[arg-type]
