"""Statistics of published image corruptions on synthetic pictures: image_corruptions_weather.npz.

Made with imagecorruptions 1.1.2 (which carries the ImageNet-C recipes and its frost photographs),
numpy 1.26.4, scipy 1.17.1, scikit-image 0.26.0, opencv-python 4.11.0.86, pillow 13.0.0 and
setuptools 65.5.0 (for pkg_resources) on Python 3.11, in a virtual environment of its own:

    python -m venv oracle
    oracle/bin/pip install imagecorruptions==1.1.2 "numpy<2" "setuptools<70" scipy==1.17.1 \
        scikit-image==0.26.0 opencv-python==4.11.0.86 pillow==13.0.0
    oracle/bin/python tests/golden/make_image_corruptions_weather.py

For each corruption an array [5 published severities, 8 pictures, 4 statistics], float32: mean
absolute change; change of the mean; deviation over the picture; and the share of the energy of
differences between neighbours that is kept. `inputs` holds mean and deviation of each picture, so
that a test knows that it drew the same ones.
"""

import warnings
from pathlib import Path

import numpy as np

# The published names.
NAMES = (
    *("snow", "frost", "fog", "spatter", "brightness", "contrast", "saturate"),
    *("elastic_transform", "pixelate", "jpeg_compression"),
)
# Draws for each picture, averaged, where the corruption is random.
DRAWS = 6


def pictures(count: int = 8, side: int = 224) -> np.ndarray:
    """Pictures [N, side, side, 3] by seed: a 1/f texture with a common part of the channels, and
    discs and bars of other colours; tests/corruptions/test_image_weather_and_digital.py uses it.
    """
    generator = np.random.default_rng(20240)
    row, column = np.mgrid[:side, :side]
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    radius[0, 0] = np.inf
    found = np.empty((count, side, side, 3), np.uint8)
    for picture in found:
        noise = np.fft.fft2(generator.normal(size=(4, side, side))) / radius
        texture = np.fft.ifft2(noise).real
        texture /= texture.std(axis=(1, 2), keepdims=True)
        together = texture[0, :, :, None]
        values = generator.uniform(70, 160, 3) + 30 * together
        values = values + 12 * np.moveaxis(texture[1:], 0, -1)
        for _ in range(6):
            y, x = generator.uniform(0, side, 2)
            size, colour = generator.uniform(8, 50), generator.uniform(0, 255, 3)
            inside = np.hypot(row - y, column - x) < size
            if generator.uniform() < 0.5:
                inside = (abs(row - y) < size) & (abs(column - x) < size / 4)
            values[inside] = 0.3 * values[inside] + 0.7 * colour
        picture[:] = np.clip(np.round(values), 0, 255)
    return found


def statistics(before: np.ndarray, after: np.ndarray) -> list[float]:
    """The four statistics of one picture."""
    before, after = before.astype(np.float64), after.astype(np.float64)
    energy = [
        sum((np.diff(values, axis=axis) ** 2).mean() for axis in (0, 1))
        for values in (before, after)
    ]
    change = after - before
    return [np.abs(change).mean(), change.mean(), after.std(), energy[1] / energy[0]]


def main() -> None:
    # Here, so that the file can be imported without the package.
    from imagecorruptions import corrupt

    warnings.simplefilter("ignore")
    given = pictures()
    found = {"inputs": np.stack([given.mean(axis=(1, 2, 3)), given.std(axis=(1, 2, 3))])}
    for name in NAMES:
        table = np.zeros((5, len(given), 4))
        for level in range(5):
            for number, picture in enumerate(given):
                rows = []
                for draw in range(DRAWS):
                    np.random.seed(1000 * number + draw)  # noqa: NPY002 (what the package draws from)
                    after = corrupt(picture, corruption_name=name, severity=level + 1)
                    rows.append(statistics(picture, after))
                table[level, number] = np.mean(rows, axis=0)
        found[name] = table
        print(name, *(np.round(row, 3) for row in table.mean(axis=1)), sep="\n  ")
    arrays = {name: np.asarray(values, np.float32) for name, values in found.items()}
    np.savez_compressed(Path(__file__).with_name("image_corruptions_weather.npz"), **arrays)


if __name__ == "__main__":
    main()
