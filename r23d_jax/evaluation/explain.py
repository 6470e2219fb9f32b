"""Where and when a network looks: Grad-CAM of any network, and the attention of a head that has it.

Both give a map on a coarse grid of places in the clip, (T, H, W), which `upsample` brings to the size of its frames.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.special import softmax

from r23d_jax.config import Preprocessing, UserError, look_up
from r23d_jax.models.convolution import compiled_for
from r23d_jax.models.functional import HasNetwork, bare, split_model
from r23d_jax.models.heads import AttentionPoolHead, ViTHead
from r23d_jax.models.network import VideoNetwork
from r23d_jax.models.preprocess import prepare_video
from r23d_jax.runtime import parallel
from r23d_jax.runtime.progress import Progress, announced

_LONG_WORK = 5.0  # seconds after which the progress is shown
COMPILING = "compiling the network, which may take a minute"


def grad_cam(head: Any, features: jax.Array, target: jax.Array) -> jax.Array:
    """The places of the last feature map that raise the logit of a class (Selvaraju et al. 2017, arXiv:1610.02391).

    The gradient of the logit, averaged over time and space, weighs the channels; what lowers the logit is cut off.

    Args:
      head: turns features into logits.
      features: (B, T, H, W, C).
      target: () int32, the class.

    Returns:
      (B, T, H, W) float32, at least 0.
    """
    features = features.astype(jnp.float32)
    gradient = jax.grad(lambda x: head(x)[:, target].sum())(features)
    return jax.nn.relu(jnp.einsum("bthwc,bc->bthw", features, gradient.mean((1, 2, 3))))


def attention(head: Any, features: jax.Array, target: jax.Array) -> jax.Array:
    """How much of what the head classifies comes from each token; every class has the same map.

    In a ViT head this is attention rollout (Abnar and Zuidema 2020, arXiv:2005.00928): in each block half of a token is
    passed on by the residual path, and half is the mean over attention heads. The CLS row of the product of all blocks
    is the map. An attention pool has one layer and no residual path, so its weights are the map.

    Args:
      head: a ViT head or an attention pool.
      features: (B, T, H, W, C).

    Returns:
      (B, T, H, W) float32; with tokens="time" (B, T, 1, 1).
    """
    del target
    weights = _ROLLOUTS[type(head)](head, head.tokenizer(features))
    averaged = head.tokenizer.averaged
    return weights.reshape(-1, *(1 if axis in averaged else features.shape[axis] for axis in (1, 2, 3)))


def _rollout(head: ViTHead, tokens: jax.Array) -> jax.Array:
    cls = jnp.broadcast_to(head.cls[...], (tokens.shape[0], 1, tokens.shape[-1]))
    tokens = jnp.concatenate([cls, tokens], axis=1)
    passed = identity = jnp.eye(tokens.shape[1])[None]
    for block in head.blocks:
        normed = block.norm1(tokens)
        passed = (0.5 * identity + 0.5 * attention_weights(block.attention, normed, normed).mean(1)) @ passed
        tokens = block(tokens)
    return passed[:, 0, 1:]


def _pooling(head: AttentionPoolHead, tokens: jax.Array) -> jax.Array:
    query = jnp.broadcast_to(head.query[...], (tokens.shape[0], 1, tokens.shape[-1]))
    return attention_weights(head.attention, query, head.token_norm(tokens)).mean(1)[:, 0]


def attention_weights(layer: nnx.MultiHeadAttention, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """The weights of a layer, (B, Q, D) and (B, K, D) -> (B, heads, Q, K) float32; rows add up to 1."""
    query, key = (x.astype(jnp.float32) for x in (layer.query(queries), layer.key(keys)))
    return jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1]))


_ROLLOUTS: dict[type, Callable[[Any, jax.Array], jax.Array]] = {ViTHead: _rollout, AttentionPoolHead: _pooling}
# --method -> (head, features (B, T, H, W, C), class) -> maps (B, T, H, W)
METHODS: dict[str, Callable[[Any, jax.Array, jax.Array], jax.Array]] = {"gradcam": grad_cam, "attention": attention}


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The maps of K clips of one video."""

    logits: np.ndarray  # (K, C) float64
    target: int  # the class that the maps are about
    # (K, T, H, W) float32 in [0, 1], where 1 is the largest value of all clips; (K, T, 1, 1) if the head sees only when
    # something happens, not where. All zeros if nothing raises the logit of the class. The attention that every token
    # gets is subtracted.
    maps: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """(C,) float64, averaged over clips."""
        return softmax(self.logits, 1).mean(0)


class Explainer:
    """Makes the maps of clips with one compiled network.

    Args:
      method: a key of `METHODS`.
      batch_size: clips per call of the network.

    Raises:
      UserError: if the head has no such maps.
    """

    def __init__(
        self, model: VideoNetwork | HasNetwork, pre: Preprocessing, method: str = "gradcam", batch_size: int = 8
    ):
        maps = look_up(METHODS, method, "--method")
        head = bare(model).head
        if maps is attention and type(head) not in _ROLLOUTS:
            raise UserError(f"--method attention: {type(head).__name__} has no attention; use --method gradcam")
        self._batch_size, self._method = batch_size, method
        mesh = parallel.make_mesh(devices=jax.local_devices()[:1])
        network, params, batch_stats = split_model(model)
        self._values = jax.device_put((params, batch_stats), mesh.devices.flat[0])

        @compiled_for(parallel.platform(mesh))
        def features(values: Any, clips: jax.Array) -> tuple[jax.Array, jax.Array]:
            built = network.build(*values)
            found = built.features(prepare_video(clips, pre))
            return found, built.head(found).astype(jnp.float32)

        options = parallel.compiler_options(mesh)
        self._features = jax.jit(features, compiler_options=options)
        self._maps = jax.jit(lambda values, x, target: maps(network.build(*values).head, x, target))

    def __call__(self, clips: Iterable[np.ndarray], target: int | None = None, total: int = 0) -> Explanation:
        """Explains the clips of one video.

        Args:
          clips: at least one, each (read_frames, crop_size, crop_size, C) uint8.
          target: the class; None: the one that is most probable over all clips, as `predict` has it.
          total: how many clips there are, to show progress; 0: do not show it.
        """
        kept, logits = [], []
        clips = iter(clips)
        with Progress(total, "clips", "explain", shown=total > 0, after=_LONG_WORK) as progress:
            while batch := list(itertools.islice(clips, self._batch_size)):
                with announced(COMPILING, progress.message) if not kept else nullcontext():
                    found, scores = jax.device_get(self._features(self._values, self._padded(np.stack(batch))))
                kept.append(found[: len(batch)])
                logits.append(scores[: len(batch)].astype(np.float64))
                progress.update(len(batch))
        scores = np.concatenate(logits)
        target = int(softmax(scores, 1).mean(0).argmax()) if target is None else target
        maps = [self._maps(self._values, self._padded(found), np.int32(target))[: len(found)] for found in kept]
        found = np.concatenate(jax.device_get(maps)).astype(np.float32)
        found -= found.min() if self._method == "attention" else 0.0
        return Explanation(scores, target, found / max(float(found.max()), np.finfo(np.float32).tiny))

    def _padded(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([rows, np.zeros((self._batch_size - len(rows), *rows.shape[1:]), rows.dtype)])


def upsample(maps: np.ndarray, num_frames: int, size: int) -> np.ndarray:
    """(T, H, W) float32 -> (num_frames, size, size), linearly over time and space."""
    return np.asarray(jax.image.resize(maps, (num_frames, size, size), "linear"))
