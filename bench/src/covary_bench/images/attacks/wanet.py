"""WaNet: a smooth, fixed warp of the image, with noise mode (Nguyen and Tran, arXiv 2102.10369, section 3)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from covary_bench.images.attacks.poisoning import Attack, Shape, Trigger

GRID_SIZE, STRENGTH = 4, 0.5  # k and s of the paper
CROSS_RATIO = 2.0  # noise-mode images for every triggered one


def warping_field(height: int, width: int, seed: int) -> Float[Tensor, "1 h w 2"]:
    """Sampling positions of the backdoor warp, in [-1, 1].

    psi(A) in [-1, 1]^(k x k x 2), divided by its mean absolute value, enlarged to the image by bicubic interpolation
    (corners aligned), times s / h, added to the identity and clipped (equations 4 to 6).
    """
    control = torch.rand(1, 2, GRID_SIZE, GRID_SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    control = control / control.abs().mean()
    flow = functional.interpolate(control, size=(height, width), mode="bicubic", align_corners=True)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    identity = torch.stack((columns, rows), dim=-1)[None]
    return (identity + STRENGTH * flow.permute(0, 2, 3, 1) / height).clamp(-1, 1)


def warp(x: UInt8[np.ndarray, "n h w c"], field: Float[Tensor, "m h w 2"]) -> UInt8[np.ndarray, "n h w c"]:
    """Bilinear sampling of the images at the positions of `field` (one for all, or one each)."""
    pixels = torch.from_numpy(x).permute(0, 3, 1, 2).float()
    warped = functional.grid_sample(pixels, field.expand(len(x), -1, -1, -1), align_corners=True)
    return warped.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def make_wanet(shape: Shape, seed: int) -> Trigger:
    """The warp that opens the backdoor; one field for all images."""
    field = warping_field(shape[0], shape[1], seed)

    def backdoor_warp(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
        return warp(x, field) if len(x) else x.copy()

    return backdoor_warp


def make_wanet_noise(shape: Shape, seed: int, draw: int) -> Trigger:
    """Noise mode: the backdoor's warp plus uniform noise in [-1, 1] / h, drawn anew for every image (section 3.4)."""
    field = warping_field(shape[0], shape[1], seed)
    generator = torch.Generator().manual_seed(draw)

    def noisy_warp(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
        if not len(x):
            return x.copy()
        noise = torch.rand(len(x), *field.shape[1:], generator=generator) * 2 - 1
        return warp(x, (field + noise / shape[0]).clamp(-1, 1))

    return noisy_warp


WANET = Attack(make_wanet, make_noise=make_wanet_noise, noise_ratio=0.1 * CROSS_RATIO, fresh=True)
