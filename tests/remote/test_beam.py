"""`prepare --beam-runner DaskRunner` from an object store to an object store; a worker is killed."""

from pathlib import Path

import pytest

from r23d_jax.runtime import remote
from tests.data.make.test_beam_jobs import files
from tests.data.make.test_dask import PACKED, cluster, one_killed, videos_in
from tests.data.make.test_prepare import prepare
from tests.remote.server import BUCKET, Server


@pytest.mark.beam
def test_from_a_store_to_a_store(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos, alone, out = videos_in(tmp_path / "videos"), tmp_path / "alone", f"s3://{BUCKET}/beam-out"
    url = server.upload(videos, "beam-in")
    (videos / "Diving/bad.mp4").write_bytes(b"no video")
    remote.write(b"no video", f"{url}/Diving/bad.mp4")

    def sent() -> list[str]:
        return [path for method, path, _ in server.asked if method == "PUT" and path.endswith(".zip")]

    with cluster(tmp_path) as (client, options), one_killed(client, sent) as before:
        assert prepare("--videos", url, "--out", out, *options) == 3
    assert f"24 videos are ready in {out}" in capsys.readouterr().out
    assert 4 <= len(before) < 24 and len(set(sent())) == 24
    assert len(sent()) <= 25  # one at most is sent again, if its note was not
    broken = remote.read(f"{out}/broken.txt") or b""
    assert broken.startswith(f"{url}/Diving/bad.mp4\t{url}/Diving/bad.mp4: not a readable video".encode())
    assert not [name for name in server.names("beam-out") if ".staging" in name]
    assert prepare("--videos", videos, "--out", alone, *PACKED) == 3
    back = files(remote.fetched(f"{out}/packed", tmp_path / "back"))
    assert back == files(alone / "packed")
