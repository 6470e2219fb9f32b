"""Ranges of files by signed addresses, which take about a third of the processor time of other requests to S3.

The store's package signs the address of a file twice an hour, and not each request. A range that does not come this way
is left to the package, which knows other regions, new credentials and certificates of one's own.
"""

import functools
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

STORES = ("s3://",)  # Google's package can sign with the key of a service account alone
_LASTS, _RENEWED = 3600, 1800.0  # seconds
_PAUSE = 60.0  # seconds after a failure in which a file is left to the package

_addresses: dict[str, tuple[str, float]] = {}  # by path: the address, "" for none, and the time of its end


class Failed(Exception):
    """An answer that was no content. The message does not hold the address, because its signature is a secret."""


@functools.cache
def _client() -> Any:
    import aiohttp
    import fsspec

    return fsspec.filesystem(
        "http",
        encoded=True,
        client_kwargs={
            "auto_decompress": False,
            "headers": {"Accept-Encoding": "identity"},
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=15),  # those of s3fs
            "trust_env": bool(urllib.request.getproxies()),  # takes as long as all else of a request
        },
    )


def _address(system: Any, path: str) -> str:
    address, end = _addresses.get(path, ("", 0.0))
    if time.monotonic() > end:
        address = system.sign(path, expiration=_LASTS)
        _addresses[path] = address, time.monotonic() + _RENEWED
    return address


def cat_ranges(
    system: Any, paths: Sequence[str], starts: Sequence[int], ends: Sequence[int], at_once: int
) -> list[bytes | Failed | None]:
    """Reads ranges of files, a number of them at once.

    Returns:
      The bytes; an error; or None for a file that has failed lately. The last two are for `system`, fsspec's file
      system, to read.
    """
    addresses = [_address(system, path) for path in paths]
    tried = [number for number, address in enumerate(addresses) if address]
    found: list[bytes | Failed | None] = [None] * len(paths)
    if not tried:
        return found
    columns = [[column[number] for number in tried] for column in (addresses, starts, ends)]
    for number, answer in zip(tried, _client().cat_ranges(*columns, batch_size=at_once), strict=True):
        if isinstance(answer, Exception):
            status = getattr(answer, "status", 404 if isinstance(answer, FileNotFoundError) else None)
            answer = Failed(f"status {status}" if status else type(answer).__name__)
        elif len(answer) != ends[number] - starts[number]:  # such as the text of a redirection that names no address
            answer = Failed(f"{len(answer)} bytes came instead of {ends[number] - starts[number]}")
        if isinstance(answer, Failed):
            _addresses[paths[number]] = "", time.monotonic() + _PAUSE
        found[number] = answer
    return found
