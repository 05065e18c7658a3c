"""Memory of this process on its GPU."""

import torch


def device_bytes() -> dict[str, int]:
    """Return the memory of this process on the current GPU, by kind; empty without a GPU."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return {}
    return {
        "allocated": torch.cuda.memory_allocated(),
        "peak": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.memory_reserved(),
        "limit": torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory,
    }
