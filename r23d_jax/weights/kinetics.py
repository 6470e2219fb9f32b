"""The classes of Kinetics-400 (Kay et al. 2017, arXiv:1705.06950) in alphabetical order."""

from pathlib import Path


def kinetics400() -> tuple[str, ...]:
    """The 400 names, as torchvision and DeepMind spell them."""
    return tuple(Path(__file__).with_name("kinetics400.txt").read_text(encoding="utf-8").splitlines())
