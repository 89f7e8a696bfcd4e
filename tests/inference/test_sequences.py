"""Networks of sequences, run by run: the frames are those of the network itself, in any size, tiled or not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from synthetic import moving_scene, write_image

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.archs.prenet import PReNet
from csd_plugin.archs.s2vd import S2VD
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.cli import main
from csd_plugin.data.windows import reflect_indices
from csd_plugin.inference.facts import Facts, study
from csd_plugin.inference.runner import Derainer
from csd_plugin.metrics.protocols import score_frame


@pytest.fixture(scope="module")
def network() -> S2VD:
    """BatchNorm statistics differ from their start, and its frames are neither black nor white."""
    torch.manual_seed(0)
    network = S2VD(num_feat=4, num_block=1)
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(2, 3, 3, 8, 8))
        last = network.eval().tail[4].conv.weight.abs_()
        last.mul_(0.5 / network(torch.rand(1, 3, 3, 8, 8)).mean())
    return network


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sequences") / "s2vd.pth"
    torch.save({"params": network.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint) -> Path:
    """Written, and compared with torch, by `csd export`."""
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra 'onnx' is not installed")
    assert main(["export", str(checkpoint), str(checkpoint.with_suffix(".onnx"))]) == 0
    return checkpoint.with_suffix(".onnx")


def clip_of(length: int, height: int = 36, width: int = 51) -> np.ndarray:
    return np.random.default_rng(length).integers(0, 256, (length, height, width, 3), np.uint8)


@torch.no_grad()
def slowly(network: S2VD, clip: np.ndarray, together: int) -> np.ndarray:
    """Frames in 0 .. 255, by the definition; odd sizes with their last row and column twice."""
    frames = []
    for start in range(0, len(clip), together):
        centers = range(start, min(start + together, len(clip)))
        windows = [reflect_indices(center, 5, len(clip)) for center in centers]
        seen = clip[windows[0] + [window[-1] for window in windows[1:]]].astype(np.float32) / 255
        seen = np.pad(seen, ((0, 0), (0, clip.shape[1] % 2), (0, clip.shape[2] % 2), (0, 0)), mode="edge")
        output = network(torch.from_numpy(seen).permute(0, 3, 1, 2)[None])[0, 2:-2]
        frames.append(output[..., : clip.shape[1], : clip.shape[2]].clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255)
    return np.concatenate(frames)


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize(("length", "together"), [(11, 4), (3, None)])
def test_runs_of_frames_at_once_pushed_and_in_tiles(network, backend, length, together, request):
    if backend != "torch":
        pytest.importorskip(backend, reason=f"the extra for {backend} is not installed")
    clip = clip_of(length)
    model = network if backend == "torch" else request.getfixturevalue("exported")
    derainer = Derainer(model, backend=backend, device="cpu", batch=together)
    at_once = np.stack(list(derainer(clip)))
    assert np.abs(at_once - slowly(network, clip, together or 24)).max() < 0.51  # rounding, nothing else

    counts = [len(derainer.push(frame)) for frame in clip]
    assert counts == [4 if together and i in (5, 9) else 0 for i in range(length)]
    assert np.array_equal(np.stack(derainer.flush()), at_once[sum(counts) :])

    derainer._pixels = 1070  # tiles in both directions, of 4x4 pixels and what they see
    assert np.abs(np.stack(list(derainer(clip))) - at_once.astype(int)).max() <= 1


@pytest.mark.parametrize("length", [1, 2])
def test_clips_shorter_than_what_a_frame_needs(network, length):
    frames = np.stack(list(Derainer(network, device="cpu")(clip_of(length))))
    assert np.abs(frames - slowly(network, clip_of(length), 24)).max() < 0.51


def test_facts(network):
    facts = study(S2VD())
    assert facts == Facts(num_frame=5, reach=42, floats=35, layout="sequence", divisor=2, preset="S2VD")
    assert Facts.from_metadata(facts.to_metadata(), "a.onnx") == facts
    older = {key: value for key, value in facts.to_metadata().items() if key not in ("layout", "divisor")}
    assert (Facts.from_metadata(older, "a.onnx").layout, Facts.from_metadata(older, "a.onnx").divisor) == ("window", 1)

    # Nothing further than `reach` counts.
    wide = torch.rand(1, 3, 3, 4, 80, dtype=torch.float64)
    changed = wide.clone()
    changed[..., 41] += 1
    with torch.no_grad():
        moved = (network.double()(wide) - network(changed)).abs().amax((0, 1, 2, 3)).nonzero()
    network.float()
    reach = study(network).reach
    assert 41 - reach <= moved.min() < 41 - reach + 3 and moved.max() <= 41 + reach


@pytest.mark.parametrize("make", [lambda: PReNet(num_stage=2, num_feat=4), lambda: SLDNet(preset="student3")])
def test_networks_of_single_frames_give_each_frame_at_once(make):
    torch.manual_seed(0)
    network = make().eval()
    clip = clip_of(3)
    derainer = Derainer(network, device="cpu")
    frames = [clean for frame in clip for clean in derainer.push(frame)]
    window = torch.from_numpy(clip.astype(np.float32) / 255).permute(0, 3, 1, 2)[:, None]
    with torch.no_grad():
        expected = network(window).clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(np.stack(frames) - expected).max() < 0.51
    derainer._pixels = 40 * 40
    assert np.abs(np.stack(list(derainer(clip))).astype(int) - frames).max() <= 1


@pytest.mark.parametrize("model", ["checkpoint", "exported"])
def test_command_line(network, model, tmp_path, request):
    model = str(request.getfixturevalue(model))
    clip = np.stack(moving_scene(6, 36, 51, 0))
    for number, image in enumerate(clip):
        write_image(tmp_path / "rain" / f"{number}.png", image)
    out = tmp_path / "out"
    options = ["--model", model, "--device", "cpu", "--precision", "fp32"]
    assert main(["derain", str(tmp_path / "rain"), str(out), *options]) == 0
    frames = np.stack([cv2.imread(str(out / f"{number}.png"))[..., ::-1] for number in range(6)])
    assert np.abs(frames - slowly(network, clip, 24)).max() < 0.51


def test_infer_counts_the_frames_of_a_run(checkpoint, capsys):
    options = ["--networks", str(checkpoint), "--backends", "plain", "torch", "--sizes", "16x16", "--rounds", "1"]
    assert main(["bench", "infer", *options]) == 0
    assert capsys.readouterr().out.count("s2vd.pth | ") == 2


def test_published_weights_clean_real_rain(shared):
    """METHOD.md, section 9, on a part of the first frames of a1."""
    root = shared / "data" / "NTURain" / "Dataset_Testing_Synthetic"
    rainy, true = (
        [cv2.imread(str(path))[100:228, 200:328, ::-1].copy() for path in sorted((root / name).iterdir())[:8]]
        for name in ("a1_Rain", "a1_GT")
    )
    clean = list(Derainer(load_network(shared / "weights" / "s2vd_derainer_rho05.pt"), device="cpu")(rainy))
    before, after = (
        np.mean([score_frame(a, b)["nturain_y"].psnr for a, b in zip(frames, true, strict=True)])
        for frames in (rainy, clean)
    )
    assert after > before + 4
