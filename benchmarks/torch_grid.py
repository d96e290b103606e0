"""The cells of bench_grid.py in a plain loop of NumPy and PyTorch: what they cost elsewhere.

python benchmarks/torch_grid.py EXAMPLES.npz CELLS BATCH THREADS
python benchmarks/torch_grid.py --check=FILE.npz

`bench_grid.py --torch=PYTHON` calls both forms, with OMP_WAIT_POLICY=PASSIVE (there it says why).
They need PyTorch, NumPy and SciPy, and nothing of the library. For each cell and each batch, every
example is corrupted by itself in NumPy, as a data set's `__getitem__` does, the examples are
stacked, and the whole model runs on them. EXAMPLES.npz holds `target` [N], `audio` [N, T] and
`image` [N, H, W, C]; CELLS is a JSON list of
{"noise": {modality: [corruption, severity]}, "missing": [modality]}. Printed is one line of JSON:
"seconds" of the loop without imports, construction and a first batch, "corrupting", the seconds of
these that pass in NumPy, and "correct", the examples that were right in each cell.

Equal to `configs/av_mnist.py:resnet18` in evaluation: shapes of all parameters, preprocessing,
encoders, predicted noise, stored dependence, weights, sum and head, and what a missing modality is;
`--check` compares logits and weights of 8 clean examples, with nothing and with either modality
missing, to 2e-4. Physical strengths of all corruptions are equal, and so are the results of those
that draw nothing, up to one level of rounding.

Not equal: random numbers are NumPy's, so that noisy inputs are others of the same law. Parameters
are PyTorch's own fresh ones where times are taken. Only right answers are counted; the library also
returns the other records of each example, weights and signals. Its short last batch is padded, this
one is not. One process corrupts and predicts, without the workers of a DataLoader.
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.fft
import scipy.ndimage
import torch
from torch import Tensor, nn
from torch.nn import functional

MODALITIES = ("audio", "image")
# Rounding makes up to 9e-5 on logits of 5, the exact form of GELU in place of Flax's 4e-4.
TOLERANCE = 2e-4

# Preprocessing, as LogMel() and Standardise(...) of the configuration.
SAMPLE_RATE, FRAME, HOP, BINS = 8000, 256, 128, 32
POWER_MEAN, POWER_DEVIATION, POWER_FLOOR = -14.0, 3.0, 1e-8
PIXEL_MEAN, PIXEL_DEVIATION = 33.3, 78.6

# The model.
WIDTH, GROUPS, FEATURES, HIDDEN, CLASSES = 32, 8, 64, 64, 10
EXPONENT_LIMIT, LOG_SCALE_LIMIT = 4.0, 20.0

# Lengths in pixels are published for images of this side.
PUBLISHED_SIDE = 224


def white_noise(x: np.ndarray, ratio: float, generator: np.random.Generator) -> np.ndarray:
    """White noise of `ratio` times the clip's root mean square."""
    return _with_noise(x, ratio, generator.standard_normal(len(x), np.float32))


