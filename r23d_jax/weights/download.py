"""Files of the web in a cache: downloaded with a bar, resumed, and checked at every use."""

import dataclasses
import hashlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from r23d_jax.config import UserError, look_up
from r23d_jax.runtime import disk
from r23d_jax.runtime.disk import cache_folder

MIB = 2**20
PIECE = 2**16  # bytes to write at once; of a connection that breaks off, less than one piece is lost
TRIES = 3
PAUSE_SECONDS = 1.0  # before the second try; doubled before the next
SILENCE_SECONDS = 30.0  # after which a server that sends nothing is given up


class DownloadError(UserError):
    """A file cannot be downloaded, or is not what its publisher describes; the message says what to do by hand."""


@dataclasses.dataclass(frozen=True)
class File:
    """A file that somebody has published."""

    url: str  # where it is
    # `algorithm:digits`, the algorithm a key of `CHECKSUMS`; fewer digits than the whole are its beginning. "" if the
    # publisher states none: then it must stay as it was first downloaded.
    checksum: str = ""
    mebibytes: float = 0.0  # its size as the publisher states it; 0 if not stated

    @property
    def name(self) -> str:
        """Its name in the cache."""
        return PurePosixPath(self.url).name


def to_stderr(line: str) -> None:
    """Prints a line to standard error."""
    print(line, file=sys.stderr)


def fetch(name: str, files: Sequence[File], log: Callable[[str], None] = to_stderr) -> list[Path]:
    """The files of published weights in the cache. Those that are missing or damaged are downloaded.

    Processes that want the same files at the same time wait for the first one.

    Args:
      name: of the weights, and of their folder in the cache.

    Raises:
      DownloadError: if one cannot be had; says where to get it and where to put it.
      WriteError: if the cache cannot be written.
    """
    folder = cache_folder("weights") / name
    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with disk.hold(folder, log=log, wait=True):
        try:
            return [_fetch(file, folder, log) for file in files]
        except DownloadError as error:
            missing = [file for file in files if not (folder / file.name).is_file()]
            listed = "\n".join(f"  {file.url}{f' ({file.checksum})' if file.checksum else ''}" for file in missing)
            raise DownloadError(
                f"{error}. Or get what is missing in another way, and put it into {folder}:\n{listed}"
            ) from None


def is_cached(name: str, files: Sequence[File]) -> bool:
    """Whether all files of published weights are in the cache and undamaged. Nothing is downloaded."""
    paths = [cache_folder("weights") / name / file.name for file in files]
    return all(path.is_file() and not _wrong(file, path, path) for file, path in zip(files, paths, strict=True))


def _fetch(file: File, folder: Path, log: Callable[[str], None]) -> Path:
    path = folder / file.name
    if path.is_file():
        wrong = _wrong(file, path, path)
        if not wrong:
            return path
        log(f"{path}: {wrong}; downloading it again")
    part = path.with_name(f"{file.name}.part")
    if not file.checksum:  # nothing would notice that the old part is of another version
        part.unlink(missing_ok=True)
    while True:
        resumes = part.exists()
        _download(file, part, log)
        wrong = _wrong(file, part, path) if file.checksum else ""
        if not wrong:
            break
        part.unlink()
        if not resumes:
            raise DownloadError(f"{file.url}: {wrong}; nothing was kept")
        log(f"{file.name}: {wrong}; starting over")
    os.replace(part, path)
    if not file.checksum:
        digest = _record(path)
        log(f"{path}: its publisher states no checksum; its SHA-256 is {digest}, which is checked from now on")
    return path


def _download(file: File, part: Path, log: Callable[[str], None]) -> None:
    """Downloads what `part` lacks, in a few tries."""
    import requests

    size = f"{file.mebibytes:.3g} MiB" if file.mebibytes else "of unknown size"
    reason = ""
    for number in range(TRIES):
        have = _size(part)
        resumes = f", resuming at {have / MIB:.1f} MiB" if have else ""
        log(f"{reason}downloading {file.url} ({size}{resumes}) to {part.parent}")
        try:
            with disk.writing(part):
                return _request(file, part)
        except requests.RequestException as error:
            reply = error.response
            host, kind = urlsplit(file.url).hostname, type(error).__name__
            reason = f"{host} broke off; " if _size(part) > have else f"no connection to {host} ({kind}); "
        if reply is not None and reply.status_code == 416:  # the part is as long as the file, or longer
            part.unlink()
        elif reply is not None:
            reason = f"the server answers {reply.status_code} {reply.reason}; "
            if reply.status_code < 500:
                break
        time.sleep(PAUSE_SECONDS * 2**number)
    raise DownloadError(f"{file.url}: {reason}run the same command again to try again, or to resume")


def _request(file: File, part: Path) -> None:
    import pooch
    import requests
    from tqdm import tqdm

    have = _size(part)
    # What escapes printed text would escape the bar as well. A bar that is not on a terminal draws nothing
    stream: Any = getattr(sys.stderr, "stream", sys.stderr)
    bar: Any = tqdm(desc=file.name, total=1, unit="B", unit_scale=True, file=stream, disable=None, dynamic_ncols=True)

    def check_range(reply: requests.Response, **_: Any) -> None:
        if reply.status_code == 200:  # the server sends the whole file, whatever it was asked for
            part.write_bytes(b"")

    get = pooch.HTTPDownloader(
        progressbar=bar,
        chunk_size=PIECE,
        timeout=SILENCE_SECONDS,
        headers={"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {}),
        hooks={"response": check_range},
    )
    with bar, part.open("ab") as output:
        get(file.url, output, None)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _wrong(file: File, path: Path, final: Path) -> str:
    """What shows that a file is not the published one; "" if nothing does.

    Args:
      path: of its content.
      final: its path in the cache, beside which the checksum of the first download is kept if none was published.
    """
    checksum = file.checksum
    if not checksum:
        try:
            checksum = f"sha256:{_first_seen(final).read_text(encoding='utf-8').split()[0]}"
        except FileNotFoundError:  # the user has put it there
            _record(final)
            return ""
        except (OSError, UnicodeDecodeError, IndexError):
            return "its recorded checksum cannot be read"
    algorithm, _, digits = checksum.partition(":")
    found = look_up(CHECKSUMS, algorithm, "checksum")(path)
    return "" if found.startswith(digits) else f"its {algorithm} is {found[: len(digits)]}, and must be {digits}"


def _first_seen(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _record(path: Path) -> str:
    """Writes the checksum of a file beside it, as `sha256sum` does, and returns it."""
    digest = _sha256(path)
    disk.write_atomically(_first_seen(path), f"{digest}  {path.name}\n")
    return digest


def _sha256(path: Path) -> str:
    import pooch

    return pooch.file_hash(str(path), alg="sha256")


def _git(path: Path) -> str:
    """The name that git gives to the content of a file."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(PIECE):
            digest.update(block)
    return digest.hexdigest()


CHECKSUMS: dict[str, Callable[[Path], str]] = {"sha256": _sha256, "git": _git}
