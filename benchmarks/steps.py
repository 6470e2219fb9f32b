"""Times a training step and a forward pass of one network in r23d_jax and in torch, on the available device.

Both read uint8 clips that lie on the device, normalize them, and train with cross-entropy and SGD with momentum, in
float32 on a CPU, and in bfloat16 with float32 parameters on a GPU.
"""

import contextlib
import dataclasses
import functools
import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from benchmarks import measure
from r23d_jax.runtime import backend

# Ours, and its head. r2plus1d_18 is torchvision's, whose mid-planes are not the paper's.
NETWORKS = {
    "r2plus1d_18": ("r2plus1d_tv_18", "avgpool"),
    "r3d_18": ("r3d_18", "avgpool"),
    "r2plus3d_18+vit": ("r2plus3d_18", "vit"),
}
TORCH_VARIANTS = ("torch eager", "torch channels_last_3d", "torch compiled")
OURS = "r23d_jax"
NUM_CLASSES = 101


@dataclasses.dataclass(frozen=True)
class Clips:
    """The size of a batch."""

    batch: int = 8
    num_frames: int = 16
    size: int = 112

    def __str__(self) -> str:
        return f"{self.batch} x {self.num_frames} x {self.size} x {self.size}"

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(B, T, H, W, 3)."""
        return self.batch, self.num_frames, self.size, self.size, 3

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Random uint8 clips (B, T, H, W, 3) and labels."""
        rng = np.random.default_rng(0)
        return rng.integers(0, 256, self.shape, np.uint8), rng.integers(0, NUM_CLASSES, self.batch).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is timed.

    Attributes:
      queue: starts a training step and returns a call that ends when the step is done.
      forward: one forward pass in evaluation mode, which is done when the call ends.
      memory: the most bytes of the device that were in use so far; 0 where the device does not say.
    """

    queue: Callable[[], Callable[[], object]]
    forward: Callable[[], object]
    memory: Callable[[], int]

    def step(self) -> None:
        """One training step from start to end."""
        self.queue()()


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training before its values exist: the parts of the project's step that do not depend on the devices.

    Attributes:
      cfg: of the training.
      network: without its values.
      initialize: draws the parameters and the BN statistics.
      tx, schedule: SGD with momentum.
    """

    cfg: Any
    network: Any
    initialize: Callable[[], tuple[Any, Any]]
    tx: Any
    schedule: Any

    def step(self, mesh: Any, shardings: Any) -> Any:
        """The project's own training step."""
        from r23d_jax.training.step import make_train_step

        return make_train_step(self.network, self.tx, self.cfg, NUM_CLASSES, mesh, shardings, self.schedule)


def plan(name: str, clips: Clips, dtype: str, remat: bool = False) -> Plan:
    """A training of one of `NETWORKS` that computes in `dtype`."""
    from flax import nnx

    from r23d_jax.config import Config, HeadConfig
    from r23d_jax.models.functional import split_model
    from r23d_jax.models.registry import create_model
    from r23d_jax.training.optimizer import make_optimizer

    model_name, head = NETWORKS[name]
    cfg = Config()
    cfg.data.num_frames, cfg.data.crop_size, cfg.data.short_side = clips.num_frames, clips.size, clips.size
    cfg.optimizer.name, cfg.optimizer.warmup_epochs, cfg.optimizer.learning_rate = "sgd", 0.0, 1e-3
    cfg.optimizer.weight_decay, cfg.optimizer.clip_norm, cfg.train.label_smoothing = 0.0, 0.0, 0.0
    cfg.train.global_batch_size, cfg.parallel.compute_dtype = clips.batch, dtype

    def make() -> Any:
        return create_model(
            model_name,
            num_classes=NUM_CLASSES,
            head=HeadConfig(kind=head, dropout=0.5 if head == "vit" else 0.0),
            num_frames=clips.num_frames,
            crop_size=clips.size,
            dtype=dtype,
            remat=remat,
            rngs=nnx.Rngs(0),
        )

    network, params, _ = split_model(nnx.eval_shape(make))
    tx, schedule = make_optimizer(cfg.optimizer, params, steps_per_epoch=100, num_steps=1000)
    return Plan(cfg, network, lambda: split_model(make())[1:], tx, schedule)


def ours(name: str, clips: Clips, formulation: str = "auto", remat: bool = False) -> Candidate:
    """Our network with the project's own training step, for all devices together."""
    import jax

    from r23d_jax.checkpoint.state import create_state
    from r23d_jax.config import preprocessing
    from r23d_jax.models.convolution import use_formulation
    from r23d_jax.models.preprocess import prepare_video
    from r23d_jax.runtime import parallel

    made = plan(name, clips, "float32" if jax.default_backend() == "cpu" else "bfloat16", remat)
    mesh = parallel.make_mesh()
    state, shardings = create_state(made.initialize, made.tx, 0.0, mesh)
    step, network, pre = made.step(mesh, shardings), made.network, preprocessing(made.cfg.data)
    apply = jax.jit(
        lambda params, batch_stats, video: network.apply_eval(params, batch_stats, prepare_video(video, pre)),
        compiler_options=parallel.compiler_options(mesh),
    )
    video, label = clips.draw()
    rows = {"video": video, "label": label, "mask": np.ones(clips.batch, np.float32)}
    batch = parallel.global_batch(rows, mesh)
    holder = [state]

    def train() -> Callable[[], object]:
        with use_formulation(formulation):
            holder[0], metrics = step(holder[0], batch)
        return functools.partial(jax.block_until_ready, metrics)

    def forward() -> None:
        with use_formulation(formulation):
            jax.block_until_ready(apply(holder[0].params, holder[0].batch_stats, batch["video"]))

    def memory() -> int:
        return int((jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0))

    return Candidate(train, forward, memory)


