"""The reconstruction loss against SSIM written out pixel by pixel, in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pytorch_msssim
import torch
from scipy.ndimage import correlate1d
from skimage.metrics import structural_similarity
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from csd_plugin.errors import CSDError
from csd_plugin.losses.ssim import PyramidSSIMLoss, zero_padded_ssim

C1, C2 = 0.01**2, 0.03**2


def window_weights() -> list[float]:
    weights = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    return [weight / sum(weights) for weight in weights]


def plain_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Mean SSIM of two (H, W) images, whose surroundings are zeros, from its definition."""
    g = window_weights()
    height, width = x.shape
    total = 0.0
    for row in range(height):
        for column in range(width):
            moments = np.zeros(5)
            for i in range(11):
                for j in range(11):
                    a, b = row + i - 5, column + j - 5
                    if 0 <= a < height and 0 <= b < width:
                        p, q = float(x[a, b]), float(y[a, b])
                        moments += g[i] * g[j] * np.array([p, q, p * p, q * q, p * q])
            mx, my, xx, yy, xy = moments
            total += ((2 * mx * my + C1) * (2 * (xy - mx * my) + C2)) / (
                (mx * mx + my * my + C1) * (xx - mx * mx + yy - my * my + C2)
            )
    return total / (height * width)


def filtered_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """The same with scipy's filter, for larger images."""
    g = window_weights()

    def mean(image):
        for axis in (0, 1):
            image = correlate1d(image, g, axis=axis, mode="constant")
        return image

    mx, my = mean(x), mean(y)
    xx, yy, xy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    return float((((2 * mx * my + C1) * (2 * xy + C2)) / ((mx**2 + my**2 + C1) * (xx + yy + C2))).mean())


def pair(*shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random(shape)
    return x, np.clip(x + rng.normal(0, 0.1, shape), 0, 1)


def ssim(x: np.ndarray, y: np.ndarray) -> float:
    tensors = (torch.from_numpy(image)[None, None].float() for image in (x, y))
    return float(zero_padded_ssim(*tensors))


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (11, 11), (12, 9)])
def test_ssim_is_its_definition_on_small_images(shape):
    x, y = pair(*shape)
    assert ssim(x, y) == pytest.approx(plain_ssim(x, y), abs=2e-6)
    assert filtered_ssim(x, y) == pytest.approx(plain_ssim(x, y), abs=1e-12)


def test_ssim_of_larger_images():
    x, y = pair(37, 52)
    assert ssim(x, y) == pytest.approx(filtered_ssim(x, y), abs=2e-6)


def test_inside_the_border_it_is_scikit_images():
    x, y = pair(40, 40)
    _, whole = structural_similarity(
        x, y, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    ours = zero_padded_ssim(*(torch.from_numpy(image)[None, None] for image in (x, y)))
    border = np.ones((40, 40), bool)
    border[5:-5, 5:-5] = False
    inner = float(ours) * 1600 - _sum_where(x, y, border)
    assert inner == pytest.approx(whole[~border].sum(), abs=1e-4)


def _sum_where(x, y, mask) -> float:
    """Sum of the plain SSIM map over a mask, zeros outside the image."""
    g = window_weights()
    moments = [x, y, x * x, y * y, x * y]
    for axis in (0, 1):
        moments = [correlate1d(m, g, axis=axis, mode="constant") for m in moments]
    mx, my, xx, yy, xy = moments
    ssim_map = ((2 * mx * my + C1) * (2 * (xy - mx * my) + C2)) / (
        (mx**2 + my**2 + C1) * (xx - mx**2 + yy - my**2 + C2)
    )
    return float(ssim_map[mask].sum())


def test_channels_and_images_are_averaged_apart():
    x, y = pair(2, 3, 14, 13)
    tensors = [torch.from_numpy(image).float() for image in (x, y)]
    expected = [[filtered_ssim(a, b) for a, b in zip(*images, strict=True)] for images in zip(x, y, strict=True)]
    assert zero_padded_ssim(*tensors).tolist() == pytest.approx(np.mean(expected, axis=1).tolist(), abs=2e-6)


@pytest.mark.parametrize("size", [(32, 48), (21, 13), (4, 5)])
def test_the_pyramid_is_equation_7(size):
    x, y = pair(2, 3, *size)

    def half(image):
        height, width = image.shape[2] // 2 * 2, image.shape[3] // 2 * 2
        image = image[:, :, :height, :width]
        return (image[:, :, ::2, ::2] + image[:, :, 1::2, ::2] + image[:, :, ::2, 1::2] + image[:, :, 1::2, 1::2]) / 4

    expected, a, b = 0.0, x, y
    for weight in (0.6, 0.2, 0.2):
        expected += weight * (
            1
            - np.mean(
                [
                    filtered_ssim(p, q)
                    for p, q in zip(a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:]), strict=True)
                ]
            )
        )
        a, b = half(a), half(b)
    tensors = [torch.from_numpy(image).float() for image in (x, y)]
    assert float(PyramidSSIMLoss()(*tensors)) == pytest.approx(expected, abs=5e-6)
    assert float(PyramidSSIMLoss(loss_weight=2.0)(*tensors)) == pytest.approx(2 * expected, abs=1e-5)


