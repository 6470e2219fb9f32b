"""Weights by name: the table of files that others have published, and how one of them becomes a network here."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from r23d_jax.config import look_up
from r23d_jax.models.complexity import count_parts
from r23d_jax.models.registry import create_model
from r23d_jax.runtime.disk import cache_folder
from r23d_jax.weights import download, files
from r23d_jax.weights.download import File
from r23d_jax.weights.sources import SOURCES
from r23d_jax.weights.state_dicts import Converted, convert
from r23d_jax.weights.tables import ConversionError

PREFIX = "name:"  # marks a name where a path is expected
NOT_PUBLISHED = "no published accuracy"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Published weights."""

    network: str  # name in the registry
    source: str  # a key of `sources.SOURCES`
    files: tuple[File, ...]  # what to download; the first one is read
    data: str  # what the network was trained on
    num_classes: int  # of its logits
    license: str  # of the code base; the weights may also fall under the terms of the data
    # top-1 and top-5 in percent as the publisher states them, not measured here; () if not stated
    accuracy: tuple[float, ...] = ()
    protocol: str = ""  # of the accuracy; "" without one
    # fields in which it differs from the source's usual one
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def mebibytes(self) -> float:
        """What is downloaded; 0 if the publisher does not state it."""
        return sum(file.mebibytes for file in self.files)


def _torchvision(network: str, file: str, mebibytes: float, accuracy: tuple, protocol: str = "") -> Pretrained:
    # Eight digits of the file's SHA-256, as torch.hub reads them from the name. Size and accuracy: torchvision 0.28
    checksum = f"sha256:{file[-12:-4]}"
    return Pretrained(
        network=network,
        source="torchvision_s3d" if network == "s3d" else "torchvision",
        files=(File(f"https://download.pytorch.org/models/{file}", checksum, mebibytes),),
        data="Kinetics-400",
        num_classes=400,
        license="BSD-3-Clause",
        accuracy=accuracy,
        protocol=protocol or "Kinetics-400 validation, 5 clips of 16 frames at 15 frames a second",
        preprocessing={"frame_rate": 30.0},  # a stride of 2: it samples videos at 15 frames a second
    )


def _vmz(network: str, url: str, data: str, checksum: str = "", source: str = "vmz", **fields: Any) -> Pretrained:
    stated = {"license": "Apache-2.0", "num_classes": 400}
    if "accuracy" in fields:
        stated["protocol"] = (
            "Kinetics-400 validation, video level; of the Caffe2 weights that these were converted from"
        )
    return Pretrained(network=network, source=source, files=(File(url, checksum),), data=data, **(stated | fields))


def _ig65m(frames: int, file: str, data: str, **fields: Any) -> Pretrained:
    # The digits follow torch.hub's rule for names (moabitcoin/ig65m-pytorch#12). It states no sizes
    url = f"https://github.com/moabitcoin/ig65m-pytorch/releases/download/v1.0.0/r2plus1d_34_clip{frames}_{file}"
    pre = {"num_frames": frames}
    return _vmz("r2plus1d_34", url, data, f"sha256:{file[-12:-4]}", license="MIT", preprocessing=pre, **fields)


def _bjuncek(network: str, file: str, data: str, accuracy: tuple, source: str = "vmz") -> Pretrained:
    # Addresses from VMZ's pt/vmz/models/utils.py. Neither checksums nor sizes are published
    url = f"https://github.com/bjuncek/VMZ/releases/download/test_models/{file}"
    return _vmz(network, url, data, source=source, accuracy=accuracy)


def _deepmind(folder: str, index: str, data: str, values: str, accuracy: tuple) -> Pretrained:
    # The index is small, and its SHA-256 was computed. The values have git's name of the file in that commit, and the
    # size that the index adds up to
    url = (
        "https://raw.githubusercontent.com/google-deepmind/kinetics-i3d/0667e889a5904b4dc122e0ded4c332f49f8df42c/"
        f"data/checkpoints/{folder}/model.ckpt"
    )
    mebibytes = 48.464 if folder.startswith("rgb") else 48.380
    return Pretrained(
        network="i3d",
        source="i3d_deepmind",
        files=(
            File(f"{url}.index", f"sha256:{index}", 0.0104),
            File(f"{url}.data-00000-of-00001", f"git:{values}", mebibytes),
        ),
        data=data,
        num_classes=400,
        license="Apache-2.0",
        accuracy=accuracy,
        protocol="Kinetics-400 test, 25 frames a second, center crop",
        preprocessing={"frame_rate": 25.0},
    )