def torch_peer(name: str, clips: Clips, variant: str) -> Candidate:
    """The same in torch: one of `TORCH_VARIANTS`."""
    import torch

    from benchmarks.torch_networks import make_network

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    net: Any = make_network(name, clips.num_frames, clips.size).to(device)
    channels_last = variant != "torch eager"
    for module in net.modules():
        if channels_last and isinstance(module, torch.nn.Conv3d):  # not a head's positions, which have four axes
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    run = torch.compile(net) if variant == "torch compiled" else net
    video, label = (torch.from_numpy(array).to(device) for array in clips.draw())
    label = label.long()
    mean = torch.tensor((0.43216, 0.394666, 0.37645), device=device)
    std = torch.tensor((0.22803, 0.22145, 0.216989), device=device)
    half = functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=cuda)

    def prepared() -> torch.Tensor:
        x = ((video.float() / 255 - mean) / std).permute(0, 4, 1, 2, 3)
        return x if channels_last else x.contiguous()

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    def train() -> Callable[[], object]:
        net.train()
        with half():
            loss = torch.nn.functional.cross_entropy(run(prepared()), label)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return wait if not cuda else torch.cuda.current_stream().record_event().synchronize

    def forward() -> None:
        net.eval()
        with torch.inference_mode(), half():
            run(prepared())
        wait()

    return Candidate(train, forward, torch.cuda.max_memory_allocated if cuda else lambda: 0)


def multiply_adds(name: str, clips: Clips) -> int:
    """Of one forward pass of one clip, in convolutions and matrix products; a training step takes three times these."""
    from flax import nnx

    from r23d_jax.models.complexity import count_parts
    from r23d_jax.models.registry import create_model

    model_name, head = NETWORKS[name]
    parts = count_parts(
        lambda: create_model(
            model_name,
            num_classes=NUM_CLASSES,
            head=head,
            num_frames=clips.num_frames,
            crop_size=clips.size,
            rngs=nnx.Rngs(0),
        ),
        (clips.num_frames, clips.size, clips.size, 3),
    )
    return sum(part.macs for part in parts)


@functools.cache
def _made(kind: str, name: str, clips: Clips, label: str) -> Callable[[], object]:
    """The "step" or "forward" of a candidate; the process is prepared as its users' are."""
    if label == OURS:
        backend.prepare_process()
        return getattr(ours(name, clips), kind)
    return getattr(torch_peer(name, clips, label), kind)


def _call(kind: str, name: str, clips: Clips, label: str) -> None:
    _made(kind, name, clips, label)()


def _own_process() -> ProcessPoolExecutor:
    """Candidates that share memory and threads slow each other down. Ctrl-C is for the process that started these."""
    ignore = (signal.SIGINT, signal.SIG_IGN)
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=signal.signal, initargs=ignore)


def _call_in(process: ProcessPoolExecutor, kind: str, name: str, clips: Clips, label: str) -> None:
    process.submit(_call, kind, name, clips, label).result()


def run(kind: str, rounds: int, clips: Clips, networks: list[str], variants: list[str]) -> list[dict[str, Any]]:
    """Times "step" or "forward" of every network against torch.

    Args:
      kind: which.
      rounds: of A B C A B C.
      clips: the batch.
      networks: of `NETWORKS`.
      variants: keys of `TORCH_VARIANTS`; none for r23d_jax alone. One that torch cannot build is logged and left out.

    Returns:
      A row per network and candidate; `ratio` above 1 is faster than the fastest torch variant of the same row.
    """
    rows = []
    for name in networks:
        print(f"{kind} of {name}, {clips}")
        with contextlib.ExitStack() as stack:
            calls: dict[str, Callable[[], object]] = {}
            for label in (*variants, OURS):
                process = stack.enter_context(_own_process())
                call = functools.partial(_call_in, process, kind, name, clips, label)
                try:
                    call()
                except Exception as error:  # noqa: BLE001  torch.compile needs a C++ compiler and fails in many ways
                    if label != "torch compiled":
                        raise
                    process.shutdown()
                    print(f"  {label} does not work here: {(str(error) or repr(error)).splitlines()[0][:120]}")
                    continue
                calls[label] = call
            times = measure.alternate(calls, rounds, warm_up=1)
        peers = [one for one in times if one.name != OURS]
        best = min(peers, key=lambda one: one.median) if peers else times[-1]
        for one in times:
            ratio, low, high = one.against(best)
            rows.append(
                {
                    "network": name,
                    "candidate": one.name,
                    "clips": str(clips),
                    "seconds": one.median,
                    "ratio": ratio if peers else None,
                    "spread": [low, high] if peers else None,
                    "gflops": 2
                    * (3 if kind == "step" else 1)
                    * multiply_adds(name, clips)
                    * clips.batch
                    / one.median
                    / 1e9,
                }
            )
    return rows
