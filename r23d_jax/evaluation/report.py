"""`report.html`: one self-contained page about a run, made from the files in its workdir."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from r23d_jax import config
from r23d_jax.config import Config, ConfigError, UserError
from r23d_jax.data.find.frames import VideoIndex
from r23d_jax.data.sources import open_index
from r23d_jax.evaluation import browser
from r23d_jax.evaluation.error_maps import error_maps
from r23d_jax.evaluation.figures import Row, accuracy_bars, confused_pairs, confusion_svg, curves, escape
from r23d_jax.evaluation.nearest import Neighbors
from r23d_jax.evaluation.result import (
    VIDEO_METRICS,
    EvalResult,
    environment,
    load_evaluation,
    percent,
    protocol_line,
    remarks,
)
from r23d_jax.models.functional import HasNetwork
from r23d_jax.models.network import VideoNetwork
from r23d_jax.models.registry import model_name
from r23d_jax.runtime.disk import write_atomically
from r23d_jax.runtime.journal import read_metrics

REPORT = "report.html"
MAX_BROKEN_LISTED = 200

# Pictures and styles are in the page. The policy lets a browser load nothing, in case an escape is missing, and run
# nothing but the script that the page has.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{margin:0;background:#f5f7fa;color:#1f2933;
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 48px}
h1{font-size:25px;line-height:1.25;margin:0 0 2px}h2{font-size:17px;margin:0 0 10px}
p{margin:0 0 8px}p:last-child{margin-bottom:0}.muted{color:#616e7c}.small{font-size:13px}
section{background:#fff;border:1px solid #e4e7eb;border-radius:8px;padding:20px 22px;margin-top:18px}
section img{display:block;max-width:100%;height:auto}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:14px;margin:0 0 14px}
.tile{border-left:4px solid #cbd2d9;padding:1px 0 1px 12px}.tile.main{border-color:#0072B2}
.tile b{display:block;font-size:26px;line-height:1.25;font-weight:600;font-variant-numeric:tabular-nums}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:4px 18px 4px 0;border-bottom:1px solid #e4e7eb;vertical-align:top;overflow-wrap:anywhere}
th{font-weight:600;color:#616e7c;font-size:13px}td.number,th.number{text-align:right}
.matrix{display:block;width:100%;height:auto;margin:0 auto 8px;font-family:inherit}.matrix text{fill:#1f2933}
.key{display:inline-block;width:11px;height:11px;border-radius:2px;margin:0 5px 0 12px;vertical-align:-1px}
.bars{columns:3 300px;column-gap:30px}.bars.few{columns:1;max-width:620px}
.bar{display:flex;align-items:center;gap:8px;break-inside:avoid;font-size:12.5px;line-height:1.6}
.bar .name{flex:0 0 45%;text-align:right;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.bar .track{flex:1;background:#eef1f4;border-radius:2px;height:9px}
.bar .fill{display:block;background:#0072B2;border-radius:2px;height:9px}
.bar .value{flex:0 0 38px;text-align:right;font-variant-numeric:tabular-nums}
figure{margin:0 0 16px}figcaption{margin-bottom:4px}figcaption .wrong{color:#b34700}
pre{background:#f5f7fa;border-radius:6px;padding:12px 14px;overflow-x:auto;font-size:12.5px;line-height:1.45}
summary{cursor:pointer;font-weight:600}
@media print{body{background:#fff}section{break-inside:avoid}}
"""


