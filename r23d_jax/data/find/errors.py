"""Errors in data on disk, and the remedy for missing data."""

from r23d_jax.config import UserError
from r23d_jax.runtime.program import command

UCF101_URL = "https://www.crcv.ucf.edu/data/UCF101.php"


class DataError(UserError, ValueError):
    """Something about the data on disk is wrong; the message names the file and the remedy."""


def remedy() -> str:
    """The remedy for missing data, for messages."""
    return (
        f"Download UCF101 from {UCF101_URL}, then make frames of it: {command('prepare')} --videos UCF-101 --out "
        f"data/ucf101, and set --config.data.root=data/ucf101/frames. To try without data: {command('train')} "
        "--config=configs/quickstart.py"
    )