def test_the_absolute_error_comes_on_top():
    x, y = pair(2, 3, 24, 24)
    tensors = [torch.from_numpy(image).float() for image in (x, y)]
    expected = float(PyramidSSIMLoss()(*tensors)) + 0.5 * np.abs(x - y).mean()
    assert float(PyramidSSIMLoss(l1_weight=0.5)(*tensors)) == pytest.approx(expected, abs=1e-6)
    alone = PyramidSSIMLoss(scale_weights=[], l1_weight=0.5)
    assert float(alone(*tensors)) == pytest.approx(0.5 * np.abs(x - y).mean(), abs=1e-6)


def test_a_loss_of_nothing_is_refused():
    with pytest.raises(CSDError, match="scale_weights is empty and l1_weight 0, so there is no loss"):
        PyramidSSIMLoss(scale_weights=[])


def test_equal_images_cost_nothing_and_the_gradient_leads_to_them():
    x, y = (torch.from_numpy(image).float() for image in pair(1, 3, 24, 24))
    loss = PyramidSSIMLoss()
    assert float(loss(x, x)) == pytest.approx(0, abs=1e-6)
    y.requires_grad_()
    value = loss(y, x)
    value.backward()
    assert loss(y.detach() - 0.5 * y.grad / y.grad.norm(), x) < value.detach()


def test_it_is_float32_under_autocast():
    x, y = (torch.from_numpy(image).float() for image in pair(1, 3, 24, 24))
    with torch.autocast("cpu", torch.bfloat16):
        value = PyramidSSIMLoss()(x, y)
    assert value.dtype == torch.float32
    assert float(value) == float(PyramidSSIMLoss()(x, y))


@pytest.mark.parametrize("first", [torch.inference_mode, FakeTensorMode])
def test_it_trains_after_an_evaluation_in_any_mode(first):
    size = {torch.inference_mode: (19, 23), FakeTensorMode: (22, 18)}[first]  # new ones, of which nothing is kept yet
    loss = PyramidSSIMLoss(scale_weights=(0.5, 1 / sum(size)))
    with first():
        loss(torch.rand(1, 3, *size), torch.rand(1, 3, *size))
    x, y = (torch.from_numpy(image).float().requires_grad_() for image in pair(1, 3, *size))
    loss(x, y).backward()
    assert x.grad.isfinite().all() and type(x.grad) is torch.Tensor
    with first():
        assert loss(torch.rand(1, 3, *size), torch.rand(1, 3, *size)).shape == ()


def test_sequences_are_their_frames():
    x, y = (torch.from_numpy(image).float() for image in pair(6, 3, 24, 24))
    loss = PyramidSSIMLoss(l1_weight=0.5)
    assert float(loss(x.unflatten(0, (2, 3)), y.unflatten(0, (2, 3)))) == float(loss(x, y))


@pytest.mark.parametrize("shape", [(2, 1, 3, 24, 24), (1, 3, 24, 24), (2, 1, 24, 24), (2, 3, 12, 24), (3, 24, 24)])
def test_other_shapes_are_not_repeated_to_fit(shape):
    x = torch.zeros(2, 3, 24, 24)
    for output, truth in ((x, torch.zeros(shape)), (torch.zeros(shape), x), (torch.zeros(24, 24), torch.zeros(24, 24))):
        with pytest.raises(CSDError, match=r"PyramidSSIMLoss compares .* check num_target"):
            PyramidSSIMLoss()(output, truth)


