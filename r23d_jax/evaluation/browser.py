"""The errors of an evaluation as a part of the report: the most confident ones in detail, and all to filter and play.

The page must stay one file that loads nothing, so clips and the one script are inside. The content security policy
names the script by its hash, and no text of the data is ever made into markup or code by it.
"""

import base64
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from r23d_jax.config import UserError
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.evaluation import film
from r23d_jax.evaluation.figures import escape
from r23d_jax.evaluation.nearest import Neighbors
from r23d_jax.evaluation.overlay import mp4
from r23d_jax.evaluation.result import EvalResult
from r23d_jax.runtime.progress import Progress

NUM_DETAILED = 10  # errors with film strips and maps
MOST_LISTED = 5000
PAGE_BYTES = 19_000_000  # clips are added until the page has so many; UCF101 has 3,783 test videos
# A clip is 24 frames spread over its video: about 8 kB, and 5 to 10 ms to encode
CLIP_FRAMES, CLIP_RATE, CLIP_HEIGHT, CLIP_QUALITY = 24, 8, 96, 30
_MOST_POINTS = 40  # of a curve
_CLIPS_AT_ONCE = 32

SCRIPT = """
const rows=[...document.querySelectorAll("#errors tbody tr")];
const picks=["true-class","predicted-class"].map(id=>document.getElementById(id));
function filter(){
  const [t,p]=picks.map(pick=>pick.value);let shown=0;
  for(const row of rows){row.hidden=(t&&row.dataset.t!==t)||(p&&row.dataset.p!==p);shown+=!row.hidden}
  document.getElementById("shown").textContent=shown.toLocaleString("en");
}
for(const pick of picks)pick.addEventListener("change",filter);
document.getElementById("all").addEventListener("click",()=>{for(const pick of picks)pick.value="";filter()});
for(const cell of document.querySelectorAll(".matrix [data-pair]"))cell.addEventListener("click",()=>{
  cell.dataset.pair.split(" ").forEach((value,k)=>{picks[k].value=value});filter();
  document.getElementById("errors").scrollIntoView({block:"center"});
});
document.getElementById("errors").addEventListener("click",event=>{
  const button=event.target.closest("button[data-clip]");if(!button)return;
  const video=document.createElement("video");
  Object.assign(video,{autoplay:true,loop:true,muted:true,controls:true,playsInline:true});
  video.onerror=()=>video.replaceWith("this browser does not play H.264");
  video.src="data:video/mp4;base64,"+button.dataset.clip;button.replaceWith(video);
});
"""
STYLE = """
.errors{max-height:78vh;overflow:auto;border-top:1px solid #e4e7eb;margin-top:10px}
.errors thead th{position:sticky;top:0;background:#fff}.errors tr[hidden]{display:none}
.errors video{display:block;height:144px}
.times{display:block;width:150px;height:36px;background:#f5f7fa}.times *{fill:none;stroke-width:1.6}
.times .p{stroke:#D55E00}.times .t{stroke:#0072B2}.matrix [data-pair]{cursor:pointer}
select,button{font:inherit;padding:2px 8px;margin-right:8px;max-width:260px}
"""
_BUTTON = '<button type="button" data-clip="{}">play</button>'

Maps = Callable[[int, int], str]  # (row of the index, row of the result) -> a picture as HTML, or ""


def no_map(row: int, video: int) -> str:
    """Where there is no network to explain."""
    return ""


