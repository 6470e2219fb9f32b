"""Random damage to the newest checkpoint: it is never gone on from, it is named, and the one before is used."""

import random
import shutil
from pathlib import Path

import pytest

from tests.checkpoint.test_checkpoint import assert_same, restore, saved, state_at, steps_in

DAMAGES = 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("whole")
    saved(workdir, 0.5, 0.6)
    return workdir


def damage(folder: Path, rng: random.Random) -> str:
    """Flips bytes of a random file of the folder, cuts it short, or removes it; says what was done."""
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))
    content, kind = bytearray(path.read_bytes()), rng.choice(("flipped", "truncated", "emptied", "removed"))
    if kind == "removed":
        path.unlink()
        return f"{path.relative_to(folder)} removed"
    if kind == "flipped":
        for _ in range(rng.choice((1, 8))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content if kind == "flipped" else content[: len(content) // 2 if kind == "truncated" else 0])
    return f"{path.relative_to(folder)} {kind}"


@pytest.mark.slow
def test_a_damaged_checkpoint_is_never_gone_on_from(whole: Path, tmp_path: Path) -> None:
    """What Orbax does not read may be damaged without harm: then the newest is used, and every value is right.

    How many damages meet such a file differs, because Orbax names its files at random.
    """
    passed_over = 0
    for seed in range(DAMAGES):
        workdir = tmp_path / str(seed)
        shutil.copytree(whole, workdir)
        done = damage(workdir / "checkpoints" / "2", random.Random(seed))
        state, _, lines = restore(workdir)
        assert state is not None, done
        step = int(state.step)
        assert_same(state, state_at(step)[0])
        if step == 2:
            assert not lines, done
        else:
            passed_over += 1
            (line,) = lines
            assert "checkpoints/2 is damaged (" in line and "resuming from step 1" in line, done
            assert steps_in(workdir) == {"1", "2.damaged"}, done
    assert passed_over