_IG, _S1M, _INET = "IG-65M, then Kinetics-400", "Sports-1M, then Kinetics-400", "ImageNet, then Kinetics-400"
_ONE_CLIP = "Kinetics-400 validation, 1 clip of 128 frames at 15 frames a second"
PRETRAINED: dict[str, Pretrained] = {
    "r3d_18.kinetics400": _torchvision("r3d_18", "r3d_18-b3b3357e.pth", 127.359, (63.2, 83.479)),
    "mc3_18.kinetics400": _torchvision("mc3_18", "mc3_18-a90a0ba3.pth", 44.672, (63.96, 84.13)),
    "r2plus1d_18.kinetics400": _torchvision("r2plus1d_tv_18", "r2plus1d_18-91a641e6.pth", 120.318, (67.463, 86.175)),
    "s3d.kinetics400": _torchvision("s3d", "s3d-d76dad2f.pth", 31.972, (68.368, 88.05), _ONE_CLIP),
    "r2plus1d_34_8.ig65m": _ig65m(8, "ig65m_from_scratch-9bae36ae.pth", "IG-65M", num_classes=487),
    "r2plus1d_34_32.ig65m": _ig65m(32, "ig65m_from_scratch-449a7af9.pth", "IG-65M", num_classes=359),
    "r2plus1d_34_8.ig65m_kinetics400": _ig65m(8, "ft_kinetics_from_ig65m-0aa0550b.pth", _IG, accuracy=(74.9, 91.8)),
    "r2plus1d_34_32.ig65m_kinetics400": _ig65m(32, "ft_kinetics_from_ig65m-ade133f1.pth", _IG, accuracy=(80.0, 94.2)),
    "r2plus1d_152.ig65m_kinetics400": _bjuncek(
        "r2plus1d_152", "r2plus1d_152_ft_kinetics_from_ig65m_f107107466.pth", _IG, (81.6, 95.3)
    ),
    "r2plus1d_152.sports1m_kinetics400": _bjuncek(
        "r2plus1d_152", "r2plus1d_152_ft_kinetics_from_sports1m_f128957437.pth", _S1M, (79.5, 94.0)
    ),
    "ir_csn_152.ig65m_kinetics400": _bjuncek(
        "ir_csn_152", "irCSN_152_ft_kinetics_from_ig65m_f126851907.pth", _IG, (82.6, 95.3), "vmz_csn"
    ),
    "ir_csn_152.sports1m_kinetics400": _bjuncek(
        "ir_csn_152", "irCSN_152_ft_kinetics_from_Sports1M_f101599884.pth", _S1M, (78.2, 93.0), "vmz_csn"
    ),
    "ip_csn_152.ig65m_kinetics400": _bjuncek(
        "ip_csn_152", "ipCSN_152_ft_kinetics_from_ig65m_f133090949.pth", _IG, (82.5, 95.3), "vmz_ip_csn"
    ),
    "ip_csn_152.sports1m_kinetics400": _bjuncek(
        "ip_csn_152", "ipCSN_152_ft_kinetics_from_Sports1M_f111279053.pth", _S1M, (78.8, 93.5), "vmz_ip_csn"
    ),
    "i3d_rgb.imagenet_kinetics400": _deepmind(
        "rgb_imagenet",
        "f4bfd6f4af485f276c68333d3eca3697b691bb647f0167a03fe021147ca7f8eb",
        _INET,
        "2958652e0c9c48a65010c0ebda5c9cfd4edc7c18",
        (71.1, 89.3),
    ),
    "i3d_flow.imagenet_kinetics400": _deepmind(
        "flow_imagenet",
        "71594ac5f63cb0eb58512a13b56097dc0368d09e5959dffcc6e7a45b19832366",
        _INET,
        "bf56831f663abc3de0d35f193030b73a3df7fb61",
        (63.4, 84.9),
    ),
    "i3d_rgb.kinetics400": _deepmind(
        "rgb_scratch",
        "4fcd08b3e140f0267730e462295054c6a38f6cfd9991c310ee3d37bbdfd7030c",
        "Kinetics-400",
        "fa7df95674dbf3579e7fccd954e51e706b4734c1",
        (68.4, 88.0),
    ),
    "i3d_flow.kinetics400": _deepmind(
        "flow_scratch",
        "81fccedbe8352f8509b05ca9f2959f5aac13552dc680c808acd4f39be82620e6",
        "Kinetics-400",
        "1d6a0b68f32544af11111342857e47e30d13afa9",
        (61.5, 83.4),
    ),
}


