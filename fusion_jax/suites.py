"""All corruptions that fit an input, chosen by what the input is."""

from collections.abc import Mapping, Sequence
from typing import Any

from fusion_jax.corruptions.babble import Babble
from fusion_jax.corruptions.band_pass import BandPass
from fusion_jax.corruptions.brightness import Brightness
from fusion_jax.corruptions.clipping import Clipping
from fusion_jax.corruptions.coloured_noise import ColouredNoise
from fusion_jax.corruptions.contrast import Contrast
from fusion_jax.corruptions.defocus_blur import DefocusBlur
from fusion_jax.corruptions.delay import Delay
from fusion_jax.corruptions.drift import Drift
from fusion_jax.corruptions.elastic import Elastic
from fusion_jax.corruptions.fog import Fog
from fusion_jax.corruptions.frequency_mask import FrequencyMask
from fusion_jax.corruptions.frost import Frost
from fusion_jax.corruptions.gaussian_blur import GaussianBlur
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.corruptions.glass_blur import GlassBlur
from fusion_jax.corruptions.impulse_noise import ImpulseNoise
from fusion_jax.corruptions.jpeg import JPEG
from fusion_jax.corruptions.misalignment import Misalignment
from fusion_jax.corruptions.missing_columns import MissingColumns
from fusion_jax.corruptions.motion_blur import MotionBlur
from fusion_jax.corruptions.occlusion import Occlusion
from fusion_jax.corruptions.pitch import Pitch
from fusion_jax.corruptions.pixelate import Pixelate
from fusion_jax.corruptions.quantisation import Quantisation
from fusion_jax.corruptions.reverberation import Reverberation
from fusion_jax.corruptions.sample_dropout import SampleDropout
from fusion_jax.corruptions.saturation import Saturation
from fusion_jax.corruptions.scaling import Scaling
from fusion_jax.corruptions.segment_dropout import SegmentDropout
from fusion_jax.corruptions.shot_noise import ShotNoise
from fusion_jax.corruptions.snow import Snow
from fusion_jax.corruptions.spatter import Spatter
from fusion_jax.corruptions.speckle_noise import SpeckleNoise
from fusion_jax.corruptions.speed import Speed
from fusion_jax.corruptions.stuck_sensor import StuckSensor
from fusion_jax.corruptions.temporal_blur import TemporalBlur
from fusion_jax.corruptions.time_mask import TimeMask
from fusion_jax.corruptions.white_noise import WhiteNoise
from fusion_jax.corruptions.zoom_blur import ZoomBlur
from fusion_jax.sources import ArraySpec

IMAGES: tuple[type, ...] = (
    *(GaussianNoise, ShotNoise, ImpulseNoise, SpeckleNoise),
    *(DefocusBlur, GlassBlur, MotionBlur, ZoomBlur, GaussianBlur),
    *(Snow, Frost, Fog, Spatter),
    *(Brightness, Contrast, Saturation, Elastic, Pixelate, JPEG, Occlusion),
)
SOUNDS: tuple[type, ...] = (
    *(WhiteNoise, ColouredNoise, Babble, Reverberation, Clipping, TimeMask, FrequencyMask),
    *(TemporalBlur, Speed, Pitch, SampleDropout, Quantisation, BandPass, Delay),
)
SERIES: tuple[type, ...] = (
    *(GaussianNoise, ImpulseNoise, Drift, SegmentDropout, StuckSensor, Scaling, Delay),
)
FEATURES: tuple[type, ...] = (GaussianNoise, ImpulseNoise, Scaling, MissingColumns)

# What corruptions of numbers must know of the data, and what of it they have fields for.
SCALES = ("mean", "means", "deviation", "deviations")
SCALED = (GaussianNoise, ImpulseNoise, Drift, SegmentDropout, MissingColumns)


def kind_of(spec: ArraySpec, *, sample_rate: int | None) -> str:
    """What an input is: "image" (or video), "sound", "series", "features", or "" for none of them.

    Args:
        spec: shape of one example and dtype.
        sample_rate: in Hz where the model knows one, which makes floats [T] a sound.
    """
    axes, whole = len(spec.shape), not spec.dtype.startswith("float")
    if spec.dtype == "uint8" and axes >= 3:
        return "image"
    if axes == 1 and (spec.dtype == "int16" or (sample_rate and not whole)):
        return "sound"
    if whole:
        return ""
    return {1: "features", 2: "series"}.get(axes, "")


def further_corruptions(
    spec: ArraySpec, known: Sequence[Any], *, sample_rate: int | None = None
) -> list[Any]:
    """Every corruption that fits an input and is of another class than those known.

    Units of floats (mean, deviation) are taken from the known corruptions; where none has them the
    data count as standardised.

    Args:
        spec: shape of one example and dtype.
        known: the corruptions that the modality has.
        sample_rate: in Hz, of sounds.

    Returns:
        New instances, `Misalignment` the last; for an input of no known kind that alone.
    """
    kinds: dict[str, tuple[type, ...]] = {
        "image": IMAGES,
        "sound": SOUNDS,
        "series": SERIES,
        "features": FEATURES,
    }
    kind = kind_of(spec, sample_rate=sample_rate)
    found = []
    for corruption in (*kinds.get(kind, ()), Misalignment):
        grey = kind == "image" and spec.shape[-1] == 1
        if any(type(each) is corruption for each in known) or (grey and corruption is Saturation):
            continue
        found.append(corruption(**_fields(corruption, kind, known, sample_rate)))
    return found


def _fields(
    corruption: type, kind: str, known: Sequence[Any], sample_rate: int | None
) -> dict[str, Any]:
    """What a corruption is told of the data."""
    fields: Mapping[str, Any] = getattr(corruption, "__dataclass_fields__", {})
    told: dict[str, Any] = {}
    if sample_rate and "sample_rate" in fields:
        told["sample_rate"] = sample_rate
    if kind in ("series", "features") and corruption in SCALED:
        # Standardised data, unless a known corruption says otherwise.
        told |= {"deviation": 1.0} if "deviation" in fields else {}
        scaled = [each for each in known if isinstance(each, SCALED)]
        for name in set(SCALES) & set(fields):
            values = [getattr(each, name) for each in scaled if hasattr(each, name)]
            if values:
                told[name] = values[0]
    return told
