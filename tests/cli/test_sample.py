"""`kd-jax sample`: grids of videos."""

import numpy as np
import pytest
from PIL import Image
from published import write_dcgan

from kd_jax.cli import main


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_dcgan(tmp_path_factory.mktemp("weights") / "dcgan.safetensors")


def run(monkeypatch, capsys, *arguments):
    """The exit code of the command, and its errors."""
    monkeypatch.setattr("sys.argv", ["kd-jax", "sample", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().err


def test_places_of_a_video_share_the_seeds(weights, tmp_path, monkeypatch, capsys):
    still, video = tmp_path / "still.png", tmp_path / "video.gif"
    assert not run(monkeypatch, capsys, weights, "--seeds=0-3", "--grid=4x1", "--out", still)[0]
    options = "--seeds=0-3", "--interpolate=3", "--grid=2x1"
    assert not run(monkeypatch, capsys, weights, *options, "--out", video)[0]
    with Image.open(still) as opened:
        images = np.split(np.asarray(opened.convert("RGB"), np.float32), 4, axis=1)
    with Image.open(video) as opened:
        assert opened.n_frames == 6
        for frame, seeds in ((0, (0, 2)), (3, (1, 3))):
            opened.seek(frame)
            sheet = np.asarray(opened.convert("RGB"), np.float32)
            # The nearest, since a .gif file has 256 colours.
            nearest = [
                min(range(4), key=lambda seed, place=place: np.abs(place - images[seed]).mean())
                for place in np.split(sheet, 2, axis=1)
            ]
            assert nearest == list(seeds)


@pytest.mark.parametrize(
    ("grid", "seeds", "message"),
    [("2x1", "0-2", "3 seeds"), ("2x2", "0-3", "4 places"), ("2", "0-3", "--grid=2")],
)
def test_seeds_that_do_not_fit_are_refused(
    weights, tmp_path, monkeypatch, capsys, grid, seeds, message
):
    out = tmp_path / "video.gif"
    options = f"--seeds={seeds}", "--interpolate=3", f"--grid={grid}", "--out", out
    code, error = run(monkeypatch, capsys, weights, *options)
    assert code == 2
    assert message in error
    assert not out.exists()
