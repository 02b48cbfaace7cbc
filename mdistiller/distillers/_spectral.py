"""Products in the frequency domain, and SFAKD's frequency branch.

Shapes: `B` batch, `C` channels, `H`/`W` positions of a map, `P = H · (W // 2 + 1)` frequencies of its half spectrum.
"""

from __future__ import annotations

import math
from typing import Union

import torch
from torch import Tensor, nn

from ..errors import UserError

MAX_MATRIX_POSITIONS = 256  # positions, H · W; the matrices' cost grows with its square


class SpectralFilter(nn.Module):
    """`y = IFFT2(FFT2(x) ⊙ gain)` of real maps `x [B, C, H, W]`, in the gain's precision, with a gain for each channel.

    Small maps are transformed by two constant matrices, those of the real Fourier transform: in channels_last strides
    an image is a matrix `[H · W, C]`, so no map is transposed, and the gradient is two products more. (Forward and
    backward, one AMD EPYC with 2 threads, B = 64, bfloat16 maps in channels_last, ms: C = 256, 8×8: 8.8, by
    `torch.fft` 18.5; C = 512, 4×4: 3.7, by `torch.fft` 15.6.) Larger maps go through `torch.fft`.

    Args:
        height, width: of the maps.
    """

    analysis: Tensor
    synthesis: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = (height, width)
        self.as_matrix = height * width <= MAX_MATRIX_POSITIONS
        if not self.as_matrix:
            return
        positions, half = height * width, (height, width // 2 + 1)
        units = torch.eye(positions, dtype=torch.float64).view(positions, height, width)
        spectra = torch.fft.rfft2(units, norm="ortho").flatten(1)
        real = torch.eye(half[0] * half[1], dtype=torch.float64).view(-1, *half)
        waves = [torch.fft.irfft2(unit, s=self.size, norm="ortho").flatten(1) for unit in (real + 0j, 1j * real)]
        # [2P, H·W] and [H·W, 2P], all real parts before all imaginary ones
        self.register_buffer("analysis", torch.cat([spectra.real, spectra.imag], 1).T.float(), persistent=False)
        self.register_buffer("synthesis", torch.cat(waves).T.float().contiguous(), persistent=False)

    def forward(self, feature: Tensor, gain: Tensor) -> Tensor:
        """Filter `feature [B, C, H, W]`, floating point, by `gain`, complex `[C, H, W // 2 + 1]`."""
        with torch.autocast(feature.device.type, enabled=False):
            if not self.as_matrix:
                spectrum = torch.fft.rfft2(feature.to(gain.real.dtype), norm="ortho")
                return torch.fft.irfft2(spectrum * gain, s=self.size, norm="ortho")
            pixels = feature.permute(0, 2, 3, 1).flatten(1, 2).to(self.analysis.dtype)
            gain = gain.flatten(1).T
            gain_real, gain_imag = gain.real.contiguous(), gain.imag.contiguous()
            real, imag = (self.analysis @ pixels).chunk(2, dim=1)
            product = torch.cat([real * gain_real - imag * gain_imag, real * gain_imag + imag * gain_real], dim=1)
            return (self.synthesis @ product).unflatten(1, self.size).permute(0, 3, 1, 2)


class FrequencyFilter(nn.Module):
    """A learnable complex weight `K`, `[C, H, W]`, for each channel and frequency.

    Args:
        channels, height, width: `C`, `H`, `W`.
        init: what `K` is at first. "identity": 1, so that the filter changes nothing. "uniform": real and imaginary
            parts uniform in `[0, 1) / C²`, as in the authors' code.
    """

    def __init__(self, channels: int, height: int, width: int, init: str = "identity") -> None:
        super().__init__()
        shape = (channels, height, width)
        if init == "uniform":
            weight = torch.rand(*shape, 2) / channels**2
        else:
            weight = torch.stack([torch.ones(shape), torch.zeros(shape)], dim=-1)
        self.weight = nn.Parameter(weight)  # [C, H, W, (re, im)]

    def forward(self) -> Tensor:
        """Return the half spectrum, complex `[C, H, W // 2 + 1]`, that acts on a real map as `K` does.

        The branch keeps the real part only, and `Re(IFFT(X ⊙ K))` of a real map depends on the Hermitian part of `K`,
        `(K(u) + K*(−u)) / 2`, alone; half of that determines the rest.
        """
        # contiguous: `module.to(memory_format=channels_last)` re-strides this 4-D parameter too
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        full = torch.view_as_complex(self.weight.to(wide).contiguous())
        mirrored = torch.roll(full.flip(-2, -1), shifts=(1, 1), dims=(-2, -1)).conj()
        return (0.5 * (full + mirrored))[..., : full.shape[-1] // 2 + 1]


class HighPass(nn.Module):
    """A real mask `M` over the frequencies; `d` is the distance in bins from the zero frequency.

    Args:
        height, width: bins of the map; a 1×1 map has nothing to suppress, its mask is 1.
        sigma: `σ / min(height, width)`, greater than 0.
        learnable: whether the Gaussian's `σ` is trained (as its logarithm, hence positive).
        kind: "gaussian": `G / max(G)`, `G = 1 − exp(−d² / 2σ²)`. "hard": 0 where `d ≤ σ`, so at least at the zero
            frequency, else 1. "none": 1.

    The hard cut follows the idea of FAM, "Frequency Attention for Knowledge Distillation" (2024), but not its code.
    That cuts rows and columns `c − r` to `c + r − 1` of the centred spectrum, where `c = int(side / 2)` and
    `r = int(0.1 · c)`: a square off the centre, and no frequency at all where a side is shorter than 20.
    """

    squared_distance: Tensor
    fixed: Tensor

    def __init__(self, height: int, width: int, sigma: float, learnable: bool = False, kind: str = "gaussian") -> None:
        super().__init__()
        rows, columns = (torch.arange(n) - n // 2 for n in (height, width))
        centred = (rows[:, None] ** 2 + columns[None, :] ** 2).float()
        # in the order of the FFT's bins, zero frequency first: no shift is left to do in a step
        self.register_buffer("squared_distance", torch.fft.ifftshift(centred), persistent=False)
        width_in_bins = sigma * min(height, width)
        log_sigma = torch.tensor(math.log(width_in_bins))
        self.log_sigma = nn.Parameter(log_sigma) if learnable and centred.numel() > 1 else None
        hard = (self.squared_distance.sqrt() > width_in_bins + 1e-6).float()  # 0.1 · 30 is more than 3 in binary
        masks = {"gaussian": self._gaussian(log_sigma), "hard": hard, "none": torch.ones_like(centred)}
        self.register_buffer("fixed", masks["none" if centred.numel() == 1 else kind], persistent=False)
        if not self.fixed.any():
            raise UserError(f"SFAKD.SIGMA {sigma} with a hard mask cuts all {height}×{width} frequencies; give less")

    def _gaussian(self, log_sigma: Tensor) -> Tensor:
        gain = -torch.expm1(-self.squared_distance / (2 * torch.exp(2 * log_sigma)))
        return gain / gain.max()

    def forward(self) -> Tensor:
        """Return the mask `[H, W]`, zero frequency at `[0, 0]`; `torch.fft.fftshift` of it is centred."""
        return self.fixed if self.log_sigma is None else self._gaussian(self.log_sigma)


class FrequencyBranch(nn.Module):
    """`F_freq = Re(IFFT2(FFT2(F) ⊙ K ⊙ M))`, in the filter's precision, float32 at least, whatever autocast says."""

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        sigma: float,
        learnable_sigma: bool,
        mask: str = "gaussian",
        filter_init: str = "identity",
    ) -> None:
        super().__init__()
        self.filter = FrequencyFilter(channels, height, width, filter_init)
        self.mask = HighPass(height, width, sigma, learnable_sigma, mask)
        self.product = SpectralFilter(height, width)

    def forward(self, feature: Tensor, weight: Union[float, Tensor] = 1.0) -> Tensor:
        """Modulate `feature [B, C, H, W]`; returns `weight · F_freq`, float32 of the same shape."""
        gain = self.filter()
        return self.product(feature, weight * self.mask()[:, : gain.shape[-1]] * gain)