def coloured_noise(x: np.ndarray, ratio: float, generator: np.random.Generator) -> np.ndarray:
    """Pink noise of `ratio` times the clip's root mean square, its own RMS 1 in each draw."""
    amplitudes = np.arange(1, len(x) // 2 + 1, dtype=np.float32) ** np.float32(-0.5)
    parts = generator.standard_normal((2, len(amplitudes)), np.float32) * amplitudes
    spectrum = np.zeros(len(amplitudes) + 1, np.complex64)
    spectrum[1:] = parts[0] + 1j * parts[1]
    noise = scipy.fft.irfft(spectrum, n=len(x))
    return _with_noise(x, ratio, noise / np.sqrt(np.mean(noise**2)))


def _with_noise(x: np.ndarray, ratio: float, noise: np.ndarray) -> np.ndarray:
    """Noise of RMS 1, added; the clip's RMS is over the samples that are not 0."""
    signal = x.astype(np.float32)
    rms = np.sqrt(np.sum(signal**2) / max(np.count_nonzero(x), 1))
    return signal + np.float32(ratio) * rms * noise


def clipping(x: np.ndarray, fraction: float, generator: np.random.Generator) -> np.ndarray:
    """The loudest `fraction` of the samples that are not 0, cut to one level."""
    signal = x.astype(np.float32)
    place = max(len(x) - 1 - int(np.float32(fraction) * np.count_nonzero(x)), 0)
    limit = np.partition(np.abs(signal), place)[place]
    return np.clip(signal, -limit, limit)


def time_mask(x: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """One stretch, `share` of the sound up to its last sample that is not 0, silent."""
    sounding = np.flatnonzero(x)
    length = sounding[-1] + 1 if len(sounding) else 0
    start = generator.random() * (1 - share) * length
    masked = x.copy()
    masked[round(start) : round(start + share * length)] = 0
    return masked


def quantisation(x: np.ndarray, lost: float, generator: np.random.Generator) -> np.ndarray:
    """16-bit samples less `lost` bits."""
    return np.round(x / np.float32(2**lost)) * np.float32(2**lost)


def sample_dropout(x: np.ndarray, fraction: float, generator: np.random.Generator) -> np.ndarray:
    """Each sample 0 with probability `fraction`."""
    return np.where(generator.random(len(x), np.float32) < fraction, np.int16(0), x)


def gaussian_noise(x: np.ndarray, sigma: float, generator: np.random.Generator) -> np.ndarray:
    """Normal noise of `sigma` standard deviations of the data."""
    return x + np.float32(sigma * PIXEL_DEVIATION) * generator.standard_normal(x.shape, np.float32)


def impulse_noise(x: np.ndarray, fraction: float, generator: np.random.Generator) -> np.ndarray:
    """A `fraction` of the pixels, one half black and one half white."""
    uniform = generator.random((*x.shape[:-1], 1), np.float32)
    noisy = np.where(uniform < fraction / 2, np.uint8(0), x)
    return np.where(uniform >= 1 - fraction / 2, np.uint8(255), noisy)


def gaussian_blur(x: np.ndarray, sigma: float, generator: np.random.Generator) -> np.ndarray:
    """A Gaussian whose deviation, as a kernel at whole pixels, is `sigma` pixels of 224."""
    width = width_of_kernel(sigma * min(x.shape[:2]) / PUBLISHED_SIDE)
    return scipy.ndimage.gaussian_filter(
        x.astype(np.float32), width, mode="nearest", axes=(0, 1), truncate=4.0
    )


@functools.cache
def width_of_kernel(deviation: float) -> float:
    """The Gaussian that has a deviation after it was read off at whole pixels.

    Below a pixel it is wider than its deviation: a narrower one falls between the pixels.
    """
    widths = np.arange(0.15, 2.0, 0.01)
    squares = np.arange(-20.0, 21.0)[None] ** 2
    kernels = np.exp(-squares / (2 * widths[:, None] ** 2))
    deviations = np.sqrt((kernels * squares).sum(1) / kernels.sum(1))
    return float(np.interp(deviation, deviations, widths)) if deviation < 1.99 else deviation


def contrast(x: np.ndarray, lost: float, generator: np.random.Generator) -> np.ndarray:
    """Pixels moved towards the mean of each channel by the share `lost`."""
    levels = x.astype(np.float32)
    return levels + np.float32(lost) * (levels.mean(axis=(0, 1)) - levels)


def occlusion(x: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """A patch of the image's proportions that hides `share` of it in its mean grey."""
    levels, side = x.astype(np.float32), share**0.5
    rows, columns = (
        _hidden(size, side, place)
        for size, place in zip(x.shape[:2], generator.random(2), strict=True)
    )
    hidden = (rows[:, None] * columns)[:, :, None].astype(np.float32)
    return levels + hidden * (levels.mean() - levels)


def _hidden(size: int, side: float, place: float) -> np.ndarray:
    """How much of each pixel of an axis is hidden by `side` of it, from 0 (start) to 1 (end)."""
    start, pixel = place * (1 - side) * size, np.arange(size)
    return np.clip(np.minimum(pixel + 1, start + side * size) - np.maximum(pixel, start), 0, 1)


def pixelate(x: np.ndarray, lost: float, generator: np.random.Generator) -> np.ndarray:
    """Each pixel the mean of its cell, of 1 - `lost` times as many cells along each side."""
    down, across = (means_of_cells(side, lost) for side in x.shape[:2])
    planes = np.moveaxis(x, -1, 0).astype(np.float32)
    return np.moveaxis(down @ planes @ across.T, 0, -1)


@functools.cache
def means_of_cells(side: int, lost: float) -> np.ndarray:
    """The matrix [side, side] that replaces each pixel of an axis by the mean of its cell."""
    # The margin undoes rounding, where a share of the side is a whole number.
    cells = max(int((1 - lost) * side + 1e-3), 1)
    cell = ((2 * np.arange(side) + 1) * cells) // (2 * side)
    together = (cell[:, None] == cell).astype(np.float32)
    return together / together.sum(axis=1, keepdims=True)


# The library's class -> strengths at severities 0, 0.2 to 1, and what applies one to one example.
RATIOS = (0.0, 0.1, 0.316, 0.562, 1.0, 1.78)
FRACTIONS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)
Corruption = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
CORRUPTIONS: dict[str, tuple[tuple[float, ...], Corruption]] = {
    "WhiteNoise": (RATIOS, white_noise),
    "ColouredNoise": (RATIOS, coloured_noise),
    "Clipping": ((0.0, 0.05, 0.1, 0.2, 0.3, 0.4), clipping),
    "TimeMask": ((0.0, 0.1, 0.2, 0.3, 0.4, 0.5), time_mask),
    "Quantisation": ((0.0, 4.0, 6.0, 8.0, 10.0, 12.0), quantisation),
    "SampleDropout": (FRACTIONS, sample_dropout),
    "GaussianNoise": ((0.0, 1.6, 3.2, 4.8, 6.4, 8.0), gaussian_noise),
    "ImpulseNoise": (FRACTIONS, impulse_noise),
    "GaussianBlur": ((0.0, 1.0, 2.0, 3.0, 4.0, 6.0), gaussian_blur),
    "Contrast": ((0.0, 0.6, 0.7, 0.8, 0.9, 0.95), contrast),
    "Occlusion": ((0.0, 0.04, 0.1, 0.2, 0.35, 0.5), occlusion),
    "Pixelate": ((0.0, 0.4, 0.5, 0.6, 0.7, 0.75), pixelate),
}


def corrupt(
    x: np.ndarray, name: str, severity: float, generator: np.random.Generator
) -> np.ndarray:
    """Corrupt one example; integers are rounded and saturate."""
    strengths, function = CORRUPTIONS[name]
    strength = float(np.interp(severity, np.linspace(0, 1, len(strengths)), strengths))
    values = function(x, strength, generator)
    if values.dtype == x.dtype:
        return values
    limits = np.iinfo(x.dtype)
    return np.clip(np.round(values), limits.min, limits.max).astype(x.dtype)


class LogMel(nn.Module):
    """Waveform [B, T], 16-bit, to a standardised log-mel map [B, 1, frames, bins]."""

    def __init__(self) -> None:
        super().__init__()
        # Over half its sum, so that a full-scale tone has the power 1.
        window = torch.hann_window(FRAME, dtype=torch.float64) / (FRAME / 2)
        self.register_buffer("window", window.float(), persistent=False)
        self.register_buffer("filters", torch.from_numpy(mel_filters()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform; a tail that is shorter than the hop is left out."""
        spectrum = torch.stft(
            x.float() / 32768,
            FRAME,
            HOP,
            window=self.window,
            center=False,
            return_complex=True,
        )
        power = torch.view_as_real(spectrum).square().sum(-1)
        mel = power.transpose(1, 2) @ self.filters
        return ((torch.log(mel + POWER_FLOOR) - POWER_MEAN) / POWER_DEVIATION)[:, None]


def mel_filters() -> np.ndarray:
    """[FRAME / 2 + 1, BINS] triangles, equally spaced in mel = 2595 log10(1 + f / 700)."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BINS + 2) / 2595) - 1)
    frequencies = np.linspace(0, SAMPLE_RATE / 2, FRAME // 2 + 1)[:, None]
    rising = (frequencies - edges[:-2]) / np.diff(edges[:-1])
    falling = (edges[2:] - frequencies) / np.diff(edges[1:])
    return np.clip(np.minimum(rising, falling), 0, None).astype(np.float32)


class Standardise(nn.Module):
    """8-bit images [B, H, W, C] to standardised ones [B, C, H, W]."""

    def __init__(self, mean: float = PIXEL_MEAN, deviation: float = PIXEL_DEVIATION) -> None:
        super().__init__()
        self.mean, self.deviation = mean, deviation

    def forward(self, x: Tensor) -> Tensor:
        """Transform."""
        return ((x.float() - self.mean) / self.deviation).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Basic residual block with GroupNorm; the shortcut is projected where the shape changes."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(entering, leaving, 3, stride, padding=1, bias=False)
        self.norm1 = group_norm(leaving)
        self.conv2 = nn.Conv2d(leaving, leaving, 3, padding=1, bias=False)
        self.norm2 = group_norm(leaving)
        self.projects = stride > 1 or entering != leaving
        if self.projects:
            self.shortcut_conv = nn.Conv2d(entering, leaving, 1, stride, bias=False)
            self.shortcut_norm = group_norm(leaving)

    def forward(self, x: Tensor) -> Tensor:
        """Transform [B, C, H, W]."""
        y = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        if self.projects:
            x = self.shortcut_norm(self.shortcut_conv(x))
        return functional.relu(x + y, inplace=True)


class ResNet18(nn.Module):
    """ResNet-18 with the large stem; maps to tokens [B, N, FEATURES]."""

    def __init__(self, channels: int = 1, width: int = WIDTH) -> None:
        super().__init__()
        self.stem_conv = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
        self.stem_norm = group_norm(width)
        self.blocks = []
        entering = width
        for stage in range(4):
            for number in range(2):
                name, leaving = f"stage{stage + 1}_block{number + 1}", width * 2**stage
                self.add_module(name, Block(entering, leaving, 2 if stage and not number else 1))
                self.blocks.append(name)
                entering = leaving
        self.projection = nn.Linear(entering, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        """Encode."""
        x = functional.relu(self.stem_norm(self.stem_conv(x)), inplace=True)
        x = functional.max_pool2d(x, 3, 2, padding=1)
        for name in self.blocks:
            x = self.get_submodule(name)(x)
        return self.projection(x.flatten(2).transpose(1, 2))


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with the epsilon of Flax."""
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


class Scheduler(nn.Module):
    """Weights from predicted noise and stored dependence, each to a learned power."""

    def __init__(self) -> None:
        super().__init__()
        start = torch.tensor([0.5, 1.0]) / EXPONENT_LIMIT
        self.exponents = nn.Parameter(torch.logit(start))
        self.register_buffer("share", torch.ones(len(MODALITIES)))
        for name in MODALITIES:
            self.add_module(f"hidden_{name}", nn.Linear(2 * FEATURES, HIDDEN))
            self.add_module(f"scale_{name}", nn.Linear(HIDDEN, 1))

    def forward(self, tokens: dict[str, Tensor], present: Tensor) -> Tensor:
        """Weights [B, M], sum 1 over what is present [B, M]."""
        return self.weights(self.log_scales(tokens), present)

    def log_scales(self, tokens: dict[str, Tensor]) -> Tensor:
        """Logarithms of the predicted scales [B, M], without gradient into the tokens."""
        scales = []
        for name, values in tokens.items():
            values = values.detach()
            spread = torch.log(values.var(1, unbiased=False) + 1e-6)
            cues = torch.cat([values.mean(1), spread], dim=1)
            hidden = functional.gelu(self.get_submodule(f"hidden_{name}")(cues), approximate="tanh")
            scales.append(self.get_submodule(f"scale_{name}")(hidden)[:, 0])
        return torch.stack(scales, dim=1)

    def weights(self, log_scales: Tensor, present: Tensor) -> Tensor:
        """Weights from the predicted scales and the stored dependence."""
        log_scales = log_scales.clamp(0.0, LOG_SCALE_LIMIT)
        exponents = EXPONENT_LIMIT * torch.sigmoid(self.exponents)
        logits = -exponents[0] * log_scales - exponents[1] * torch.log(self.share)
        return torch.softmax(logits.masked_fill(~present, -torch.inf), dim=1)


class Model(nn.Module):
    """Preprocess, encode, weigh, sum and classify."""

    def __init__(
        self,
        prepare: dict[str, nn.Module] | None = None,
        *,
        channels: tuple[int, ...] = (1, 1),
        width: int = WIDTH,
        classes: int = CLASSES,
    ) -> None:
        super().__init__()
        self.prepare = nn.ModuleDict(prepare or {"audio": LogMel(), "image": Standardise()})
        for name, number in zip(MODALITIES, channels, strict=True):
            self.add_module(f"encoders_{name}", ResNet18(number, width))
        self.scheduler = Scheduler()
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, inputs: dict[str, Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and weights [B, M] of raw inputs, with Bool[B, M]; one of them is True."""
        tokens = self.encode(self.prepared(inputs, present))
        weights = self.scheduler(tokens, present)
        pooled = [values.mean(1) for values in tokens.values()]
        return self.fused(pooled, weights, present), weights

    def prepared(self, inputs: dict[str, Tensor], present: Tensor) -> dict[str, Tensor]:
        """What the encoders are given; 0 where a modality is missing."""
        maps = {}
        for m, name in enumerate(MODALITIES):
            x = self.prepare[name](inputs[name])
            # Silence has a log-mel map that is not 0: a missing input is 0 behind it too.
            maps[name] = x.masked_fill(~present[:, m, None, None, None], 0.0)
        return maps

    def encode(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tokens of each modality."""
        return {name: self.get_submodule(f"encoders_{name}")(x) for name, x in maps.items()}

    def fused(self, pooled: list[Tensor], weights: Tensor, present: Tensor) -> Tensor:
        """Logits [B, K] of the weighted sum."""
        # Equal weights are a plain sum.
        gains = weights * present.sum(1, keepdim=True)
        parts = [gains[:, m, None] * values for m, values in enumerate(pooled)]
        return self.head(sum(parts[1:], parts[0]))


class Loop:
    """The cells, one after the other."""

    def __init__(self, examples: dict[str, np.ndarray], batch: int) -> None:
        self.examples, self.batch = examples, batch
        self.model = Model().eval()
        self.generator = np.random.default_rng(0)
        self.corrupting = 0.0

    def inputs(self, cell: dict[str, Any], rows: Sequence[int]) -> dict[str, Tensor]:
        """The inputs of a batch, each example corrupted by itself."""
        start, stacked = time.perf_counter(), {}
        for name in MODALITIES:
            examples = [self.examples[name][row] for row in rows]
            if name in cell["missing"]:
                examples = [np.zeros_like(x) for x in examples]
            elif name in cell["noise"]:
                kind, severity = cell["noise"][name]
                examples = [corrupt(x, kind, severity, self.generator) for x in examples]
            stacked[name] = torch.from_numpy(np.stack(examples))
        self.corrupting += time.perf_counter() - start
        return stacked

    def correct(self, cell: dict[str, Any], rows: Sequence[int]) -> int:
        """How many examples of a batch are right."""
        inputs, target = self.inputs(cell, rows), torch.from_numpy(self.examples["target"][rows])
        kept = torch.tensor([name not in cell["missing"] for name in MODALITIES])
        logits, _ = self.model(inputs, kept.expand(len(rows), -1))
        return int((logits.argmax(1) == target).sum())

    @torch.inference_mode()
    def run(self, cells: list[dict[str, Any]]) -> dict[str, Any]:
        """What is printed."""
        total = len(self.examples["target"])
        starts = range(0, total, self.batch)
        batches = [range(start, min(start + self.batch, total)) for start in starts]
        self.correct(cells[0], batches[0])
        self.corrupting, start = 0.0, time.perf_counter()
        correct = [sum(self.correct(cell, rows) for rows in batches) for cell in cells]
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "corrupting": self.corrupting, "correct": correct}


def parameters_of(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The state of `Model` from the variables of the library's model, by their paths."""
    state = {}
    for path, values in arrays.items():
        collection, *parts = path.split("/")
        if collection not in ("params", "scheduler"):
            continue
        names = [part for part in parts if not part.startswith(("signals_", "Dense_"))]
        if names[-1] == "kernel":
            # Flax has output channels last, PyTorch first.
            values = np.moveaxis(values, (-1, -2), (0, 1))
        names[-1] = {"kernel": "weight", "scale": "weight"}.get(names[-1], names[-1])
        state[".".join(names)] = torch.from_numpy(np.ascontiguousarray(values))
    return state


@torch.inference_mode()
def check(path: str) -> dict[str, float]:
    """Compare with what the library found for the same parameters and inputs.

    Args:
        path: file with its variables by path, `inputs/<modality>` [B, ...], `present` [S, B, M],
            `logits` [S, B, K] and `weights` [S, B, M].

    Raises:
        AssertionError: where logits or weights differ by more than the tolerance.
        RuntimeError: where a parameter is left out, has another shape, or there is none for it.
    """
    arrays = dict(np.load(path))
    model = Model().eval()
    model.load_state_dict(parameters_of(arrays), strict=True)
    inputs = {name: torch.from_numpy(arrays[f"inputs/{name}"]) for name in MODALITIES}
    found = [model(inputs, torch.from_numpy(present)) for present in arrays["present"]]
    differences = {
        "largest logit": float(np.abs(arrays["logits"]).max()),
        "least weight": float(arrays["weights"][arrays["present"]].min()),
    }
    for name, values in zip(("logits", "weights"), zip(*found, strict=True), strict=True):
        distance = float(np.abs(torch.stack(values).numpy() - arrays[name]).max())
        assert distance <= TOLERANCE, (name, distance)
        differences[name] = distance
    return differences


def main(arguments: list[str]) -> None:
    torch.manual_seed(0)
    if arguments[0].startswith("--check="):
        print(json.dumps(check(arguments[0].removeprefix("--check="))))
        return
    path, cells, batch, threads = arguments
    torch.set_num_threads(int(threads))
    print(json.dumps(Loop(dict(np.load(path)), int(batch)).run(json.loads(cells))))


if __name__ == "__main__":
    main(sys.argv[1:])
