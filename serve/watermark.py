"""An invisible mark: a spread-spectrum pattern in the luminance's DCT, and a detector with a bound on false alarms.

Sources: Cox, Kilian, Leighton, Shamoon, "Secure spread spectrum watermarking for multimedia", IEEE TIP 1997; the mark
is made as strong as its picture needs, as in Malvar and Florencio, "Improved spread spectrum", IEEE TSP 2003.

Embedding and detection work on a picture scaled to 64 x 64, so that one pattern serves all sizes. The detector limits
each coefficient c to c / (|c| + 3) before it correlates, as strong edges would drown the rest. For a picture that was
not marked the signs of the pattern are independent of it, and by Hoeffding's inequality P(score > t) <= exp(-t^2 / 2).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.fft import dctn, idctn

SIDE = 64
THRESHOLD = 5.0
"""exp(-12.5) = 3.7e-6 of unmarked pictures are taken for marked, at the most."""

_TARGET = 9.0
_LOWEST, _HIGHEST = 8, 52
"""Of i + j: lower coefficients carry what the eye sees, higher ones do not outlive JPEG."""
_MARGIN = 3.0
"""What a moved coefficient is left with; rounding to 8 bits alone moves one by 0.3."""
_REACHES = (1.0, 2.0, 4.0, 6.0, 8.0, 11.0, 15.0, 20.0, 27.0, 36.0, 48.0)
_LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Mark:
    """What the detector says: the score, and the largest chance that an unmarked picture reaches it."""

    found: bool
    score: float
    false_alarm: float


def mark(pixels: UInt8[np.ndarray, "h w 3"], key: str) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with the mark of `key`, as weak as it can be found with room to spare.

    Coefficients that the pattern wants elsewhere are moved, the cheapest first, until the score is reached.
    """
    pattern, chosen = _pattern(key), _chosen()
    plain = pixels.astype(np.float64)
    host = dctn(_scaled(plain @ _LUMINANCE, SIDE, SIDE), norm="ortho")[chosen] * pattern
    out = pixels
    for reach in _REACHES:
        moved = np.where(host > -reach, np.maximum(host, _MARGIN), host)
        coefficients = np.zeros((SIDE, SIDE))
        coefficients[chosen] = (moved - host) * pattern
        change = _scaled(idctn(coefficients, norm="ortho"), pixels.shape[1], pixels.shape[0])
        out = (plain + change[:, :, None]).round().clip(0, 255).astype(np.uint8)
        if _score(out, pattern) >= _TARGET:
            break
    return out


def detect(pixels: UInt8[np.ndarray, "h w 3"], key: str) -> Mark:
    """Whether a picture bears the mark of `key`."""
    score = _score(pixels, _pattern(key))
    return Mark(score >= THRESHOLD, score, math.exp(-(max(score, 0.0) ** 2) / 2))


def _score(pixels: UInt8[np.ndarray, "h w 3"], pattern: Float[np.ndarray, "n"]) -> float:
    """sum_i p_i y_i / |y| of the limited coefficients y; standard normal for any unmarked picture."""
    values = dctn(_scaled(pixels.astype(np.float64) @ _LUMINANCE, SIDE, SIDE), norm="ortho")[_chosen()]
    limited = values / (np.abs(values) + _MARGIN)
    return float(pattern @ limited / max(float(np.linalg.norm(limited)), 1e-9))


def _scaled(plane: Float[np.ndarray, "h w"], width: int, height: int) -> Float[np.ndarray, "h2 w2"]:
    if plane.shape == (height, width):
        return plane
    image = Image.fromarray(plane.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)


@lru_cache(maxsize=1)
def _chosen() -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.indices((SIDE, SIDE))
    return np.nonzero((rows + columns >= _LOWEST) & (rows + columns <= _HIGHEST))


@lru_cache(maxsize=8)
def _pattern(key: str) -> Float[np.ndarray, "n"]:
    """Signs from SHAKE-256 of the key: the same on every machine and with every version of any library."""
    count = len(_chosen()[0])
    stream = hashlib.shake_256(f"imprint watermark 1 {key}".encode()).digest(-(-count // 8))
    return 1.0 - 2.0 * np.unpackbits(np.frombuffer(stream, np.uint8))[:count].astype(np.float64)
