"""Video action recognition: `r23d-jax <command>`, or `python -m r23d_jax <command>` in a checkout."""

import argparse
import importlib
import sys

from r23d_jax.commands import requirements
from r23d_jax.config import UserError
from r23d_jax.runtime import backend, program
from r23d_jax.runtime.progress import printable_output

COMMANDS = {
    "train": "train what a config file describes, or go on with it",
    "evaluate": "score the best checkpoint of a training",
    "prepare": "turn video files into frame folders or packed shards",
    "info": "what a network costs, part by part; or all names",
    "predict": "classify video files with a trained network",
    "study": "a grid of trainings, with tables and pictures of their results",
    "convert": "weights of other code bases to ours, and ours to theirs",
    "export": "write a trained network for PyTorch, or to run without this code",
    "requirements": "which packages each command needs, and which are missing",
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status. What the user can put right is one message, without a traceback."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in ("train", "evaluate"):
        from r23d_jax.commands import train

        return train.main(argv[1:], argv[0])
    parser = argparse.ArgumentParser(prog=program.command("").strip(), description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    chosen = next((word for word in argv if word in COMMANDS), None)
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        if name == chosen:  # only the command that runs is imported
            importlib.import_module(f"r23d_jax.commands.{name}").add_arguments(sub)
    args = parser.parse_args(argv)
    backend.prepare_process()
    with printable_output():
        try:
            return importlib.import_module(f"r23d_jax.commands.{args.command}").run(args)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
        except ModuleNotFoundError as error:
            if missing := requirements.explain(args.command, error):
                print(f"error: {missing}", file=sys.stderr)
                return 2
            raise


if __name__ == "__main__":
    sys.exit(main())
