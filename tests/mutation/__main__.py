"""python -m tests.mutation [MODULE ...]: changes a module in many small ways, and counts the changes no test notices.

Needs mutmut (`pip install mutmut==3.8.1`), which makes the changes and runs the tests; its settings are in
pyproject.toml. Each module gets a copy of the checkout in --folder, where `mutmut show NAME` prints a change.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Module -> arguments of pytest that select the tests which concern it
TESTS = {
    "evaluation/metrics": ("tests/evaluation/test_metrics.py",),
    "evaluation/fusion": ("tests/evaluation/test_fusion.py",),
    "training/losses": ("tests/training/test_losses.py",),
    "training/optimizer": ("tests/training/test_optimizer.py",),
    "training/step": ("tests/training/test_step.py", "-k", "definition or refused or frozen or moving"),
    "weights/matching": ("tests/weights/test_matching.py",),
    "weights/tables": ("tests/weights/test_matching.py",),
    "models/heads": (
        "tests/models/test_heads_against_torch.py", "tests/models/test_heads.py", "-k", "not every_network"
    ),
    "models/functional": ("tests/models/test_functional.py",),
    "models/layers": ("tests/models/test_layers.py",),
    "models/network": (
        "tests/models/test_network.py", "tests/models/test_video_resnet.py", "-k", "not every_family and not remat"
    ),
    "models/registry": (
        "tests/models/test_registry.py", "tests/models/test_video_resnet.py", "-k", "not every_family and not remat"
    ),
    "models/video_resnet": (
        "tests/models/test_residual_blocks.py", "tests/models/test_registry.py", "tests/models/test_counts.py", "-k",
        "test_residual_blocks or test_registry or temporal or factorized_width or leaves or (grid and r3d)",
    ),
    "models/inception": (
        "tests/models/test_inception.py", "tests/models/test_counts.py", "-k",
        "test_inception or (grid and (i3d or s3d))",
    ),
    "data/read/sampling": ("tests/data/read/test_sampling.py",),
    "data/read/augment": ("tests/data/read/test_augment.py",),
    "data/read/pipeline": ("tests/data/read/test_pipeline.py", "-k", "not threads"),
}  # fmt: skip
MARKED = ("-m", "not long")  # also slow tests: some of these modules have few others
KILLED = {1, 2, 3, 24, 36, 152, -24}  # exit statuses: a test failed, an import did, pytest broke, or the time was up


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"{', '.join(TESTS)} (default: all)")
    parser.add_argument("--sample", type=int, default=0, help="changes of a module that are tried (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--again", action="store_true", help="try those that were left in --folder, and no others")
    parser.add_argument("--folder", type=Path, help="where the copies are made (default: a temporary folder)")
    args = parser.parse_args()
    unknown = set(args.modules) - set(TESTS)
    if unknown:
        parser.error(f"unknown modules {', '.join(sorted(unknown))}; known: {', '.join(TESTS)}")
    folder = args.folder or Path(tempfile.mkdtemp(prefix="mutants-"))
    print(f"{'module':22}{'mutants':>9}{'tried':>7}{'killed':>8}{'left':>6}   in {folder}", flush=True)
    for module in args.modules or TESTS:
        copy = folder / module.replace("/", "-")
        names = prepare(module, copy)
        if args.again:
            chosen = left(statuses(module, copy))
        else:
            chosen = random.Random(args.seed).sample(names, args.sample) if 0 < args.sample < len(names) else names
        if chosen:
            run(copy, sorted(chosen))
            try_at_import(module, copy)
        found = statuses(module, copy)
        print(f"{module:22}{len(names):9}{len(found):7}{len(found) - len(left(found)):8}{len(left(found)):6}")
        print("".join(f"  {name}\n" for name in left(found)), end="", flush=True)
    return 0


def prepare(module: str, copy: Path) -> list[str]:
    """A copy of the checkout, set up for one module, and the names of that module's mutants."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and Path(name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, copy / name)
    own = f'only_mutate = ["r23d_jax/{module}.py"]\npytest_add_cli_args_test_selection = {[*TESTS[module], *MARKED]}\n'
    settings = Path("pyproject.toml").read_text().replace("[tool.mutmut]\n", f"[tool.mutmut]\n{own}")
    (copy / "pyproject.toml").write_text(settings)
    code = (
        "import sys; from mutmut.mutation.file_mutation import mutate_file_contents as mutate; path = sys.argv[1]; "
        "print(*mutate(path, open(path).read()).mutant_names, sep='\\n')"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, f"r23d_jax/{module}.py"], cwd=copy, check=True, capture_output=True, text=True
    )
    return [f"r23d_jax.{module.replace('/', '.')}.{name}" for name in made.stdout.split()]


def run(copy: Path, names: list[str]) -> None:
    """Tries mutants, one at a time."""
    (copy / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)  # which tests run a function is found anew
    main = "import sys; from mutmut.__main__ import cli; sys.exit(cli())"
    command = ["nice", "-n", "19", sys.executable, "-c", main, "run", "--max-children", "1", *names]
    with (copy / "mutmut.log").open("w") as log:
        subprocess.run(command, cwd=copy, check=True, stdout=log, stderr=subprocess.STDOUT)


def try_at_import(module: str, copy: Path) -> None:
    """Tries mutants of what runs at import with all tests.

    mutmut runs the first test only for them, or stops at an import that fails, which it reports as 255.
    """
    stats = json.loads((copy / "mutants" / "mutmut-stats.json").read_text())["tests_by_mangled_function_name"]
    path = copy / "mutants" / f"r23d_jax/{module}.py.meta"
    meta = json.loads(path.read_text())
    found = statuses(module, copy)
    for name in left(found):
        if found[name] == 255 or len(stats.get(name.partition("__mutmut_")[0], ())) == 1:
            command = [sys.executable, "-m", "pytest", "-q", "-x", "--rootdir=.", *TESTS[module], *MARKED]
            environment = os.environ | {"MUTANT_UNDER_TEST": name}
            done = subprocess.run(command, cwd=copy / "mutants", env=environment, capture_output=True)
            meta["exit_code_by_key"][name] = done.returncode
    path.write_text(json.dumps(meta))


def statuses(module: str, copy: Path) -> dict[str, int]:
    """The exit status of the tests for each mutant that was tried."""
    path = copy / "mutants" / f"r23d_jax/{module}.py.meta"
    return {k: v for k, v in json.loads(path.read_text())["exit_code_by_key"].items() if v is not None}


def left(found: dict[str, int]) -> list[str]:
    return [name for name, status in found.items() if status not in KILLED]


if __name__ == "__main__":
    sys.exit(main())
