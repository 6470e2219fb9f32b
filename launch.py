"""Trains or evaluates: python launch.py --config=configs/r23d.py [--workdir=DIR] [--mode=train|eval] [overrides]."""

import sys

from r23d_jax.commands.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
