"""Video action recognition: `r23d-jax <command>`, or `python -m r23d_jax <command>` in a checkout."""

import argparse
import importlib
import sys

from r23d_jax.commands.errors import guarded
from r23d_jax.runtime import backend, program

COMMANDS = {
    "train": "train according to a config file, or resume",
    "evaluate": "score a checkpoint of a training, the last one by default",
    "plan": "show what a training needs on devices that are not here: memory, time, input",
    "prepare": "turn video files into frame folders or packed shards",
    "new": "turn a folder of class folders into a project with a config",
    "info": "show the cost of a network, part by part; or list all names",
    "predict": "classify video files with a trained network",
    "explain": "show where and when a trained network looks in a video",
    "features": "compute features of videos, probe them, and draw them",
    "serve": "open a page in the browser that classifies videos",
    "status": "show where a run is, how fast, and whether it is alive",
    "study": "run a grid of trainings, and make tables and pictures of the results",
    "convert": "convert weights from and to other code bases",
    "export": "write a trained network for PyTorch, or to run without this code",
    "requirements": "show the packages that each command needs, and which are missing",
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status. A mistake of the user gives one message, without a traceback."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in ("train", "evaluate"):
        from r23d_jax.commands import train

        return train.main(argv[1:], argv[0])
    if argv[:1] == ["plan"]:  # its flags are those of a config as well
        from r23d_jax.commands import plan

        return plan.main(argv[1:])
    chosen = next((word for word in argv if word in COMMANDS), "")
    return guarded(chosen, lambda: _run(argv, chosen))


def _run(argv: list[str], chosen: str) -> int:
    parser = argparse.ArgumentParser(prog=program.command("").strip(), description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        if name == chosen:  # only the command that runs is imported
            importlib.import_module(f"r23d_jax.commands.{name}").add_arguments(sub)
    args = parser.parse_args(argv)
    backend.prepare_process()
    return importlib.import_module(f"r23d_jax.commands.{args.command}").run(args)


if __name__ == "__main__":
    sys.exit(main())
