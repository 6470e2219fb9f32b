"""The measurement of loading runs without torch, and what it reports makes sense."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import indexing, loading, shipped


def test_quality() -> None:
    pil, plain, antialiased, scaled = loading._quality()
    assert (pil["psnr"], pil["alias"]) == (None, 1)
    assert antialiased["psnr"] > plain["psnr"]
    assert abs(antialiased["alias"] - 1) < 0.1 and 2 < plain["alias"]
    assert scaled["psnr"] > 45 and scaled["alias"] < 1.5


@pytest.mark.slow
def test_tiny() -> None:
    found = json.loads(json.dumps(loading.run(rounds=2, workers=2, tiny=True, peer=False)))
    assert found.keys() == {"rows", "quality", "memory", "work"}
    assert [row["name"] for row in found["rows"]] == [
        "ours, frames 320x240",
        "ours, frames 320x240, antialias",
        "ours, frames 320x240, dct_scaling",
        "ours, frames 171x128",
        "ours, packed 171x128",
    ]
    for row in found["rows"]:
        assert row.keys() == {"name", "clips_per_second", "ratio_usual", "ratio_same", "ratio_usual_spread"}
        assert row["clips_per_second"] > 0
        assert row["ratio_usual"] is row["ratio_same"] is row["ratio_usual_spread"] is None
    assert [row.keys() for row in found["quality"]] == [{"name", "psnr", "alias"}] * 4
    assert len(found["memory"]["bytes"]) == 8
    assert found["memory"]["growth"] > 0


@pytest.mark.long
def test_shipped_configs() -> None:
    found = json.loads(json.dumps(shipped.run(rounds=1, workers=2, tiny=True, peer=False)))
    names = [f"configs/{name}.py, augment_on={place}" for name in shipped.CONFIGS for place in ("host", "device")]
    assert [row["name"] for row in found["rows"]] == ["TensorFlow, decoding alone", *names]
    decoding, host, device = (row["processor"] for row in found["rows"][:3])
    assert 0 < decoding < device < host and found["rows"][0]["ratio_decoding"] == 1
    assert all(row["clips_per_second"] > 0 and row["ratio_peer"] is None for row in found["rows"])


@pytest.mark.long
def test_an_index_whose_videos_do_not_exist() -> None:
    packed, frames = indexing.run(videos=300, frames=20, batch=4)
    assert (packed["name"], frames["name"]) == ("packed", "frames")
    for row in (packed, frames):
        assert (row["videos"], row["frames"]) == (300, 20) and 0 < row["mib"] < indexing.MOST_MIB
    assert not indexing.exceeds([packed | {"seconds": 1.0}, frames | {"seconds": 1.0}])
    assert indexing.exceeds([packed | {"seconds": 9.0}]) and indexing.exceeds([frames | {"seconds": 1.0, "mib": 999}])
    assert "index of 300 x 20 frames: packed " in indexing.summary([packed, frames])


def test_no_torch_without_a_peer() -> None:
    """Nor TensorFlow, which the peer's worker processes would import for nothing."""
    command = "import sys, benchmarks.loading; assert not {'torch', 'tensorflow'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", command], check=True, cwd=Path(__file__).resolve().parents[1])