def policy_of(script: str) -> str:
    """What a content security policy needs besides, for one script in the page and for clips."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"; media-src data:; script-src 'sha256-{digest}'"


def confident_errors(result: EvalResult) -> np.ndarray:
    """Rows of the wrong videos, the highest probability of the wrong class first."""
    wrong = np.flatnonzero(result.evaluated & (result.predictions != result.labels))
    return wrong[np.argsort(-result.probabilities[wrong, result.predictions[wrong]], kind="stable")]


def detailed(
    result: EvalResult,
    errors: np.ndarray,
    index: VideoIndex | None,
    maps: Maps,
    neighbors: Neighbors | None,
) -> list[str]:
    """A figure for each of the first errors: its film strip, its maps, and the nearest training video.

    Args:
      errors: rows of `result`.
      index: the videos; None if they cannot be read.
      maps: pictures of what the network looked at.
    """
    row_of = _rows(index)
    figures = []
    for video in errors[:NUM_DETAILED].tolist():
        name, probability = str(result.names[video]), result.probabilities[video]
        true, predicted = int(result.labels[video]), int(result.predictions[video])
        strips = []
        if index is not None and name in row_of:
            frames = film.sample_frames(index, row_of[name])
            strips = [film.film_strip(frames), maps(row_of[name], video)] if frames else []
        if neighbors is not None and name in neighbors.of:
            near, similarity = neighbors.of[name]
            frames = film.sample_frames(neighbors.index, near)
            text = f"nearest training video: {neighbors.describe(name)}"
            strips += [f'<div class="muted small">{escape(text)}</div>', film.film_strip(frames, 80) if frames else ""]
        figures.append(
            f'<figure><figcaption>predicted <b class="wrong">{escape(result.class_names[predicted])}</b> '
            f"({100 * probability[predicted]:.1f} %), true <b>{escape(result.class_names[true])}</b> "
            f'({100 * probability[true]:.1f} %) <span class="muted small">{escape(name)}</span></figcaption>'
            f"{''.join(strips)}</figure>"
        )
    return figures


def all_errors(
    result: EvalResult, errors: np.ndarray, index: VideoIndex | None, neighbors: Neighbors | None, budget: int
) -> str:
    """The table of all errors, with a filter by true and predicted class, scores over time, and clips to play.

    Args:
      errors: rows of `result`.
      index: the videos; None if they cannot be read, which leaves the clips out.
      budget: bytes that the table may have; what remains beside its text goes to clips.
    """
    listed = errors[:MOST_LISTED]
    starts = _timelines(result)
    cells = [_cells(result, video, starts.get(video), neighbors) for video in listed.tolist()]
    clips, note = {}, ""
    if index is not None:
        try:
            clips = _clips(index, [str(name) for name in result.names[listed]], budget - sum(map(len, cells)))
        except UserError as error:
            note = f" No clips: {error}."
    left = len(listed) - len(clips)
    if clips and left:
        note = f" {left:,} have no clip: their frames cannot be read, or the page would have more than 20 MB."
    if len(listed) < len(errors):
        note += f" {len(errors) - len(listed):,} less confident errors are not listed."
    body = "".join(
        f'<tr data-t="{result.labels[video]}" data-p="{result.predictions[video]}">{cell}'
        f"<td>{_BUTTON.format(clips[k]) if k in clips else ''}</td></tr>"
        for k, (video, cell) in enumerate(zip(listed.tolist(), cells, strict=True))
    )
    heads = ["video", "true class", "predicted", *(["scores over time"] if starts else [])]
    heads += [*(["nearest training video"] if neighbors else []), "clip"]
    picks = _pick("true-class", "true class", result, result.labels[listed])
    picks += _pick("predicted-class", "predicted class", result, result.predictions[listed])
    over_time = " Over time: the predicted class in orange, the true one in blue, from 0 to 1." if starts else ""
    return (
        f'<p class="muted small">Click a wrong cell of the matrix above to see its videos.{over_time}{escape(note)}</p>'
        f'<p>{picks}<button id="all" type="button">all</button><b id="shown">{len(listed):,}</b> shown</p>'
        f'<div class="errors" id="errors"><table><thead><tr><th>{"</th><th>".join(heads)}</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cells(result: EvalResult, video: int, times: np.ndarray | None, neighbors: Neighbors | None) -> str:
    shares = result.probabilities[video]
    classes = [int(result.labels[video]), int(result.predictions[video])]
    texts = [str(result.names[video]), *(f"{result.class_names[k]} {100 * shares[k]:.1f} %" for k in classes)]
    cells = [f"<td>{escape(text)}</td>" for text in texts]
    if result.timeline is not None:
        cells.append(f"<td>{_curves(times)}</td>" if times is not None else "<td></td>")
    if neighbors is not None:
        cells.append(f"<td>{escape(neighbors.describe(str(result.names[video])))}</td>")
    return "".join(cells)


def _timelines(result: EvalResult) -> Mapping[int, np.ndarray]:
    """The rows of `EvalResult.timeline` of each video."""
    if result.timeline is None:
        return {}
    videos = result.timeline[:, 0].astype(int)
    first = np.flatnonzero(np.diff(videos, prepend=-1))
    return dict(zip(videos[first].tolist(), np.split(result.timeline, first[1:]), strict=True))


def _curves(times: np.ndarray) -> str:
    """Two small curves over the clips of a video, (n, 4) as in `EvalResult.timeline`."""
    best = times[times[:, 3].argmax()]
    groups = np.array_split(times, min(len(times), _MOST_POINTS))
    points = np.array([group.mean(0) for group in groups])
    x = 4 + 142 * (points[:, 1] - points[0, 1]) / max(float(np.ptp(points[:, 1])), 1.0)
    lines = []
    for kind, column in (("t", 2), ("p", 3)):
        y = 33 - 30 * points[:, column]
        if len(points) == 1:
            lines.append(f'<circle class="{kind}" cx="75" cy="{y[0]:.0f}" r="2.5"/>')
        else:
            path = " ".join(f"{at:.0f},{high:.1f}" for at, high in zip(x, y, strict=True))
            lines.append(f'<polyline class="{kind}" points="{path}"/>')
    tip = f"{len(times)} clips; predicted class {best[3]:.2f} in the one from frame {best[1]:.0f}"
    return f'<svg class="times" viewBox="0 0 150 36" role="img"><title>{tip}</title>{"".join(lines)}</svg>'


def _clips(index: VideoIndex, names: Sequence[str], budget: int) -> dict[int, str]:
    """Base64 of the clips of some videos by their position, in order, until the budget is spent."""
    row_of = _rows(index)

    def make(name: str) -> str:
        frames = film.sample_frames(index, row_of[name], CLIP_FRAMES) if name in row_of else []
        return base64.b64encode(mp4(map(small, frames), CLIP_RATE, CLIP_QUALITY)).decode() if frames else ""

    def small(frame: np.ndarray) -> np.ndarray:
        return cv2.resize(frame, (wide(frame), CLIP_HEIGHT), interpolation=cv2.INTER_AREA)

    def wide(frame: np.ndarray) -> int:
        return min(max(round(frame.shape[1] * CLIP_HEIGHT / frame.shape[0]), 32), 3 * CLIP_HEIGHT)

    found: dict[int, str] = {}
    with (
        ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool,
        Progress(len(names), "clips", "report", shown=len(names) > 10 * _CLIPS_AT_ONCE) as progress,
    ):
        for first in range(0, len(names), _CLIPS_AT_ONCE):
            for k, clip in enumerate(pool.map(make, names[first : first + _CLIPS_AT_ONCE]), start=first):
                budget -= len(clip)
                if budget < 0:
                    return found
                found |= {k: clip} if clip else {}
                progress.update()
    return found


def _pick(name: str, title: str, result: EvalResult, classes: np.ndarray) -> str:
    known = sorted(set(classes.tolist()), key=lambda k: result.class_names[k])
    options = "".join(f'<option value="{k}">{escape(result.class_names[k])}</option>' for k in known)
    return f'<select id="{name}" aria-label="{title}"><option value="">every {title}</option>{options}</select>'


def _rows(index: VideoIndex | None) -> dict[str, int]:
    return {} if index is None else {str(name): row for row, name in enumerate(index.names)}
