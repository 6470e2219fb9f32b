"""The table of a network's costs, and the list of names."""

import pytest

from r23d_jax.__main__ import main


def test_published_totals_are_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "r2plus1d_tv_18", "--frames", "16", "--size", "112", "--classes", "400"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (total,) = (line for line in lines if line.startswith("total"))
    assert "31,505,325" in total and "40.519" in total  # torchvision's metadata of r2plus1d_18
    assert [line.split()[0] for line in lines[3:9]] == ["input", "stem", "stage1", "stage2", "stage3", "stage4"]
    assert "2 x 7 x 7 x 512" in next(line for line in lines if line.startswith("stage4"))


@pytest.mark.parametrize("option", [["--mesh", "4x2"], ["--optimizer", "adamw"]])
def test_an_option_that_moved_names_its_command(capsys: pytest.CaptureFixture[str], option: list[str]) -> None:
    assert main(["info", "r2plus1d_18", *option]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {option[0]}: is now part of another command, e.g. ")
    assert said.endswith("plan --config=r2plus1d --devices=h100:8 --config.parallel.fsdp=8\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["r3d_18", "--pretrained"],
            "--pretrained: lists all published weights; to see the network of one, leave it out",
        ),
        (["r3d_18", "--tokens", "time"], "--tokens time: the avgpool head has none; add --head vit"),
    ],
)
def test_options_that_would_do_nothing(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", *options]) == 2
    assert message in capsys.readouterr().err


def test_the_network_of_published_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "r2plus1d_18.kinetics400"]) == 0
    assert capsys.readouterr().out.startswith("r2plus1d_tv_18, avgpool head, ")


def test_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    listed = capsys.readouterr().out
    for line in (
        "r2plus3d            10, 18, 34, 50, 101, 152",
        "ip_csn              50, 101, 152",
        "i3d_gamma           (the",
    ):
        assert line in listed
    assert main(["info", "r2plus1d18"]) == 2
    assert capsys.readouterr().err.startswith("error: model 'r2plus1d18' is unknown; did you mean r2plus1d_18")
    assert main(["info", "r2d_18", "--size", "0"]) == 2
    assert "--size 0: must be at least 1" in capsys.readouterr().err


def test_published_weights(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R23D_CACHE", "/elsewhere")
    assert main(["info", "--pretrained"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:5] for line in lines if ".kinetics400" in line or ".ig65m" in line}
    assert rows["r2plus1d_18.kinetics400"] == ["r2plus1d_tv_18", "67.5", "%", "120.3"]
    assert rows["r2plus1d_34_8.ig65m"][:3] == ["r2plus1d_34", "-", "?"]
    assert "kept in /elsewhere/weights;" in lines[-1]
