"""How far one picture is displaced against another: phase correlation (Kuglin and Hines 1975) of their edges.

Edges, because two dates differ in brightness far more than in where things are.
"""

import numpy as np
from jaxtyping import Float

DETAIL = 0.15
"""Width of the low-pass in cycles per pixel: finer detail than that is mostly noise."""
CLEAR = 12.0
"""Standard deviations by which a peak stands out that means something. Of 49 pairs of Sentinel-2 chips of different
places the clearest had 8.8, of pairs of one place, floods between them, half had more than 20."""


def shift_between(before: Float[np.ndarray, "h w"], after: Float[np.ndarray, "h w"]) -> tuple[int, int] | None:
    """(rows, columns) by which what is in `before` lies further down and to the right in `after`; None if unclear."""
    rows, cols = before.shape
    taper = np.outer(np.hanning(rows), np.hanning(cols))
    first, second = (np.fft.rfft2(_edges(image) * taper) for image in (before, after))
    cross = second * first.conj()
    length = np.abs(cross)
    if not length.any():
        return None  # nothing but one value
    down, right = np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(cols)
    cross *= np.exp(-(down**2 + right**2) / (2 * DETAIL**2)) / np.maximum(length, 1e-12 * length.max())
    surface = np.fft.irfft2(cross, s=(rows, cols))
    if surface.max() < CLEAR * surface.std():
        return None
    row, col = np.unravel_index(surface.argmax(), surface.shape)
    # The second half of a Fourier transform stands for negative shifts.
    return int((row + rows // 2) % rows - rows // 2), int((col + cols // 2) % cols - cols // 2)


def _edges(image: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    edges = np.hypot(*np.gradient(image))
    return edges - edges.mean()
