"""The option that names the network to use, which several commands share."""

import argparse

PLACES = (
    "a run's folder (its best checkpoint is used), a checkpoint, a folder from save_pretrained, a file of weights, "
    "the URL of one of these, or the name of published weights: r2plus1d_18.kinetics400"
)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Declares --weights, which is also called --workdir, for what `trained.load_model` takes."""
    parser.add_argument("--weights", "--workdir", required=True, metavar="WEIGHTS", help=PLACES)
