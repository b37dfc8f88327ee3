"""Model FLOPs of a training, and the peak rates of GPUs. Pure.

MFU as in PaLM (Chowdhery et al. 2022, arXiv 2204.02311, appendix B): the tokens per second, times the floating-point
operations that the model itself needs for one token, divided by the peak rate of the device. Recomputed activations do
not count. A matrix of n elements takes 2n in the forward pass, 2n for the gradient of its input, and 2n for its own
gradient, which a frozen matrix does not have. The embedding is a lookup and takes none. Different from PaLM, attention
counts only the pairs that the causal mask leaves, which are half of them.
"""

import re
from dataclasses import dataclass

PEAK_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H800": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A40": 149.7,
    "A10G": 70.0,
    "A10": 125.0,
    "A30": 165.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}
"""Part of a device's name -> dense TFLOP/s in BFloat16 with accumulation in 32 bit, from NVIDIA's data sheets. Longer
names come before their beginnings."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a decoder that determine its floating-point operations."""

    matrices: int
    """Elements of all matrices that every token is multiplied with, including the output layer."""
    layers: int
    width: int
    """Attention heads times their size."""


def token_flops(sizes: Sizes, length: int, *, adapters: int | None = None) -> float:
    """Return the operations of one training step for one token of a row of `length` tokens.

    `adapters`: trained elements of adapters on frozen matrices. None: all matrices are trained.
    """
    attention = 3 * 2 * sizes.layers * sizes.width * length
    if adapters is None:
        return 6.0 * sizes.matrices + attention
    return 4.0 * sizes.matrices + 6.0 * adapters + attention


def mfu(tokens_per_second: float, flops_per_token: float, peak_tflops: float) -> float:
    """Return the model FLOPs utilization, from 0 to 1."""
    return tokens_per_second * flops_per_token / (peak_tflops * 1e12)


def peak_tflops(device: str) -> float | None:
    """Return the peak rate of a device in TFLOP/s by its name; None if it is not known."""
    words = re.sub(r"[^a-z0-9]+", " ", device.lower()).split()
    for name, rate in PEAK_TFLOPS.items():
        if all(word in words for word in name.lower().split()):
            return rate
    return None
