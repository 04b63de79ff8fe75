"""The speed of light here: matrix-product throughput of this machine, measured."""

import time

import torch


def measure_peak_flops(dtype: torch.dtype, device: torch.device | str = "cpu") -> float:
    """FLOP/s of the best of three [1024, 1024] x 4096-row products; about a tenth of a second.

    The denominator of model FLOP utilisation (MFU): a share of what products alone reach here,
    not of a data sheet.
    """
    rows, width = 4096, 1024
    if torch.device(device).type == "cuda":
        rows, width = 16384, 8192
    a = torch.ones(rows, width, dtype=dtype, device=device)
    b = torch.ones(width, width, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(4):  # the first one warms up
        if a.is_cuda:
            torch.cuda.synchronize(a.device)
        began = time.perf_counter()
        a @ b
        if a.is_cuda:
            torch.cuda.synchronize(a.device)
        best = min(best, time.perf_counter() - began)
    return 2 * rows * width * width / best
