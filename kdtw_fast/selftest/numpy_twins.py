"""Operations once more in NumPy, in fp64 or with exactly the bits that a backend must give; inputs to try them on."""

from __future__ import annotations

import numpy as np
import torch

Array = np.ndarray
NOTHING = np.zeros((0,), np.float32)  # of what an operation may be given and is not


def normal(rng: np.random.Generator, *shape: int) -> Array:
    """Standard normal numbers in fp32."""
    return rng.standard_normal(shape).astype(np.float32)


def rounded(x: Array, dtype: str) -> Array:
    """The values that are kept of x in fp32, fp16 or bf16."""
    formats = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return torch.from_numpy(x).to(formats[dtype]).to(torch.float32).numpy()


def halves(x: Array) -> Array:
    """What tensor cores read of tokens [T, K]: 11 digits, each token times a power of two that keeps it in range."""
    largest = np.abs(x.astype(np.float64)).max(1, keepdims=True)
    scale = np.ldexp(1.0, np.frexp(largest)[1] - 15)
    return (x / scale).astype(np.float16).astype(np.float64) * scale


def bytes_of(x: Array) -> tuple[Array, Array]:
    """Rows of finite numbers as integers -127..127 [T, K] and scales [T], in fp32 as the backends compute them."""
    largest = np.abs(x).max(1)
    return np.rint(x * (np.float32(127) / largest)[:, None]).astype(np.int64), largest / np.float32(127)


def product(x: Array, weight: Array, dtype: str) -> Array:
    """x W^T, in fp64 of the values that are kept; int8: with every bit that a backend must give."""
    if dtype != "int8":
        return x.astype(np.float64) @ rounded(weight, dtype).astype(np.float64).T
    (left, left_scales), (right, right_scales) = bytes_of(x), bytes_of(weight)
    return (left @ right.T).astype(np.float32) * (left_scales[:, None] * right_scales)


def rms(x: Array, scale: Array, epsilon: float) -> Array:
    """RMS norm in fp64."""
    wide = x.astype(np.float64)
    return wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + epsilon) * scale


def layer_norm(x: Array, scale: Array, shift: Array, epsilon: float) -> Array:
    """Layer norm in fp64."""
    apart = x.astype(np.float64) - x.astype(np.float64).mean(axis=1, keepdims=True)
    return apart / np.sqrt((apart**2).mean(axis=1, keepdims=True) + epsilon) * scale + shift


def gelu(x: Array) -> Array:
    """gelu_new in fp64."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _exact_gelu(x: Array) -> Array:
    functional: Array = torch.nn.functional.gelu(torch.from_numpy(x)).numpy()
    return functional


# Of the core's functions, by their numbers.
FUNCTIONS = (lambda x: np.maximum(x, 0), _exact_gelu, gelu, lambda x: x / (1 + np.exp(-x)))


def capped(x: Array, cap: float) -> Array:
    """cap tanh(x / cap); 0 = no cap."""
    return cap * np.tanh(x / cap) if cap else x