def write_report(
    workdir: Path,
    index: VideoIndex | None = None,
    cfg: Config | None = None,
    folder: Path | None = None,
    model: VideoNetwork | HasNetwork | None = None,
    neighbors: Neighbors | None = None,
) -> Path:
    """Writes `report.html` from `config.json` and `metrics.jsonl` in a workdir, and from an evaluation.

    Sections without data are left out. The page needs no other file and no network.

    Args:
      index: the evaluated videos, for the film strips. Without it the config names them; a page without film strips
        gives the reason.
      cfg: the run's config; read from `config.json` if not given.
      folder: where the evaluation is, and where the page goes; the workdir by default.
      model: the evaluated network, for the maps of the most confident errors.

    Raises:
      UserError: if one of these files is damaged; the message names it.
    """
    folder = folder or workdir
    cfg = cfg or _read_config(workdir)
    rows = sorted(read_metrics(workdir), key=lambda row: row["step"])
    result = load_evaluation(folder)
    sections = [_curves(rows)]
    errors = np.zeros(0, int) if result is None else browser.confident_errors(result)
    if result is not None:
        sections = [_summary(result), *sections]
        if result.evaluated.any():
            bars = accuracy_bars(result.per_class, result.confusion.sum(axis=1), result.class_names)
            about = '<p class="muted small">Percent of videos, video top-1.</p>'
            sections += [confusion(result), section("Accuracy by class", about, bars)]
            note, maps = "", browser.no_map
            if len(errors) and index is None:
                index, note = _find_videos(cfg)
            if len(errors) and model is not None and index is not None and cfg:
                maps = error_maps(model, result, index, cfg)
            sections += error_sections(result, errors, index, maps, note, neighbors, sum(map(len, sections)))
        sections.append(_broken(result))
    if cfg is not None:
        text = f"<pre>{escape(config.to_json(cfg))}</pre>"
        sections.append(section("Configuration", f"<details><summary>config.json</summary>{text}</details>"))
    versions = result.environment if result else environment()
    sections.append(section("Environment", table((), list(versions.items()))))
    title = f"{_network(cfg)}, {cfg.model.head.kind} head" if cfg else "Evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    script = browser.SCRIPT if len(errors) else ""
    write_atomically(folder / REPORT, page_of(title, _data_line(cfg) if cfg else "", sections, script))
    return folder / REPORT


def page_of(title: str, about: str, sections: Sequence[str], script: str = "") -> str:
    """A whole page of sections, and a script that its content security policy names by its hash."""
    policy = _POLICY + (browser.policy_of(script) if script else "")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{browser.STYLE}</style></head><body><main>"
        f'<h1>{escape(title)}</h1><p class="muted">{escape(about)}</p>'
        f"{''.join(sections)}</main>{f'<script>{script}</script>' if script else ''}</body></html>\n"
    )


def _network(cfg: Config) -> str:
    """The network's name; its family where this version does not know it, because a report must not fail for that."""
    try:
        return model_name(cfg.model)
    except ConfigError:
        return cfg.model.family


def _read_config(workdir: Path) -> Config | None:
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        return config.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, not text, or not this version's fields
        raise UserError(f"{path}: cannot be read ({error}). Give the config itself, or delete the file.") from error


# -- sections ----------------------------------------------------------------------------------------------------------


