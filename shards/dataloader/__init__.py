"""Stream front ends for other training code: torch DataLoader and webdataset pipelines."""
