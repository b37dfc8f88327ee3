"""Export formats with quantized weights. One file per format; `QUANTIZED_FORMATS[name]` finds it.

The evaluate stage makes them from the complete model, so that each of them can be added after the training. They are
loaded by their readers again, and compared with the trained model weight by weight.
"""

from .base import (
    QUANTIZED_FORMATS,
    QuantizedExport,
    QuantizedFormat,
    check_quantized_exports,
    quantized_exports,
    write_quantized,
)

__all__ = [
    "QUANTIZED_FORMATS",
    "QuantizedExport",
    "QuantizedFormat",
    "check_quantized_exports",
    "quantized_exports",
    "write_quantized",
]