def section(title: str, *parts: str) -> str:
    """A titled box of HTML parts."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def table(head: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[int] = ()) -> str:
    """A table; columns whose position is in `numbers` are set flush right."""

    def cells(tag: str, values: Sequence[object]) -> str:
        kinds = (' class="number"' if k in numbers else "" for k in range(len(values)))
        return "".join(f"<{tag}{kind}>{escape(v)}</{tag}>" for kind, v in zip(kinds, values, strict=True))

    top = f"<thead><tr>{cells('th', head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table>{top}<tbody>{body}</tbody></table>"


def _data_line(cfg: Config) -> str:
    d = cfg.data
    classes = f"{len(d.classes)} chosen classes, " if d.classes else ""
    split = f"split {d.split}" + (f", fold {d.fold}" if d.fold else "")
    return f"{d.root} ({d.source}), {classes}{split}, {d.num_frames} frames of {d.crop_size}x{d.crop_size}"


def _summary(result: EvalResult) -> str:
    def tile(title: str, name: str, note: str, kind: str = "tile") -> str:
        value = percent(result.metrics.get(name))
        return f'<div class="{kind}">{title}<b>{value}</b><span class="muted small">{note}</span></div>'

    tiles = []
    for title, name in VIDEO_METRICS:
        note = f"{percent(result.metrics.get(f'{name}_softmax'))} by averaged softmax"
        tiles.append(tile(_capital(title), name, note, "tile" if tiles else "tile main"))
    tiles.append(tile("Clip top-1", "val/top1_clip", "every view by itself"))
    notes = "".join(f'<p class="small">{escape(_capital(text))}.</p>' for text in remarks(result))
    return section(
        "Accuracy",
        f'<div class="tiles">{"".join(tiles)}</div>',
        f'<p class="small">Protocol: {escape(protocol_line(result))} (logits, unless marked softmax).</p>{notes}',
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _curves(rows: Sequence[Row]) -> str:
    picture = curves(rows)
    if not picture:
        return ""
    last = rows[-1]
    facts = [f"{last['step']:,} steps, {_epoch(last)} epochs"]
    scored = [row for row in rows if row.get("val/top1_video") is not None]
    if scored:
        best = max(scored, key=lambda row: row["val/top1_video"] or 0.0)
        chosen = f"after epoch {_epoch(best)}, chosen on the evaluated videos"
        facts.append(f"best video top-1 {percent(best['val/top1_video'])} {chosen}")
    return section("Training", picture, f'<p class="muted small">{escape("; ".join(facts))}</p>')


def _epoch(row: Row) -> str:
    return f"{round(row.get('epoch') or 0.0, 1):g}"  # a batch may cross the end of an epoch


def error_sections(
    result: EvalResult,
    errors: np.ndarray,
    index: VideoIndex | None,
    maps: browser.Maps,
    note: str = "",
    neighbors: Neighbors | None = None,
    size: int = 0,
) -> list[str]:
    """The videos whose wrong class has the highest probability, and all errors.

    Args:
      errors: rows of `result`, from `browser.confident_errors`.
      index: the videos; None if they cannot be read.
      size: bytes of the page before this.
    """
    title = "Most confident errors"
    if not len(errors):
        return [section(title, f"<p>None: all {int(result.evaluated.sum()):,} videos were recognized.</p>")]
    figures = browser.detailed(result, errors, index, maps, neighbors)
    share = f"{len(figures)} of {len(errors):,} wrong videos, the highest probability of the wrong class first. {note}"
    first = section(title, f'<p class="muted small">{escape(share)}</p>', *figures)
    budget = browser.PAGE_BYTES - size - len(first)
    return [first, section("All errors", browser.all_errors(result, errors, index, neighbors, budget))]


def _find_videos(cfg: Config | None) -> tuple[VideoIndex | None, str]:
    """The test videos that a config names; where they cannot be opened, None and a sentence with the reason."""
    if cfg is None:
        return None, "No film strips: there is no config.json that names the videos."
    try:
        return open_index(cfg.data, "test"), ""
    except (UserError, OSError) as error:
        return None, f"No film strips: {error}"


def confusion(result: EvalResult, scores: str = "logits") -> str:
    """The matrix of averaged `scores`, whose wrong cells choose rows of the errors, and frequent confusions."""
    key = (
        f'<p class="muted small">Row: true class; column: predicted class, from averaged {scores}. Share of the row:'
        '<span class="key" style="background:#0072B2"></span>right<span class="key" style="background:#D55E00"></span>'
        "wrong; hover over a cell for its count.</p>"
    )
    parts = [key, confusion_svg(result.confusion, result.class_names)]
    pairs = confused_pairs(result.confusion)
    if pairs:
        names = result.class_names
        cells = [(names[t], names[p], number, f"{100 * share:.0f} %") for t, p, number, share in pairs]
        head = ("true class", "predicted", "videos", "share of the class")
        parts += ["<h2>Most frequent confusions</h2>", table(head, cells, numbers=(2, 3))]
    return section("Confusion matrix", *parts)


def _broken(result: EvalResult) -> str:
    if not result.broken:
        return section("Broken files", "<p>None.</p>")
    shown = result.broken[:MAX_BROKEN_LISTED]
    more = len(result.broken) - len(shown)
    parts = [f"<p>{len(result.broken):,} could not be read.</p>", table(("file", "reason"), shown)]
    if more:
        parts.append(f'<p class="muted small">and {more:,} more, in evaluation.json.</p>')
    return section("Broken files", *parts)
