"""NIQE and LPIPS are the libraries' own values; what is missing is said in one line."""

from __future__ import annotations

import inspect
import math
import sys

import cv2
import numpy as np
import pytest
import torch

from csd_plugin import registration
from csd_plugin.errors import CSDError
from csd_plugin.metrics import METRICS, WITHOUT_TRUTH, results
from csd_plugin.metrics.metric import Metric, View, open_metrics
from csd_plugin.metrics.niqe import niqe
from csd_plugin.metrics.perceptual import ALEXNET, LPIPS
from csd_plugin.metrics.scoring import score_folders
from csd_plugin.metrics.warping import warping_error


def picture(seed=0, height=200, width=300):
    """Structure of many sizes, (H, W, 3) uint8 RGB."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for sigma in (1, 3, 9, 27):
        noise = cv2.GaussianBlur(rng.normal(size=(height, width, 3)).astype(np.float32), (0, 0), sigma)
        total += noise / noise.std()
    return cv2.normalize(total, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    """A file like torchvision's, with random weights."""
    registration.install()
    from torchvision.models import alexnet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = {name: value for name, value in alexnet(weights=None).state_dict().items() if "features" in name}
    path = tmp_path_factory.mktemp("weights") / ALEXNET
    torch.save(features, path)
    return path


def test_niqe_is_the_librarys_and_the_toolboxs():
    registration.install()
    from basicsr.metrics import calculate_niqe
    from mmeval import NaturalImageQualityEvaluator

    library = NaturalImageQualityEvaluator(input_order="HWC", convert_to="y")
    for image, golden in ((picture(), 5.578), (cv2.GaussianBlur(picture(), (0, 0), 1.5), 7.843)):
        assert niqe(image) == library([image])["niqe"]
        assert niqe(image) == pytest.approx(golden, abs=0.005)
        # single precision there, double here
        assert niqe(image) == pytest.approx(calculate_niqe(image[..., ::-1], crop_border=0), abs=0.02)


def test_niqe_says_what_it_cannot_judge():
    with pytest.raises(CSDError, match="frames of 120x100 are too small for NIQE"):
        niqe(picture(0, 100, 120))
    flat = picture()
    flat[:96, :192] = 7
    assert niqe(flat) > 0
    assert niqe(np.full((200, 300, 3), 7, np.uint8)) is None


def test_lpips_is_the_packages(alexnet):
    import lpips

    distance = LPIPS(alexnet)
    a, b = picture(0, 64, 80), picture(1, 64, 80)
    assert distance(a, a) == 0
    assert distance(a, b) > 0

    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = torch.load(alexnet, weights_only=True)
    layers = {"0": "slice1", "3": "slice2", "6": "slice3", "8": "slice4", "10": "slice5"}
    reference.net.load_state_dict(
        {f"{layers[name.split('.')[1]]}.{name.removeprefix('features.')}": value for name, value in state.items()}
    )
    tensors = (lpips.im2tensor(image) for image in (a, b))
    assert distance(a, b) == pytest.approx(reference(*tensors).item(), rel=1e-4)


def test_lpips_says_what_is_missing(alexnet, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CSDError, match=r"which is not downloaded.*give its path") as error:
        LPIPS()
    assert "\n" not in str(error.value)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ALEXNET).symlink_to(alexnet)
    assert LPIPS()(picture(0, 64, 64), picture(0, 64, 64)) == 0
    with pytest.raises(CSDError, match="does not exist"):
        LPIPS(tmp_path / "none.pth")
    for content in (b"no weights", None):
        other = tmp_path / "other.pth"
        torch.save({"features.0.weight": torch.zeros(2)}, other) if content is None else other.write_bytes(content)
        with pytest.raises(CSDError, match="does not hold torchvision's AlexNet"):
            LPIPS(other)
    with pytest.raises(CSDError, match="at least 32x32; these are 64x64 and 40x64"):
        LPIPS(alexnet)(picture(0, 64, 64), picture(0, 64, 40))


def test_metrics_are_opened_by_name(alexnet):
    metrics = open_metrics(METRICS, has_truth=True, options={"lpips": {"weights": alexnet}})
    result, truth = picture(0), picture(1)
    first = View(result, truth, truth)
    assert metrics["warping"].of(first) is None
    values = {
        name: metric.of(first._replace(previous=result, previous_guide=truth)) for name, metric in metrics.items()
    }
    assert values == {"niqe": niqe(result), "lpips": LPIPS(alexnet)(result, truth), "warping": 0.0}
    assert open_metrics(WITHOUT_TRUTH, has_truth=False).keys() == {"niqe", "warping"}
    with pytest.raises(CSDError, match="LPIPS compares with the truth"):
        open_metrics(["lpips"], has_truth=False)
    with pytest.raises(CSDError, match="no metric 'nique'; there are niqe, lpips, warping"):
        open_metrics(["nique"], has_truth=False)


def test_the_toolbox_gets_a_function_of_a_metric(alexnet):
    from basicsr.utils.registry import METRIC_REGISTRY

    registration.install()
    result, truth = picture(0, 64, 80), picture(1, 64, 80)
    lpips, warping = (METRIC_REGISTRY.get(name) for name in ("calculate_lpips", "calculate_warping_error"))
    assert list(inspect.signature(lpips).parameters) == ["img", "img2"]
    assert list(inspect.signature(warping).parameters) == ["img", "previous", "guide", "previous_guide"]
    bgr = {"img": result[..., ::-1], "img2": truth[..., ::-1]}
    assert lpips(**bgr, weights=str(alexnet), better="lower") == LPIPS(alexnet)(result, truth)
    with pytest.raises(CSDError, match="calculate_lpips needs img and img2"):
        lpips(img=bgr["img"], weights=str(alexnet))
    with pytest.raises(CSDError, match=r"none\.pth does not exist"):
        lpips.check(type="calculate_lpips", weights="none.pth", better="lower")
    with pytest.raises(CSDError, match="calculate_warping_error compares neighbouring frames"):
        warping(**bgr)
    previous = {"previous": bgr["img2"], "guide": bgr["img"], "previous_guide": bgr["img2"]}
    assert warping(**bgr, **previous) == warping_error(result, truth, result, truth)


class NothingOfBlack(Metric):
    """The mean, but of black frames nan."""

    def __call__(self, view):
        return float(view.result.mean()) if view.result.any() else math.nan


def test_nan_is_said_and_is_no_value(tmp_path, caplog):
    for name, level in (("1.png", 0), ("2.png", 9)):
        cv2.imwrite(str(tmp_path / name), np.full((16, 16, 3), level, np.uint8))
    scores = score_folders(tmp_path, None, metrics={"mine": NothingOfBlack()})
    (clip,) = scores.clips.values()
    assert list(clip.metrics["mine"].values()) == [9.0]
    assert f"mine: clip {tmp_path.name}, {tmp_path / '1.png'} has no value: it is nan" in caplog.text
    path = results.write(tmp_path, "scores", scores, {"network": "n", "dataset": "d"})
    assert results.load_results(path).scores == scores


def test_packages_that_are_missing_are_named(alexnet, monkeypatch):
    from csd_plugin.metrics.niqe import load_niqe

    load_niqe.cache_clear()
    monkeypatch.setitem(sys.modules, "mmeval", None)
    monkeypatch.setitem(sys.modules, "lpips", None)
    for name in ("niqe", "lpips"):
        with pytest.raises(CSDError, match=r"pip install '\.\[metrics\]'"):
            open_metrics([name], has_truth=True, options={"lpips": {"weights": alexnet}})