def test_gradients_are_those_of_finite_differences():
    x, y = (torch.from_numpy(image).requires_grad_() for image in pair(1, 2, 13, 7))
    assert torch.autograd.gradcheck(zero_padded_ssim, (x, y))


def test_second_derivatives_are_those_of_finite_differences():
    x, y = (torch.from_numpy(image).requires_grad_() for image in pair(1, 2, 4, 3))
    assert torch.autograd.gradgradcheck(zero_padded_ssim, (x, y))
    assert torch.autograd.gradgradcheck(lambda x: zero_padded_ssim(x, y.detach()), (x,))


def test_a_penalty_on_the_losss_gradient_teaches():
    x, y = (torch.from_numpy(image).float().requires_grad_() for image in pair(1, 3, 24, 24))
    [gradient] = torch.autograd.grad(PyramidSSIMLoss()(x, y), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad.norm() > 0


def test_transforms_of_torch_func():
    x, y = (torch.from_numpy(image).float() for image in pair(2, 3, 24, 20))
    loss = PyramidSSIMLoss(l1_weight=0.5)
    by_torch = torch.autograd.grad(loss(x.requires_grad_(), y), x)[0]
    x = x.detach()
    torch.testing.assert_close(torch.func.grad(loss)(x, y), by_torch, rtol=1e-3, atol=1e-8)
    by_image = torch.func.vmap(torch.func.grad(loss))(x[:, None], y[:, None])[:, 0] / 2
    torch.testing.assert_close(by_image, by_torch, rtol=1e-3, atol=1e-8)
    assert torch.equal(torch.autograd.grad(loss(x.requires_grad_(), y), x)[0], by_torch)


def test_value_and_gradients_are_the_librarys():
    """pytorch-msssim filters without padding, so on padded images it filters with zeros."""
    x, y = (torch.from_numpy(image).float().requires_grad_() for image in pair(3, 3, 40, 24))
    padded = (F.pad(image, [5] * 4) for image in (x, y))
    theirs = pytorch_msssim.ssim(
        *padded, data_range=1.0, size_average=False, win_size=11, win_sigma=1.5, K=(0.01, 0.03)
    )
    ours = zero_padded_ssim(x, y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    weights = torch.tensor([1.0, -2.0, 3.0])
    expected = torch.autograd.grad(theirs @ weights, (x, y))
    for gradient, other in zip(torch.autograd.grad(ours @ weights, (x, y)), expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-7)


def test_only_the_gradient_that_is_needed_is_made():
    x, y = (torch.from_numpy(image).float() for image in pair(1, 3, 12, 12))
    zero_padded_ssim(x.requires_grad_(), y).sum().backward()
    assert x.grad is not None and y.grad is None


class Rounds(TorchFunctionMode):
    """A device that rounds matrices where GPUs may; a CPU does so from some size on, if at all."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        products = torch.backends.cuda.matmul
        newer = hasattr(products, "fp32_precision")  # torch 2.9
        allowed = products.fp32_precision == "tf32" if newer else products.allow_tf32
        if func in (torch.bmm, torch.matmul, torch.mm) and allowed:
            args = [factor.bfloat16().float() for factor in args]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounded_matrix_products_and_channels_last_change_nothing(dtype):
    """What a network gives under autocast, on a device that is allowed to round: near 1 the loss would go below 0."""
    torch.manual_seed(0)
    gt = F.avg_pool2d(torch.rand(2, 3, 70, 70), 7, stride=1)
    output = (gt + 0.003 * torch.randn_like(gt)).to(dtype)
    loss, results = PyramidSSIMLoss(), {}
    for precision in ("highest", "medium"):  # on a CPU medium is bf16, on a GPU TF32
        torch.set_float32_matmul_precision(precision)
        try:
            with Rounds():
                given = output.contiguous(memory_format=torch.channels_last).requires_grad_()
                value = loss(given, gt)
                results[precision] = (value.detach(), *torch.autograd.grad(value, given))
        finally:
            torch.set_float32_matmul_precision("highest")
    for exact, rounded in zip(*results.values(), strict=True):
        assert torch.equal(exact, rounded)
    assert 0 < results["highest"][0] < 0.05
