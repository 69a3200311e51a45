"""Shares GPUs with torch: memory comes from torch's caching allocator, and work begins after its current stream's.

Not run on a device yet: the tests put a torch of their own in its place, on the simulated one.
"""

from __future__ import annotations

import torch

from kdtw_fast import _core


def share_with_torch() -> bool:
    """Joins torch's memory and streams on the devices that nothing of kdtw_fast is on yet, where torch has CUDA.

    Returns:
        Whether torch has; otherwise memory is asked of the driver, and kept for the next call.
    """
    cuda = _core.build_info()["cuda"]
    if cuda is None or cuda["kind"] != "CUDA" or not torch.cuda.is_available():
        return False
    _core.use_cuda_allocator(_allocate, torch.cuda.caching_allocator_delete, _current_stream)
    return True


def _allocate(device: int, size: int, stream: int) -> int:
    """Memory for work on a stream, 0 for the current one; 0 where none is left."""
    try:
        address: int = torch.cuda.caching_allocator_alloc(size, device, stream or _current_stream(device))
    except torch.OutOfMemoryError:
        return 0
    return address


def _current_stream(device: int) -> int:
    handle: int = torch.cuda.current_stream(device).cuda_stream
    return handle
