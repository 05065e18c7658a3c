"""Thumbnail maker of a run: its images with the recipe of the run."""

from cluster.monitoring.live.thumbnail_maker import ThumbnailMaker
from streamssl.config.run_config import RunConfig
from streamssl.runs.crop_job import crop_job
from streamssl.runs.run_data import OpenedData


def thumbnail_maker(config: RunConfig, data: OpenedData) -> ThumbnailMaker:
    """Return the maker of the images of a run."""
    return ThumbnailMaker(data.manifest, crop_job(config, data))
