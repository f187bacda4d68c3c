"""What is done to pixels, a whole batch at a time, each image by its own numbers.

Nothing loops over images: crop, resize, flip and blur are one matrix per image and axis,
`rows @ image @ columns.T`. Each operation is torchvision's or PIL's, to the tolerance that
`tests/test_pixels.py` states. Two things differ from PIL: values stay float between steps (PIL
rounds to 8 bits after each), and the blur is a true Gaussian reflected at the border (PIL: three
box filters and a repeated edge).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# B images; C channels, 1 (grey) or 3, first because a colour plane is then contiguous; H W pixels,
# N of both, S of them after resizing; K taps of a filter; L grey levels; G control points

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601 as PIL; torchvision's 0.2989 would darken grey images


def equalise(x_CBHW: Tensor, chosen_B: Tensor) -> Tensor:
    """uint8 planes of the chosen images with flat histograms, exactly as torchvision's equalize."""
    pixel_CBN = x_CBHW.flatten(2).long()
    one_CBN = pixel_CBN.new_ones(()).expand_as(pixel_CBN)
    count_CBL = pixel_CBN.new_zeros((*pixel_CBN.shape[:2], 256)).scatter_add_(2, pixel_CBN, one_CBN)
    darker_CBL = count_CBL.cumsum(2) - count_CBL
    # pixels per level, of those that are not the brightest; where too few are left, nothing changes
    step_CB1 = darker_CBL.gather(2, x_CBHW.flatten(2).amax(2, keepdim=True).long()) // 255
    level_CBL = ((darker_CBL + step_CB1 // 2) // step_CB1.clamp_min(1)).clamp_max(255)
    same_L = torch.arange(256, device=x_CBHW.device)
    level_CBL = torch.where((step_CB1 > 0) & chosen_B[:, None], level_CBL, same_L)
    return level_CBL.to(torch.uint8).gather(2, pixel_CBN).view_as(x_CBHW)


def crop(x_CBHW: Tensor, box_B4: Tensor, flip_B: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes of images in 0..255, resized to size (height, width) in 0..1, mirrored where flip."""
    top_B, left_B, h_B, w_B = box_B4.unbind(1)
    rows_BSH = bicubic(top_B, h_B, torch.zeros_like(flip_B), x_CBHW.shape[2], size[0]) / 255
    columns_BSW = bicubic(left_B, w_B, flip_B, x_CBHW.shape[3], size[1])
    # overshoot is cut after each axis, because PIL stores 8 bits between the two
    planes = [(x_BHW @ columns_BSW.mT).clamp_(0, 255) for x_BHW in x_CBHW]
    return torch.stack([(rows_BSH @ x_BHW).clamp_(0, 1) for x_BHW in planes])


def bicubic(start_B: Tensor, length_B: Tensor, flip_B: Tensor, source: int, size: int) -> Tensor:
    """Weights (B, size, source) of PIL's antialiased bicubic, from start .. start + length alone.

    As after PIL's .crop(): pixels beyond the box have no weight and the others are renormalised.
    """
    reach = 2 * math.ceil(max(source / size, 1))  # pixels each side; shrinking averages over more
    start_B11, length_B11 = start_B[:, None, None], length_B[:, None, None]
    out_S1 = torch.arange(size, device=start_B.device)[:, None] + 0.5
    out_BS1 = torch.where(flip_B[:, None, None], size - out_S1, out_S1)
    centre_BS1 = start_B11 + out_BS1 * (length_B11 / size)
    first_BS1 = (centre_BS1 - reach + 0.5).floor()
    pixel_BSK = first_BS1 + torch.arange(2 * reach, device=start_B.device)

    u_BSK = (pixel_BSK + 0.5 - centre_BS1).abs() / (length_B11 / size).clamp_min(1)
    far_BSK, near_BSK = (2 - u_BSK).clamp_min(0), (1 - u_BSK).clamp_min(0)
    # Keys's cubic with a = -0.5, as two pieces that vanish beyond 2 and beyond 1
    w_BSK = far_BSK**2 * (far_BSK - 1) / 2 + near_BSK**2 * (1 - 2 * near_BSK)
    w_BSK = w_BSK * ((pixel_BSK >= start_B11) & (pixel_BSK < start_B11 + length_B11))
    w_BSK = w_BSK / w_BSK.sum(2, keepdim=True)
    wide = w_BSK.new_zeros(
        len(w_BSK), size, source + 2 * reach
    )  # so that no two taps share a place
    return wide.scatter_(2, (pixel_BSK + reach).long(), w_BSK)[:, :, reach : reach + source]


def warp(x_CBHW: Tensor, angle_B: Tensor, bend_B2GG: Tensor) -> Tensor:
    """Images turned by degrees, anticlockwise as torchvision's rotate, and bent, in one resampling.

    bend_B2GG says how far, in shares of width and height, each pixel near a control point fetches
    its value from. Bilinear; mirrored at the border like the blur, because black corners would
    shift the mean grey that contrast turns about, and show by how much the image was turned.
    """
    H, W = x_CBHW.shape[2:]
    # places are grid_sample's: -1 and 1 are the image's edges
    down_H1 = (2 * torch.arange(H, device=angle_B.device)[:, None] + 1) / H - 1
    across_W = (2 * torch.arange(W, device=angle_B.device) + 1) / W - 1
    angle_B11 = angle_B.deg2rad()[:, None, None]
    cos, sin = angle_B11.cos(), angle_B11.sin()
    move_B2HW = b_spline(H, bend_B2GG) @ (2 * bend_B2GG @ b_spline(W, bend_B2GG).mT)
    from_x = cos * across_W - sin * (H / W) * down_H1 + move_B2HW[:, 0]
    from_y = sin * (W / H) * across_W + cos * down_H1 + move_B2HW[:, 1]
    place_BHW2 = torch.stack((from_x, from_y), 3)
    x_BCHW = F.grid_sample(
        x_CBHW.transpose(0, 1), place_BHW2, padding_mode="reflection", align_corners=False
    )
    return x_BCHW.transpose(0, 1).contiguous()


def b_spline(size: int, bend_B2GG: Tensor) -> Tensor:
    """Weights (size, G) of control points for each pixel, of uniform cubic B-splines.

    They are positive and add to 1, so no pixel moves further than the control points do.
    """
    points = bend_B2GG.shape[-1]
    point_G = torch.arange(points, device=bend_B2GG.device) - 1  # one lies before the image's edge
    pixel_S1 = torch.arange(size, device=bend_B2GG.device)[:, None] + 0.5
    u_SG = (pixel_S1 * ((points - 3) / size) - point_G).abs()
    return ((2 - u_SG).clamp_min(0) ** 3 - 4 * (1 - u_SG).clamp_min(0) ** 3) / 6


def blend_(x_CBHW: Tensor, own_B: Tensor, mean_B: Tensor, grey_B: Tensor) -> None:
    """own * pixel + mean * the image's mean grey + grey * the pixel's grey, in place, in 0..1.

    These are torchvision's adjust_brightness, adjust_contrast, adjust_saturation and grayscale.
    """
    own, mean, grey = (w_B[:, None, None] for w_B in (own_B, mean_B, grey_B))
    if len(x_CBHW) == 1:  # a pixel is its own grey
        own, added = own + grey, x_CBHW[0].mean((1, 2), keepdim=True) * mean
    else:
        r, g, b = x_CBHW
        luma_BHW = (r * LUMA[0]).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2])
        mean = luma_BHW.mean((1, 2), keepdim=True) * mean
        added = luma_BHW.mul_(grey).add_(mean)
    x_CBHW.mul_(own).add_(added).clamp_(0, 1)


def turn_hue(x_CBHW: Tensor, turn_B: Tensor) -> Tensor:
    """Colours turned in HSV with saturation and value kept, as torchvision's adjust_hue.

    From red to cyan by way of green, hue is (1 + (g + b - r - low) / chroma) sixths of a turn; by
    way of blue, minus that. So nothing asks which channel is highest.
    """
    r, g, b = x_CBHW
    low = torch.minimum(torch.minimum(r, g), b)
    chroma = torch.maximum(torch.maximum(r, g), b).sub_(low)
    hue = (g + b).sub_(r).sub_(low).div_(chroma.clamp_min(1e-9)).add_(1).copysign_(g - b)
    hue = hue.div_(6).add_(turn_B[:, None, None])
    away = hue - torch.arange(3, device=hue.device)[:, None, None, None] / 3  # red, green, blue
    away = away.sub_(away.round()).abs_()  # in turns, the short way round the circle
    return away.mul_(-6).add_(2).clamp_(0, 1).mul_(chroma).add_(low)


def blur(x_CBHW: Tensor, sigma_B: Tensor, radius: int) -> Tensor:
    """Gaussian blur reflected at the border, as torchvision's with kernel_size 2 * radius + 1."""
    rows_BHH = gaussian(sigma_B, radius, x_CBHW.shape[2])
    columns_BWW = gaussian(sigma_B, radius, x_CBHW.shape[3])
    return torch.stack([rows_BHH @ (x_BHW @ columns_BWW.mT) for x_BHW in x_CBHW])


def gaussian(sigma_B: Tensor, radius: int, size: int) -> Tensor:
    """Weights (B, size, size) of a blur; a radius beyond the image is reflected more than once."""
    tap_K = torch.arange(-radius, radius + 1, device=sigma_B.device)
    w_BK = (-0.5 * (tap_K / sigma_B[:, None].clamp_min(0.01)) ** 2).exp()  # at 0.01 one tap, of 1.0
    w_BK = w_BK / w_BK.sum(1, keepdim=True)
    pixel_S, last = torch.arange(size, device=sigma_B.device), size - 1
    source_KS = last - (last - (pixel_S + tap_K[:, None]) % max(2 * last, 1)).abs()  # 0 1 2 1 0 ...
    lands_KSS = (source_KS[:, :, None] == pixel_S).float()
    return (w_BK @ lands_KSS.flatten(1)).unflatten(1, (size, size))


def solarise(x_CBHW: Tensor, chosen_B: Tensor) -> Tensor:
    """Pixels from 128/255 up inverted in the chosen images, as torchvision's solarize."""
    from_B = torch.full_like(chosen_B, 128 / 255, dtype=x_CBHW.dtype).masked_fill(~chosen_B, 2)
    return torch.where(x_CBHW >= from_B[:, None, None], 1 - x_CBHW, x_CBHW)
