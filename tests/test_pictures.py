"""Pictures of predictions: what is where, and in which colour."""

import numpy as np
import pytest
from PIL import Image

from sb3_dreamer.common import pictures
from sb3_dreamer.common.pictures import BORDER, CONTEXT, GAP, PREDICTED, UNKNOWN


def test_pixels_become_rgb():
    grey = np.zeros((2, 1, 8, 16))
    grey[0, 0, 1, 2] = 1.0
    image = pictures.to_rgb(grey)
    assert image.shape == (2, 64, 128, 3) and image.dtype == np.uint8
    assert (image[0, 8:16, 16:24] == 255).all() and image[0].sum() == 64 * 3 * 255 and not image[1].any()
    stack = np.zeros((6, 64, 64))  # two frames of three channels: the last is shown
    stack[:3], stack[3], stack[4] = 1.0, 0.5, 2.0
    assert pictures.to_rgb(stack)[0, 0].tolist() == [128, 255, 0]
    assert pictures.to_rgb(np.stack([np.zeros((64, 64)), np.ones((64, 64))]))[0, 0].tolist() == [255] * 3  # two grey frames


def test_open_loop_video():
    truth, predicted = np.zeros((2, 4, 1, 64, 64)), np.zeros((2, 4, 1, 64, 64))
    predicted[1, 3] = 1.0
    is_valid = np.array([[True] * 4, [True, True, True, False]])
    frames = pictures.open_loop_video(truth, predicted, 2, is_valid)
    side = 64 + 2 * BORDER
    assert frames.shape == (4, 3 * side, 2 * (side + GAP), 3)
    corners = [[tuple(frame[0, column * (side + GAP)]) for frame in frames] for column in range(2)]
    assert corners == [[CONTEXT] * 2 + [PREDICTED] * 2, [CONTEXT] * 2 + [PREDICTED, UNKNOWN]]
    middle = [frames[3, row * side + side // 2, column * (side + GAP) + side // 2, 0] for column in (0, 1) for row in range(3)]
    assert middle == [0, 0, 128, 0, 255, 255]  # truth, prediction, difference


def test_figures():
    truth = np.random.default_rng(0).normal(size=(5, 8, 12))
    figure = pictures.trace_figure(truth, truth + 1, 3, np.arange(8) < np.full((5, 1), 6), "obs")
    assert len(figure.axes) == 3 * 8  # at most three sequences and eight elements
    black, red = figure.axes[0].lines
    np.testing.assert_array_equal(black.get_ydata(), truth[0, :, 0])
    np.testing.assert_allclose(red.get_ydata()[:6], truth[0, :6, 0] + 1)
    assert np.isnan(red.get_ydata()[6:]).all()
    figure = pictures.error_figure({"reward": np.array([0.1, 0.2]), "obs": np.array([0.3, np.nan])})
    assert [axis.get_title() for axis in figure.axes] == ["reward", "obs"]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [1, 2]


def test_gif(tmp_path):
    frames = np.zeros((3, 20, 30, 3), np.uint8)
    frames[1, :, :, 0] = 255
    (tmp_path / "video.gif").write_bytes(pictures.as_gif(frames, fps=10.0))
    with Image.open(tmp_path / "video.gif") as gif:
        assert gif.n_frames == 3 and gif.size == (30, 20) and gif.info["duration"] == 100
        gif.seek(1)
        assert gif.convert("RGB").getpixel((3, 3)) == (255, 0, 0)


def test_text():
    image = pictures.with_text(np.full((64, 64, 3), 255, np.uint8), ["value 1", "reward 2", "action 3"], PREDICTED)
    assert image.shape == (64 + pictures.TEXT_HEIGHT + 2 * BORDER, 100 + 2 * BORDER, 3)
    assert tuple(image[0, 0]) == PREDICTED and image[70:108, 4:-4].max() > 240
    empty = pictures.with_text(np.full((64, 64, 3), 255, np.uint8), [], PREDICTED)
    assert empty[70:108, BORDER:-BORDER].max() == 0


def test_vectors_are_drawn():
    left, right = (pictures.cart_pole(np.array([x, 0.0, angle, 0.0])) for x, angle in ((-2.0, -0.3), (2.0, 0.3)))
    dark = [np.argwhere(image[70:75].sum((0, 2)) < 5 * 300).mean() for image in (left, right)]
    assert dark[0] < 40 and dark[1] > 104
    poles = [np.argwhere((image[:60] != 255).any((0, 2))).ravel() for image in (left, right)]  # columns
    assert poles[0].max() < 24 and poles[1].min() > 120  # leaning away from the middle
    assert abs(143 - poles[0].max() - poles[1].min()) <= 2  # mirrored
    assert not np.array_equal(left, pictures.cart_pole(np.array([-2.0, 0.0, 0.3, 0.0])))
    lake = pictures.frozen_lake(np.array(5), np.asarray(["SFFF", "FHFH", "FFFH", "HFFG"], dtype="c"))
    assert (
        lake.shape == (96, 96, 3)
        and lake[24 + 12, 24 + 12].tolist() == [200, 50, 40]
        and lake[90, 90].tolist() == [60, 170, 90]
    )
    bars = pictures.bars(np.array([0.0, 5.0, -5.0]))
    assert bars[30, 72].tolist() == [200, 90, 60] and bars[66, 120].tolist() == [60, 90, 200] and bars[30, 24].min() == 255
    assert pictures.bars(np.zeros(40)).shape == (96, 144, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_numbers_do_not_stop_a_run(value):
    pictures.bars(np.array([value]))
