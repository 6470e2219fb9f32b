"""`serve`: a page in the browser that classifies a video file or a recording of the camera."""

import argparse
import errno
import html
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from r23d_jax.commands.network import add_weights
from r23d_jax.config import UserError
from r23d_jax.evaluation.service import Maps, Service
from r23d_jax.runtime.interrupts import terminate_as_interrupt
from r23d_jax.runtime.mirror import weights_at

LOCAL = "127.0.0.1"
MOST = {"port": 65535, "top": 10**6, "max_megabytes": 10**6, "max_seconds": 86400, "timeout": 86400}
WAITING = 8  # videos that may wait for an answer; more are refused
KEEP_SECONDS = 1200  # after which an upload is removed; all that may wait have their answer by then


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this sub-command."""
    add_weights(parser)
    parser.add_argument(
        "--host", default=LOCAL, help=f"address to listen on; 0.0.0.0 opens the page to the network (default: {LOCAL})"
    )
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    parser.add_argument("--top", type=int, default=5, help="classes to show (default: 5)")
    parser.add_argument("--max-megabytes", type=int, default=100, help="largest upload (default: 100)")
    parser.add_argument("--max-seconds", type=float, default=120, help="longest video (default: 120)")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for an answer (default: 120)")


def run(args: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C or SIGTERM; raises UserError for a wrong option, or without a usable checkpoint."""
    for option, most in MOST.items():
        value = getattr(args, option)
        if not 0 < value <= most:  # nor is NaN
            raise UserError(f"--{option.replace('_', '-')} {value:g}: must be above 0 and at most {most:,}")
    _check_address(args.host, args.port)
    with terminate_as_interrupt(), tempfile.TemporaryDirectory(prefix="r23d_jax.") as folder:
        # Gradio reads these when it is imported. Uploads vanish with the folder.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        for name in ("no_proxy", "NO_PROXY"):  # Gradio asks its own page whether it is there
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), LOCAL, "localhost", args.host]))
        import gradio  # `requirements` says how to install it

        service = Service(weights_at(args.weights), args.top, args.max_seconds, args.timeout)
        try:
            page = make_page(gradio, service, args.top)
            page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
            page.launch(
                server_name=args.host,
                server_port=args.port,
                max_file_size=args.max_megabytes * 2**20,
                share=False,
                ssr_mode=False,
                footer_links=[],
                quiet=True,
                prevent_thread_lock=True,
            )
            print(f"{service.title}: http://{args.host}:{args.port}  (Ctrl-C ends it)", flush=True)
            page.block_thread()
        except OSError as error:  # Gradio's, for a port that is taken
            raise UserError(f"--port {args.port}: {error}") from None
        finally:
            service.close()
    return 0


def _check_address(host: str, port: int) -> None:
    """Raises UserError, which names the option, for an address that cannot be listened on."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (socket.gaierror, UnicodeError):
        raise UserError(f"--host {host}: is not an IPv4 address of this machine, nor a name of one") from None
    except PermissionError:
        raise UserError(f"--port {port}: only root may use it; give one above 1023") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port {port}: is in use; give another") from None
        raise UserError(f"--host {host}: cannot be listened on ({error.strerror})") from None


def make_page(gradio: Any, service: Service, top: int) -> Any:
    """The page: a video in; the best classes, the timeline, the video with its classes, and maps out."""

    def answer(video: str | None, where: bool) -> tuple:
        if video is None:
            return None, "", None, None, [], gradio.Textbox(visible=False), gradio.Column(visible=False), None, None
        if not Path(video).exists():
            raise gradio.Error("the video was removed after a while; add it again", print_exception=False)
        try:
            found = service(Path(video), where)
        except UserError as error:
            raise gradio.Error(html.escape(str(error)), duration=None, print_exception=False) from None
        clips = "clip" if found.num_clips == 1 else "clips"
        seen = f"{found.num_frames:,} frames, {found.num_clips:,} {clips}, {100 * found.seen:.0f} % of the video seen"
        rows = [
            [f"{start:.1f}", f"{end:.1f}", name, f"{100 * score:.0f} %"] for start, end, name, score in found.segments
        ]
        maps = found.maps or Maps("")
        note, pictures = gradio.Textbox(maps.note, visible=where), gradio.Column(visible=maps.picture is not None)
        return found.ranking, seen, found.picture, found.video, rows, note, pictures, maps.picture, maps.video

    with gradio.Blocks(title="r23d_jax", analytics_enabled=False, delete_cache=(60, KEEP_SECONDS)) as page:
        gradio.Markdown(f"# What happens in this video?\n{html.escape(service.title)}")
        with gradio.Row():
            video = gradio.Video(
                sources=["upload", "webcam"],
                label="Video",
                include_audio=True,  # otherwise Gradio runs ffmpeg to remove it
                webcam_options=gradio.WebcamOptions(mirror=False),
            )
            with gradio.Column():
                ranking = gradio.Label(num_top_classes=top, label="Best classes")
                seen = gradio.Textbox(label="Seen", interactive=False)
        where = gradio.Checkbox(label="Show where the network looks", info="The answer takes longer.")
        button = gradio.Button("Classify", variant="primary")
        outputs = [ranking, seen, gradio.Image(label="What happens when", interactive=False, buttons=["fullscreen"])]
        with gradio.Row():
            outputs += [
                gradio.Video(label="With its classes", interactive=False, buttons=["download"]),
                gradio.Dataframe(headers=["from (s)", "to (s)", "class", "score"], label="Timeline", interactive=False),
            ]
        note = gradio.Textbox(label="Where the network looks", interactive=False, visible=False)
        with gradio.Column(visible=False) as pictures:
            eight = gradio.Image(label="Eight frames, with maps below", interactive=False, buttons=["fullscreen"])
            film = gradio.Video(label="With its maps", interactive=False, buttons=["download"], height=320)
        outputs += [note, pictures, eight, film]
        button.click(answer, [video, where], outputs, concurrency_limit=1, api_visibility="private")
    return page
