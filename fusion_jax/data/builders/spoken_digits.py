"""The Free Spoken Digit Dataset as a tensorflow-datasets builder: raw recordings in one split.

Nothing is split or paired here: `av_mnist` decides which recordings a split may use.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from fusion_jax.data import originals


class SpokenDigits(tfds.core.GeneratorBasedBuilder):
    """3,000 recordings of the spoken digits 0 to 9: six speakers, 50 takes of each digit.

    The one split "recordings" is in sorted file name order, and is not shuffled: record number i is
    recording i of `originals.recording_table`. Audio is not padded, and is stored as bytes, which
    reads faster than TFDS's default of one integer a sample.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "All recordings of one commit, unchanged."}

    def __init__(
        self, *, url: str = originals.FSDD_URL, file_format: str = "array_record", **options: Any
    ):
        """Make the builder.

        Args:
            url: address of the archive; not used where FUSION_JAX_DATA is set.
            file_format: format of the record files; array_record needs no TensorFlow.
            **options: `data_dir` and `version` of `tfds.core.DatasetBuilder`.
        """
        self._url = url
        super().__init__(file_format=file_format, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes"),
            "digit": tfds.features.Scalar(np.int32),
            "speaker": tfds.features.Scalar(np.int32),
            "take": tfds.features.Scalar(np.int32),
            "recording": tfds.features.Scalar(np.int32),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Spoken English digits, mono, 16 bit, 8 kHz, 0.14 to 2.28 s.",
            features=tfds.features.FeaturesDict(features),
            homepage="https://github.com/Jakobovski/free-spoken-digit-dataset",
            license="CC BY-SA 4.0",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        audio = originals.read_recordings(download_dir=dl_manager.download_dir, url=self._url)
        return {"recordings": self._generate_examples(audio)}

    def _generate_examples(self, audio: list[np.ndarray]) -> Iterator[tuple[int, dict[str, Any]]]:
        table = originals.recording_table()
        for recording, samples in enumerate(audio):
            yield (
                recording,
                {
                    "audio": samples,
                    "digit": table.digit[recording],
                    "speaker": table.speaker[recording],
                    "take": table.take[recording],
                    "recording": recording,
                },
            )
