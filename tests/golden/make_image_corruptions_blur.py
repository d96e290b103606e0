"""Statistics of the published noise and blurs on synthetic pictures: image_corruptions_blur.npz.

Made with imagecorruptions 1.1.2 (the recipes of ImageNet-C), numpy 1.24.4, scipy 1.10.1,
scikit-image 0.20.0, opencv-python-headless 4.8.1.78, pillow 13.0.0 and setuptools 65.5.0 (for
pkg_resources) on Python 3.11, in a virtual environment of its own:

    python3.11 -m venv oracle
    oracle/bin/pip install "setuptools<70" numpy==1.24.4 scipy==1.10.1 scikit-image==0.20.0 \
        opencv-python-headless==4.8.1.78 pillow==13.0.0
    oracle/bin/pip install --no-deps imagecorruptions==1.1.2
    oracle/bin/python tests/golden/make_image_corruptions_blur.py

`pictures` [3, 2]: mean and deviation of each picture, so that a test knows that it drew the same
ones. For each corruption an array [5 published severities, 5 statistics], means over the pictures:
mean absolute change; change of the mean; deviation over the picture; share of the energy of
differences between neighbours that is kept, along rows and along columns. Motion is horizontal in
all, since its direction is one number that few draws would not average out.
`steps.shot_noise` and `steps.speckle_noise` [5, 14, 2]: mean and deviation of what the noise makes
of each step of the chart of `steps`.
"""

import warnings
from pathlib import Path

import numpy as np

NAMES = (
    *("shot_noise", "speckle_noise", "gaussian_blur", "defocus_blur", "glass_blur"),
    *("motion_blur", "zoom_blur"),
)


def pictures(count: int = 3, side: int = 224) -> np.ndarray:
    """[N, side, side, 3], 8-bit: textures of spectrum 1/f with discs and bars on top.

    tests/corruptions/test_image_noise_and_blur.py uses it too.
    """
    generator = np.random.default_rng(11)
    rows, columns = np.mgrid[:side, :side]
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    frequency[0, 0] = np.inf
    found = []
    for _ in range(count):
        spectrum = np.fft.fft2(generator.normal(size=(3, side, side))) / frequency
        texture = np.moveaxis(np.fft.ifft2(spectrum).real, 0, -1)
        picture = 110 + 35 * texture / texture.std()
        for _ in range(8):
            middle, size = generator.uniform(0, side, 2), generator.uniform(6, 40)
            disc = np.hypot(rows - middle[0], columns - middle[1]) < size
            bar = (abs(rows - middle[0]) < size) & (abs(columns - middle[1]) < size / 5)
            shape = disc if generator.uniform() < 0.5 else bar
            picture[shape] = 0.3 * picture[shape] + 0.7 * generator.uniform(0, 255, 3)
        found.append(np.clip(np.round(picture), 0, 255).astype(np.uint8))
    return np.stack(found)


def steps() -> np.ndarray:
    """[224, 224, 3], 8-bit: 14 grey bands of 16 rows, from 0 to 247 in steps of 19."""
    levels = np.repeat(np.arange(14) * 19, 16).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None], (224, 224, 3)).copy()


def statistics(before: np.ndarray, after: np.ndarray) -> list[float]:
    """The five statistics of one picture."""
    before, after = before.astype(np.float64), after.astype(np.float64)
    kept = [
        (np.diff(after, axis=axis) ** 2).mean() / (np.diff(before, axis=axis) ** 2).mean()
        for axis in (1, 0)
    ]
    change = after - before
    return [np.abs(change).mean(), change.mean(), after.std(), *kept]


def main() -> None:
    """Write the file beside this script."""
    # Not at the top: collecting the tests imports every file here, without the package.
    import imagecorruptions
    from skimage.filters import gaussian

    warnings.simplefilter("ignore")
    # The package calls it by the name of an argument that scikit-image has changed since.
    imagecorruptions.corruptions.gaussian = lambda image, sigma, multichannel: gaussian(
        image, sigma=sigma, channel_axis=-1
    )
    # What the package draws from: the seed of the noise, and the direction of the motion.
    np.random.seed(0)  # noqa: NPY002
    np.random.uniform = lambda low, high: 0.0
    given, chart = pictures(), steps()
    found = {"pictures": np.stack([given.mean(axis=(1, 2, 3)), given.std(axis=(1, 2, 3))], axis=1)}
    for name in NAMES:
        rows = [
            [
                statistics(picture, imagecorruptions.corrupt(picture, severity, name))
                for picture in given
            ]
            for severity in range(1, 6)
        ]
        found[name] = np.mean(rows, axis=1)
        if name.endswith("noise"):
            bands = np.stack(
                [imagecorruptions.corrupt(chart, severity, name) for severity in range(1, 6)]
            ).reshape(5, 14, -1)
            found[f"steps.{name}"] = np.stack([bands.mean(axis=-1), bands.std(axis=-1)], axis=-1)
        print(name, np.round(found[name], 4), sep="\n")
    arrays = {name: np.asarray(values, np.float32) for name, values in found.items()}
    np.savez_compressed(Path(__file__).with_name("image_corruptions_blur.npz"), **arrays)


if __name__ == "__main__":
    main()
