"""All that decides whether a sample is kept before it is cropped: header, predicate, pixels."""

from shards.images.image_header import ImageHeader
from shards.records import Reject, Sample
from shards.samples.admission import admit, check_pixels, reject
from shards.samples.admission_config import AdmissionConfig
from shards.samples.predicate import Predicate, apply_predicate, resolve_predicate


class SampleCheck:
    """Says of every sample what image it is, or why it is rejected. Made where it is used.

    Raises ConfigError when the predicate cannot be found.
    """

    def __init__(self, config: AdmissionConfig) -> None:
        self._config = config
        name = config.predicate
        self._predicate: Predicate | None = resolve_predicate(name) if name else None

    def __call__(self, sample: Sample) -> ImageHeader | Reject:
        image = admit(sample, self._config)
        if isinstance(image, Reject):
            return image
        refused = apply_predicate(self._predicate, sample, image) if self._predicate else None
        refused = refused or check_pixels(image, self._config)
        return image if refused is None else reject(sample, *refused)
