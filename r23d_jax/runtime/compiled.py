"""Counts what a compiled program does, from its text: kernels, convolutions, the compiler's cycles, collectives."""

import collections
import math
import re
from typing import Any

_SIZES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
_SIZES |= {"u64": 8, "s64": 8, "f64": 8}
# A kernel is of the first kind whose text is in its body
_KINDS = {
    "cudnn$conv": "convolution",
    "cublas": "matrix product",
    "scatter(": "scatter",
    " reduce-window(": "window",
    " transpose(": "transpose",
    " copy(": "copy",
    " reduce(": "reduction",
    " pad(": "padding",
    " convert(": "elementwise with conversion",
    "": "elementwise",
}
_RUNS = {"fusion", "custom-call", "copy", "reduce", "transpose", "scatter", "while", "conditional", "sort"}
_LINE = re.compile(r"^  (?:ROOT )?%?(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)$", re.M)


def plain_text(compiled: Any) -> str:
    """The optimized program of a `jax.stages.Compiled`, without comments."""
    return re.sub(r"/\*.*?\*/", "", compiled.as_text())


def _arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """The dtype and the dimensions of every array of a shape, such as (bf16[8,3]{1,0}, f32[])."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return [(kind, tuple(int(size) for size in sizes.split(",") if size)) for kind, sizes in found]


def _bytes(arrays: list[tuple[str, tuple[int, ...]]]) -> int:
    return sum(_SIZES[kind] * math.prod(sizes) for kind, sizes in arrays)


def count_gpu(text: str) -> dict[str, Any]:
    """Counts kernels of a program for a GPU.

    Returns:
      "convolutions": how many there are of each "layout channels", where channels are those of what it reads and
      writes; "kernels": of each kind, how many there are and the bytes that they read and write.
    """
    bodies = dict(re.findall(r"^%(\S+) \(.*?\{\n(.*?)^\}", text, re.M | re.S))
    lines = _LINE.findall(text[text.index("\nENTRY") :])
    shapes = {name: shape for name, shape, *_ in lines}
    convolutions, kernels = collections.Counter(), {}
    for _, shape, op, operands, rest in lines:
        if op not in _RUNS:
            continue
        read = [array for name in set(re.findall(r"%([\w.-]+)", operands)) for array in _arrays(shapes[name])]
        written = _arrays(shape)
        if labels := re.search(r'dim_labels=(\w+).*custom_call_target="__cudnn', rest):
            layout = labels[1].partition("_")[0]
            # without cuDNN's workspace and a bias
            used = [sizes for _, sizes in [*read, *written] if len(sizes) == len(layout)]
            convolutions[f"{layout} {sorted({sizes[layout.index('f')] for sizes in used})}"] += 1
        body = f" {op}({rest}" + bodies.get((re.findall(r"calls=%([\w.-]+)", rest) or [""])[0], "")
        kind = next(kind for mark, kind in _KINDS.items() if mark in body)
        count, moved = kernels.get(kind, (0, 0))
        kernels[kind] = count + 1, moved + _bytes([*read, *written])
    return {"convolutions": dict(convolutions), "kernels": kernels}


def count_tpu(text: str) -> dict[str, Any]:
    """Adds up the compiler's own estimate of cycles, by the last part of the operation's name."""
    cycles: collections.Counter[str] = collections.Counter()
    for line in text[text.index("\nENTRY") :].splitlines():
        if estimate := re.search(r'"estimated_cycles":"(\d+)"', line):
            operation = re.search(r'op_name="[^"]*?([^"/]*)"', line)
            cycles[operation[1] if operation else "?"] += int(estimate[1])
    return {"cycles": cycles.total(), "cycles_by_operation": dict(cycles.most_common())}


def collectives(text: str, devices: int) -> dict[str, tuple[int, int]]:
    """The collectives of one run of a program on so many devices, those of a loop times its turns.

    Returns:
      Of each kind, such as "all-reduce", how many there are, and the bytes that each device sends with rings.
    """
    bodies: dict[str, str] = {}
    for head, name, body in re.findall(r"^(ENTRY )?%?(\S+) \(.*?\{\n(.*?)^\}", text, re.M | re.S):
        bodies["ENTRY" if head else name] = body
    found: dict[str, tuple[int, int]] = {}

    def visit(name: str, times: int) -> None:
        for _, shape, op, _, rest in _LINE.findall(bodies.get(name, "")):
            kind = op.removesuffix("-start")
            if kind in _SENT:
                size = _group_size(rest, devices)
                written = _bytes(_arrays(shape))
                if op == "all-gather-start":  # its shape holds what it reads as well
                    written = written * size // (size + 1)
                elif op == "collective-permute-start":
                    written //= 2
                count, sent = found.get(kind, (0, 0))
                found[kind] = count + times, sent + times * int(_SENT[kind](size) * written)
            turns = int((re.findall(r'known_trip_count":\{"n":"(\d+)"', rest) or ["1"])[0]) if op == "while" else 1
            for called in re.findall(r"(?:calls|body|to_apply|branch_computations)=\{?%?([\w.-]+)", rest):
                visit(called, times * turns)

    visit("ENTRY", 1)
    return found


def _group_size(rest: str, devices: int) -> int:
    """How many devices exchange with each other: XLA writes the groups as lists, as a shape, or as axes of a mesh."""
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
    if shape := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(shape[1])
    group = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    return group[1].count(",") + 1 if group else devices


# What a device sends in a ring of n, over the bytes that the operation gives it
_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