def list_pretrained() -> dict[str, Pretrained]:
    """Every name that `load_pretrained` and `--weights` know, with what is known about the weights."""
    return dict(PRETRAINED)


def cached(on_cpu: bool) -> dict[str, str]:
    """The names whose weights are in the cache, undamaged, best to start from first. Nothing is downloaded.

    On a CPU, where the time of a training decides, those with the fewest multiply-adds a clip come first; elsewhere,
    those with the highest published top-1. Of equal ones, the last download comes first.

    Returns:
      The figure of each that decides, in words.
    """
    folder = cache_folder("weights")
    there = [name for name, row in PRETRAINED.items() if download.is_cached(name, row.files)]
    there.sort(key=lambda name: (folder / name / PRETRAINED[name].files[0].name).stat().st_mtime, reverse=True)
    if on_cpu:
        macs = sorted(((_multiply_adds(PRETRAINED[name]), name) for name in there), key=lambda row: row[0])
        return {name: f"{count / 1e9:.1f} billion multiply-adds a clip" for count, name in macs}
    top1 = sorted((((*PRETRAINED[name].accuracy, 0.0)[0], name) for name in there), key=lambda row: -row[0])
    return {name: f"{share:g} % top-1 as published" if share else NOT_PUBLISHED for share, name in top1}


def _multiply_adds(row: Pretrained) -> int:
    """Of one clip as its publisher's preprocessing makes it."""
    source = SOURCES[row.source]
    pre = dataclasses.replace(source.preprocessing, **row.preprocessing)
    fields = next(dict(candidate.fields) for candidate in source.candidates if candidate.name == row.network)
    shape = (pre.num_frames, pre.crop_size, pre.crop_size, 3)
    make = functools.partial(create_model, row.network, num_classes=row.num_classes, num_frames=shape[0], **fields)
    return sum(part.macs for part in count_parts(lambda: make(crop_size=shape[1], rngs=nnx.Rngs(0)), shape))


def pretrained_name(text: str | os.PathLike) -> str | None:
    """The name in the table that a user means by `text`; None if it is a path.

    `name:r3d_18.kinetics400` is a name in any case, `r3d_18.kinetics400` unless there is a file or folder of that name.

    Raises:
      ConfigError: for an unknown name after `name:`, with the nearest known ones.
    """
    text = os.fspath(text)
    if text.startswith(PREFIX):
        look_up(PRETRAINED, text.removeprefix(PREFIX), "weights")
        return text.removeprefix(PREFIX)
    return text if text in PRETRAINED and not os.path.exists(text) else None


def read_pretrained(name: str, log: Callable[[str], None] = download.to_stderr) -> Converted:
    """The network with published weights, which are downloaded if the cache lacks them.

    Args:
      name: a key of `PRETRAINED`.

    Raises:
      ConfigError: for an unknown name.
      DownloadError: if a file cannot be had, or is not what its publisher describes.
      ConversionError: if torch or TensorFlow is needed and missing, or the file holds another network.
    """
    row = look_up(PRETRAINED, name, "weights")
    files.check_reader(row.files[0].name)  # before a download that could not be read
    path, *_ = download.fetch(name, row.files, log)
    try:
        found = convert(path, row.network, row.source)
        if found.num_classes != row.num_classes:
            raise ConversionError(f"has {found.num_classes} classes, and {name} has {row.num_classes}")
    except ConversionError as error:
        raise ConversionError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    preprocessing = dataclasses.replace(found.preprocessing, **row.preprocessing)
    return dataclasses.replace(found, preprocessing=preprocessing, origin=f"{name}: {found.origin}, {row.data}")
