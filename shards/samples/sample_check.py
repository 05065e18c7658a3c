"""Check of one sample before it is cropped: header, predicate, pixels."""

from shards.images.image_header import ImageHeader
from shards.records import Reject, Sample
from shards.samples.admission import admit, check_pixels, reject
from shards.samples.admission_config import AdmissionConfig
from shards.samples.predicate import Predicate, apply_predicate, resolve_predicate


class SampleCheck:
    """Returns the image of a sample, or its reject. Build it in the process that uses it.

    Raises ConfigError if the predicate cannot be imported.
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
        return image if refused is None else reject(sample, self._config, *refused)
