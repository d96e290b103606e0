"""Small pictures of inputs, for the examples of a report.

`picture` turns one input of one modality into a PNG; what kind of input it is follows from its
shape and dtype. The same input gives the same bytes. Nothing is read, corrupted or chosen here.
"""

import io
import math
from typing import Any

import matplotlib
import matplotlib.image
import numpy as np
from matplotlib.figure import Figure
from scipy.signal import spectrogram

SIDE = 96  # pixels of the longer side of an image, at least
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#B07800", "#6B6B6B")
_MAX_LINES = 12
# Below the loudest point of a spectrogram by so much, all is black.
_RANGE_DB = 80.0
_SIZE, _DPI = (1.92, 0.96), 100  # inches, so that a drawing is 192 x 96 pixels
_CHANNELS = (1, 3)
# matplotlib would name its version in the file.
_NO_VERSION: dict[str, Any] = {"Software": None}


def picture(x: np.ndarray, *, sample_rate: int | None = None) -> bytes | None:
    """A PNG of one input, None for what there is no picture of.

    Args:
        x: one example of one modality. Eight-bit images [H, W, C] or [H, W] as they are, enlarged
            without smoothing to about 96 pixels; eight-bit videos [T, H, W, C]: the middle frame;
            waveforms [T] with a sample rate: a log spectrogram, time to the right; series [T, C]:
            lines; feature vectors [F]: bars. C is 1 or 3 in images.
        sample_rate: of a waveform, in Hz; None says that a vector is one of features.

    Returns:
        The PNG, the same bytes for the same input.
    """
    x = np.asarray(x)
    if not x.size or x.dtype.kind not in "uifb":
        return None
    if x.dtype == np.uint8 and x.ndim == 4:
        x = x[len(x) // 2]
    if x.dtype == np.uint8 and (x.ndim == 2 or (x.ndim == 3 and x.shape[-1] in _CHANNELS)):
        return _image(x)
    # Noise may leave the range of floats; a picture of the rest is better than none.
    x = np.nan_to_num(np.asarray(x, np.float64), posinf=0.0, neginf=0.0)
    # The reader's own matplotlibrc must not change the picture.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        if x.ndim == 1:
            return _bars(x) if sample_rate is None else _spectrogram(x, sample_rate)
        return _lines(x) if x.ndim == 2 else None


def _image(x: np.ndarray) -> bytes:
    """Whole pixels only: a pixel of the input is a square of the picture."""
    factor = max(1, math.ceil(SIDE / max(x.shape[:2])))
    colours = np.broadcast_to(x.reshape(*x.shape[:2], -1), (*x.shape[:2], 3))
    return _png(colours.repeat(factor, axis=0).repeat(factor, axis=1))


def _png(colours: np.ndarray) -> bytes:
    """A PNG of eight-bit colours [H, W, 3]."""
    buffer = io.BytesIO()
    matplotlib.image.imsave(
        buffer, np.ascontiguousarray(colours), format="png", origin="upper", metadata=_NO_VERSION
    )
    return buffer.getvalue()


def _spectrogram(x: np.ndarray, sample_rate: int) -> bytes:
    """Power in dB over time and frequency, low frequencies at the bottom."""
    window = min(256, len(x))
    _, _, power = spectrogram(x, fs=sample_rate, nperseg=window, noverlap=window // 2)
    # A silent clip has no loudest point.
    decibels = 10 * np.log10(np.maximum(power, 1e-20))
    level = np.clip((decibels - decibels.max()) / _RANGE_DB + 1, 0, 1)
    level = level if power.max() > 0 else np.zeros_like(level)
    colours = matplotlib.colormaps["magma"](level[::-1], bytes=True)[..., :3]
    width, height = (round(side * _DPI) for side in _SIZE)
    rows = np.arange(height) * len(colours) // height
    columns = np.arange(width) * colours.shape[1] // width
    return _png(colours[rows][:, columns])


def _bars(x: np.ndarray) -> bytes:
    """One bar for each feature; too many to see as bars become an outline."""
    figure, axes = _axes()
    axes.fill_between(
        np.repeat(np.arange(len(x) + 1), 2)[1:-1], np.repeat(x, 2), color=_COLOURS[0], linewidth=0
    )
    axes.axhline(0, color="#666666", linewidth=0.5)
    return _drawing(figure)


def _lines(x: np.ndarray) -> bytes:
    """One line for each channel over time."""
    figure, axes = _axes()
    for channel in range(min(x.shape[1], _MAX_LINES)):
        axes.plot(x[:, channel], color=_COLOURS[channel % len(_COLOURS)], linewidth=0.8)
    return _drawing(figure)


def _axes() -> tuple[Figure, matplotlib.axes.Axes]:
    """Axes that fill the figure, without a frame: at this size labels could not be read."""
    figure = Figure(figsize=_SIZE, dpi=_DPI)
    axes = figure.add_axes((0.01, 0.02, 0.98, 0.96))
    axes.set_axis_off()
    return figure, axes


def _drawing(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata=_NO_VERSION)
    return buffer.getvalue()
