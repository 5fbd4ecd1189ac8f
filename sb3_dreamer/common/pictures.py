"""Pictures of what a world model predicts: videos as arrays of frames, figures, GIF files."""

import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

CONTEXT, PREDICTED, UNKNOWN = (40, 170, 70), (220, 60, 50), (120, 120, 120)
BORDER, GAP, MIN_SIDE, TEXT_HEIGHT = 2, 4, 64, 58


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """
    :param pixels: in [0, 1], channels first (..., C, h, w)
    :return: the last three channels if C is a multiple of 3, otherwise the last as grey, (..., h, w, 3) uint8, enlarged by a
        whole factor to at least 64 pixels
    """
    channels = pixels.shape[-3]
    shown = pixels[..., -3:, :, :] if channels % 3 == 0 else np.repeat(pixels[..., -1:, :, :], 3, axis=-3)
    image = np.moveaxis(np.rint(255 * shown.clip(0, 1)).astype(np.uint8), -3, -1)  # (..., h, w, 3)
    factor = max(1, -(-MIN_SIDE // min(image.shape[-3:-1])))
    return image.repeat(factor, axis=-3).repeat(factor, axis=-2)


def beside(images: list[np.ndarray]) -> np.ndarray:
    """
    :param images: (..., h_i, w_i, 3) uint8
    :return: one image next to the other, black below those that are lower (..., max h, sum w, 3)
    """
    height = max(image.shape[-3] for image in images)
    padded = [np.pad(one, [(0, 0)] * (one.ndim - 3) + [(0, height - one.shape[-3]), (0, 0), (0, 0)]) for one in images]
    return np.concatenate(padded, axis=-2)


def framed(images: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """
    :param images: (..., h, w, 3) uint8
    :param color: of the frame around each image
    :return: (..., h + 4, w + 4, 3)
    """
    *lead, height, width, _ = images.shape
    canvas = np.empty((*lead, height + 2 * BORDER, width + 2 * BORDER, 3), dtype=np.uint8)
    canvas[:] = color
    canvas[..., BORDER:-BORDER, BORDER:-BORDER, :] = images
    return canvas


def side_by_side(images: np.ndarray) -> np.ndarray:
    """
    :param images: (B, ..., h, w, 3) uint8
    :return: the B images in a row, with gaps, (..., h, B * (w + 4), 3)
    """
    padded = np.pad(images, [(0, 0)] * (images.ndim - 2) + [(0, GAP), (0, 0)])
    return np.concatenate(list(padded), axis=-2)


def open_loop_video(truth: np.ndarray, predicted: np.ndarray, burn_in: int, is_valid: np.ndarray) -> np.ndarray:
    """
    One column per sequence: truth, prediction and their difference (grey: none). Observed rows have a green frame, predicted
    ones a red frame, and those after the start of an episode that was not observed a grey frame.

    :param truth: pixels in [0, 1], (B, T, C, h, w)
    :param predicted: the same shape
    :param burn_in: number of observed rows
    :param is_valid: (B, T)
    :return: frames (T, height, width, 3) uint8
    """
    difference = 0.5 + 0.5 * (predicted - truth)
    columns = [to_rgb(part) for part in (truth, predicted, difference)]  # 3 x (B, T, h, w, 3)
    frames = []
    for t in range(truth.shape[1]):
        row = []
        for b in range(len(truth)):
            color = CONTEXT if t < burn_in else (PREDICTED if is_valid[b, t] else UNKNOWN)
            row.append(np.concatenate([framed(part[b, t], color) for part in columns], axis=0))
        frames.append(side_by_side(np.stack(row)))
    return np.stack(frames)


def trace_figure(truth: np.ndarray, predicted: np.ndarray, burn_in: int, is_valid: np.ndarray, name: str) -> Figure:
    """
    :param truth: (B, T, n); at most 3 sequences and 8 elements are drawn
    :param predicted: the same shape
    :param burn_in: number of observed rows
    :param is_valid: (B, T)
    :param name: of the observation
    :return: truth and prediction over the rows; predictions after an unobserved start are left out
    """
    n_sequences, n_elements = min(3, len(truth)), min(8, truth.shape[-1])
    figure = Figure(figsize=(3.2 * n_sequences, 1.3 * n_elements + 0.6), layout="constrained")
    axes = figure.subplots(n_elements, n_sequences, squeeze=False, sharex=True)
    for b in range(n_sequences):
        for i in range(n_elements):
            axis = axes[i, b]
            axis.axvspan(-0.5, burn_in - 0.5, color="0.92")
            axis.plot(truth[b, :, i], color="black", label="truth")
            shown = np.where(is_valid[b], predicted[b, :, i].astype(float), np.nan)
            axis.plot(shown, color="tab:red", linestyle="--", label="predicted")
            if b == 0:
                axis.set_ylabel(f"{name}[{i}]")
        axes[-1, b].set_xlabel("row (grey: observed)")
    axes[0, 0].legend(fontsize="x-small")
    return figure


def error_figure(errors: dict[str, np.ndarray]) -> Figure:
    """
    :param errors: error of each prediction by horizon step (H,)
    :return: one panel per prediction
    """
    figure = Figure(figsize=(3.2 * len(errors), 2.6), layout="constrained")
    for axis, (name, values) in zip(figure.subplots(1, len(errors), squeeze=False)[0], errors.items(), strict=True):
        axis.plot(np.arange(1, len(values) + 1), values, marker=".")
        axis.set(title=name, xlabel="steps without observation", ylim=(0, None))
    return figure


def audit_figure(
    errors: dict[str, tuple[np.ndarray, np.ndarray]], calibrations: dict[str, tuple[np.ndarray, np.ndarray]]
) -> Figure:
    """
    :param errors: by name, mean difference between prediction and truth, and mean absolute difference, by horizon step (H,)
    :param calibrations: by name, mean prediction and mean truth of groups of rows (n,)
    :return: one panel each: errors in the first row, calibrations in the second
    """
    n_columns = max(len(errors), len(calibrations))
    figure = Figure(figsize=(3.2 * n_columns, 5.2), layout="constrained")
    axes = figure.subplots(2, n_columns, squeeze=False)
    for axis, (name, (bias, error)) in zip(axes[0], errors.items(), strict=False):
        steps = np.arange(1, len(bias) + 1)
        axis.plot(steps, bias, marker=".", label="bias")
        axis.plot(steps, error, marker=".", label="absolute error")
        axis.axhline(0.0, color="0.6", linewidth=0.8)
        axis.set(title=name, xlabel="steps without observation")
    axes[0, 0].legend(fontsize="x-small")
    for axis, (name, (predicted, truth)) in zip(axes[1], calibrations.items(), strict=False):
        if len(predicted):  # otherwise no row could be predicted
            ends = [min(predicted.min(), truth.min()), max(predicted.max(), truth.max())]
            axis.plot(ends, ends, color="0.6", linewidth=0.8)
        axis.plot(predicted, truth, marker="o", linestyle="")
        axis.set(title=f"calibration: {name}", xlabel="predicted", ylabel="seen")
    return figure


def with_text(image: np.ndarray, lines: list[str], color: tuple[int, int, int]) -> np.ndarray:
    """
    :param image: (h, w, 3) uint8
    :param lines: up to four lines that are written below it
    :param color: of the frame around both
    :return: at least 104 pixels wide
    """
    width = max(image.shape[1], 100)
    canvas = Image.new("RGB", (width, image.shape[0] + TEXT_HEIGHT))
    canvas.paste(Image.fromarray(image), ((width - image.shape[1]) // 2, 0))
    ImageDraw.Draw(canvas).multiline_text((3, image.shape[0] + 2), "\n".join(lines), fill="white", font_size=10, spacing=2)
    return framed(np.asarray(canvas), color)


def as_gif(frames: np.ndarray, fps: float) -> bytes:
    """
    :param frames: (T, h, w, 3) uint8
    :param fps: frames per second
    :return: content of a GIF file that repeats
    """
    first, *rest = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    first.save(file, format="GIF", save_all=True, append_images=rest, duration=1000 / fps, loop=0)
    return file.getvalue()


# ---- pictures of vectors ----


def cart_pole(observation: np.ndarray) -> np.ndarray:
    """
    :param observation: of gymnasium's CartPole: position, velocity, angle, angular velocity
    :return: (96, 144, 3) uint8
    """
    image = Image.new("RGB", (144, 96), "white")
    draw = ImageDraw.Draw(image)
    x, y = 72 + 60 * float(np.clip(observation[0] / 2.4, -1.2, 1.2)), 72
    angle = float(np.clip(observation[2], -np.pi, np.pi))
    draw.line((0, y, 144, y), fill="black")
    draw.rectangle((x - 10, y - 6, x + 10, y + 6), fill="black")
    draw.line((x, y, x + 48 * np.sin(angle), y - 48 * np.cos(angle)), fill=(200, 130, 60), width=5)
    return np.asarray(image)


def frozen_lake(observation: np.ndarray, desc: Any) -> np.ndarray:
    """
    :param observation: number of the field
    :param desc: map of gymnasium's FrozenLake, one letter per field
    :return: (rows * 24, columns * 24, 3) uint8: holes blue, goal green, the agent a red disc
    """
    fields = np.asarray(desc).astype(str)
    image = Image.new("RGB", (24 * fields.shape[1], 24 * fields.shape[0]), (225, 235, 245))
    draw = ImageDraw.Draw(image)
    for (row, column), letter in np.ndenumerate(fields):
        fill = {"H": (60, 100, 170), "G": (60, 170, 90)}.get(letter, (225, 235, 245))
        draw.rectangle((24 * column, 24 * row, 24 * column + 23, 24 * row + 23), fill=fill, outline=(170, 180, 190))
    row, column = divmod(int(np.asarray(observation).flat[0]), fields.shape[1])
    draw.ellipse((24 * column + 5, 24 * row + 5, 24 * column + 18, 24 * row + 18), fill=(200, 50, 40))
    return np.asarray(image)


def bars(observation: np.ndarray) -> np.ndarray:
    """
    :param observation: any numbers; the first 12 are drawn
    :return: (96, 144, 3) uint8: one bar per number, on the scale of symlog, blue below zero
    """
    values = np.nan_to_num(np.asarray(observation, dtype=float)).reshape(-1)[:12]
    heights = np.sign(values) * np.log1p(np.abs(values)) / 3.0
    image = Image.new("RGB", (144, 96), "white")
    draw = ImageDraw.Draw(image)
    width = 144 / max(1, len(values))
    for i, height in enumerate(np.clip(heights, -1, 1)):
        top, bottom = sorted((48.0, 48.0 - 44.0 * height))
        draw.rectangle((i * width + 2, top, (i + 1) * width - 2, bottom), fill=(200, 90, 60) if height > 0 else (60, 90, 200))
    draw.line((0, 48, 144, 48), fill="black")
    return np.asarray(image)
