"""All that decides whether a sample is kept before it is cropped: header, predicate, pixels."""

from shards.admission import AdmissionConfig, admit, check_pixels, reject
from shards.pictures.picture import Picture
from shards.predicate import Predicate, ask, resolve_predicate
from shards.records import Reject, Sample


class Judge:
    """Says of every sample what picture it is, or why it is rejected. Made where it is used.

    Raises ConfigError when the predicate cannot be found.
    """

    def __init__(self, config: AdmissionConfig) -> None:
        self._config = config
        name = config.predicate
        self._predicate: Predicate | None = resolve_predicate(name) if name else None

    def __call__(self, sample: Sample) -> Picture | Reject:
        picture = admit(sample, self._config)
        if isinstance(picture, Reject):
            return picture
        refused = ask(self._predicate, sample, picture) if self._predicate else None
        refused = refused or check_pixels(picture, self._config)
        return picture if refused is None else reject(sample, *refused)
