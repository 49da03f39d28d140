"""Whether the processor multiplies tiles of bfloat16 (AMX), and from how many rows on they are worth what they ask for.

Tiles multiply several times as fast as vectors do, and read a weight no faster: so what few rows ask for stays with the
compiled kernels, and many rows go to the library's product, which wants the weight in another form each time.
"""

from functools import cache

import torch

# Fewer take about as long with floats. An estimate, from bench/RESULTS.md, section 9: prompts and steps with tiles on
# one processor, without them on another of its kind.
LEAST_ROWS = 128


@cache
def has_tiles() -> bool:
    """Of the processor, and of torch's library for it."""
    has_library = torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bool(has_library and torch.cpu._is_amx_tile_supported())
