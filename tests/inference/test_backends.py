"""Every backend gives the frames that the plain network gives, clip by clip or frame by frame."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from csd_plugin import devices
from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.archs.prenet import PReNet
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.data.windows import reflect_indices
from csd_plugin.errors import CSDError
from csd_plugin.inference.backends import BACKENDS, open_backend
from csd_plugin.inference.facts import WHOLE, Facts, study
from csd_plugin.inference.graph import ready, to_onnx
from csd_plugin.inference.runner import Derainer

NAMES = tuple(BACKENDS)


def need(backend: str) -> None:
    if backend != "torch":
        pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
        pytest.importorskip(backend, reason=f"the extra for {backend} is not installed")


@pytest.fixture(scope="module")
def network() -> SLDNet:
    torch.manual_seed(0)
    return SLDNet(num_frame=3, num_feat=4, num_pair=3, num_transition=2, reducing=(4, 7), init_type="kaiming").eval()


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 33, 41, 3), np.uint8)


@pytest.fixture(scope="module")
def expected(network, clip) -> np.ndarray:
    """(N, H, W, 3) in 0 .. 255, a window at a time through the plain network."""
    frames = []
    for center in range(len(clip)):
        window = clip[reflect_indices(center, 3, len(clip))].astype(np.float32) / 255
        with torch.no_grad():
            output = network(torch.from_numpy(window).permute(0, 3, 1, 2)[None])[0]
        frames.append(output.clamp(0, 1).permute(1, 2, 0).numpy() * 255)
    return np.stack(frames)


@pytest.mark.parametrize("backend", NAMES)
def test_same_frames_at_once_pushed_batched_and_in_tiles(network, clip, expected, backend):
    need(backend)
    derainer = Derainer(network, backend=backend, device="cpu")
    at_once = np.stack(list(derainer(clip)))
    assert np.abs(at_once - expected).max() < 0.51  # rounding, nothing else

    pushed = [clean for frame in clip for clean in derainer.push(frame)]
    assert len(pushed) == len(clip) - 1
    assert np.array_equal(np.stack(pushed + derainer.flush()), at_once)
    assert np.array_equal(list(pickle.loads(pickle.dumps(derainer))(clip)), at_once)
    assert next(iter(derainer(clip[:1]))).shape == clip[0].shape  # another clip, of one frame

    derainer.batch = 4
    assert np.abs(np.stack(list(derainer(clip))) - at_once.astype(int)).max() <= 1
    derainer._pixels = 800
    assert np.abs(np.stack(list(derainer(clip))) - at_once.astype(int)).max() <= 1


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_bf16_is_near(network, clip, expected, backend):
    need(backend)
    frames = np.stack(list(Derainer(network, backend=backend, precision="bf16", device="cpu")(clip)))
    assert 0 < np.abs(frames - expected).mean() < 2
    assert np.abs(frames - expected).max() < 12


def for_backend(network: nn.Module, backend: str, folder: Path) -> nn.Module | Path:
    """The network, or what it is exported as: once for both runtimes, as that takes longest."""
    need(backend)
    if backend == "torch":
        return network
    file = folder / "net.onnx"
    if not file.exists():
        file.write_bytes(to_onnx(ready(network), study(network)))
    return file


@pytest.fixture(
    scope="module",
    params=[
        lambda: SLDNet(num_frame=5, num_feat=3, num_pair=4, num_transition=4, reducing=(4, 7, 10, 13)),
        lambda: PReNet(num_stage=2, num_feat=4),
        lambda: HalfNet(preset="causal", num_feat=4, num_pair=1, num_deep=1, branches=True),
    ],
    ids=["SLDNet", "PReNet", "HalfNet"],
)
def other(request, tmp_path_factory):
    """A network, and the folder of what it is exported as."""
    torch.manual_seed(0)
    return request.param().eval(), tmp_path_factory.mktemp("other")


@pytest.mark.parametrize("backend", NAMES)
def test_other_networks_run_too(other, backend):
    network, folder = other
    window = torch.rand(1, getattr(network, "num_seen", network.num_frame), 3, 24, 20)
    opened = open_backend(for_backend(network, backend, folder), backend=backend)
    with torch.no_grad():
        assert torch.allclose(opened(window), network(window), atol=1e-5)


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    torch.manual_seed(0)  # the weights of `other`, whose graph is made once
    network = HalfNet(preset="causal", num_feat=4, num_pair=1, num_deep=1, branches=True)
    return network.eval(), tmp_path_factory.mktemp("causal")


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_trial_gives_a_network_the_frames_that_it_takes(causal, backend, batch):
    network, folder = causal
    derainer = Derainer(for_backend(network, backend, folder), backend=backend, device="cpu", batch=batch)
    before = torch.get_rng_state()
    assert derainer.seconds_a_frame(64, 48) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_facts_are_those_of_the_network(network):
    student = SLDNet(preset="student1")
    assert study(student) == Facts(num_frame=3, reach=22, floats=48, preset="student1")
    assert study(PReNet(num_feat=8)).reach == 78
    facts = study(network, license="CC0")
    assert Facts.from_metadata(facts.to_metadata(), "a.onnx") == facts

    causal = study(HalfNet(preset="causal", branches=True))
    assert causal == Facts(num_frame=5, reach=41, floats=9, divisor=4, preset="causal", num_future=0)
    assert (causal.num_seen, facts.num_future, facts.num_seen) == (3, 1, 3)
    assert Facts.from_metadata(causal.to_metadata(), "a.onnx") == causal
    older = {key: value for key, value in facts.to_metadata().items() if key != "num_future"}
    assert Facts.from_metadata(older, "a.onnx") == facts
    odd = study(network, license="CC0\udcff").to_metadata()  # as names of clips may be; files take UTF-8 only
    assert odd["license"] == "CC0\\udcff" and "".join(odd.values()).encode()
    with pytest.raises(CSDError, match="metadata is not valid"):
        Facts.from_metadata(causal.to_metadata() | {"num_future": "3"}, "a.onnx")
    for name, much in {"num_frame": "1001", "reach": "5000", "floats": "999999", "divisor": "8192"}.items():
        with pytest.raises(CSDError, match="metadata is not valid"):  # they size the memory that a network gets
            Facts.from_metadata(facts.to_metadata() | {name: much}, "a.onnx")

    # Nothing further than `reach` counts, and that far something may.
    wide = torch.rand(1, 3, 3, 5, 61)
    changed = wide.clone()
    changed[..., 30] += 1
    with torch.no_grad():
        moved = (network.double()(wide.double()) - network(changed.double())).abs().amax((0, 1, 2)).nonzero()
    network.float()
    assert moved.min() == 30 - facts.reach and moved.max() == 30 + facts.reach


def test_a_backend_that_is_not_there_or_does_not_fit_is_one_line(network, tmp_path, monkeypatch):
    for options, message in (
        ({"backend": "abacus"}, "expected auto or one of torch, onnxruntime, openvino"),
        ({"precision": "fp12"}, "expected one of fp32, bf16, fp16"),
        ({"precision": "fp16", "device": "cpu"}, "no fast fp16 on CPUs"),
    ):
        with pytest.raises(CSDError, match=message):
            open_backend(network, **options)
    for name, extra in (("onnxruntime", "onnx"), ("openvino", "openvino")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(CSDError, match=rf"needs the package {name}: pip install '\.\[{extra}\]'"):
            open_backend(network, backend=name)
    with pytest.raises(CSDError, match=r"no\.onnx does not exist"):
        open_backend(tmp_path / "no.onnx")
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(CSDError, match="runs in onnxruntime or openvino, not in torch"):
        open_backend(tmp_path / "a.onnx", backend="torch")


@pytest.mark.parametrize(("backend", "suffix"), [("onnxruntime", ".onnx"), ("openvino", ".onnx"), ("openvino", ".xml")])
def test_damaged_files_are_one_line(tmp_path, backend, suffix):
    need(backend)
    for content in (b"", b"nothing of the kind", b"<xml>"):
        path = tmp_path / f"net{suffix}"
        path.write_bytes(content)
        with pytest.raises(CSDError, match=f"net{suffix}") as caught:
            open_backend(path, backend=backend)
        assert "\n" not in str(caught.value)


def test_a_model_that_is_not_ours_is_one_line(tmp_path):
    need("onnxruntime")
    import onnx

    node = onnx.helper.make_node("Identity", ["window"], ["frame"])
    sides = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("window", "frame")]
    graph = onnx.helper.make_graph([node], "g", sides[:1], sides[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(CSDError, match=r"does not state its num_frame.*`csd export`"):
        open_backend(tmp_path / "other.onnx", backend="onnxruntime")


def test_a_plain_network_of_another_layout_is_refused():
    class Image(nn.Conv2d):
        num_frame, layout = 1, "image"

    with pytest.raises(CSDError, match=r"Image has the layout 'image'; .* takes windows of one frame"):
        open_backend(Image(3, 3, 1))


class Runtime:
    """ONNX Runtime for GPUs, as far as a session is made; `broken`: its GPU part cannot start."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.providers: list[object] = []

    SessionOptions = staticmethod(lambda: mock.MagicMock())
    capi = mock.MagicMock()

    def get_available_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, model, options, providers):
        self.providers += providers
        session = mock.MagicMock()
        session.get_providers.return_value = [] if self.broken else ["CUDAExecutionProvider"]
        return session


@pytest.mark.parametrize(("device", "number"), [("cuda:1", "1"), ("cuda", "0"), ("auto", "0")])
def test_onnx_runtime_takes_the_gpu_that_was_asked_for_and_does_not_round(tmp_path, monkeypatch, device, number):
    (tmp_path / "network.onnx").write_bytes(b"")
    runtime = Runtime()
    for name in ("Fail", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "InvalidArgument"):
        setattr(runtime.capi.onnxruntime_pybind11_state, name, RuntimeError)
    monkeypatch.setattr("csd_plugin.inference.backends._import", lambda module: runtime)
    monkeypatch.setattr(Facts, "from_metadata", lambda metadata, source: None)
    open_backend(tmp_path / "network.onnx", backend="onnxruntime", device=device)
    assert runtime.providers == [("CUDAExecutionProvider", {"device_id": number, "use_tf32": "0"})]

    runtime.broken = True
    with pytest.raises(CSDError, match="would compute on the CPU"):
        open_backend(tmp_path / "network.onnx", backend="onnxruntime", device=device)


def test_torch_computes_fp32_without_rounding(network):
    backend = open_backend(network, device="cpu")
    settings = []
    hook = backend.network.register_forward_hook(
        lambda *_: settings.append([getattr(owner, name) for owner, name, _ in devices._rounding()])
    )
    backend(torch.rand(1, 3, 3, 16, 16))
    hook.remove()
    assert settings == [[value for _, _, value in devices._rounding()]]


def test_what_a_gpu_does_slowly_is_said_with_the_precision(network, monkeypatch):
    monkeypatch.setattr("csd_plugin.inference.runner.half_precision_warnings", lambda *_: ["slow here"])
    assert Derainer(network, device="cpu", precision="bf16").precision == ("bf16", "slow here")
    assert Derainer(network, device="cpu").precision == ("fp32", "")


class Custom(nn.Module):
    """One frame in, and what `made` gives of it out."""

    num_frame = 1

    def __init__(self, made, **said):
        super().__init__()
        self.made = made
        for name, value in said.items():
            setattr(self, name, value)

    def forward(self, window):
        return self.made(window[:, 0])


@pytest.mark.parametrize(
    "made",
    [
        lambda x: nn.functional.interpolate(x, scale_factor=2),
        lambda x: x.mean(1, keepdim=True),
        lambda x: x[..., 1:-1, 1:-1],
        lambda x: x[:, None],
        lambda x: x[0],
    ],
    ids=["twice", "grey", "smaller", "5d", "3d"],
)
def test_what_a_network_of_your_own_gives_is_checked(made):
    with pytest.raises(CSDError, match=r"the network returns \(.*\) where frames \(1, 3, 16, 16\) are needed; check"):
        Derainer(Custom(made), device="cpu")
    only_small = Custom(lambda x: x if x.shape[-1] == 16 else made(x))  # which the first trial does not show
    with pytest.raises(CSDError, match=r"the network returns \(.*\) where frames \(1, 3, 18, 20\) are needed; check"):
        list(Derainer(only_small, device="cpu")([np.zeros((18, 20, 3), np.uint8)]))


class Wide(Custom):
    def forward(self, window):
        assert window.shape[-1] >= 48, "frames are\nnarrow"
        return super().forward(window)


def test_frames_that_a_network_refuses_are_one_line():
    derainer = Derainer(Wide(lambda frame: frame), device="cpu")
    narrow, wide = (np.zeros((32, width, 3), np.uint8) for width in (40, 48))
    line = r"^Wide does not process frames of 40x32 \(frames are\); give frames of another size, or another network$"
    for run in (lambda: list(derainer([narrow])), lambda: derainer.seconds_a_frame(40, 32)):
        with pytest.raises(CSDError, match=line):
            run()
    assert len(list(derainer([wide]))) == 1


def test_a_network_without_weights_runs_and_one_on_meta_or_without_a_window_is_refused(clip):
    assert np.array_equal(list(Derainer(Custom(lambda x: x), device="cpu")(clip)), clip)
    with pytest.raises(CSDError, match=r"Custom does not state how it is called; give `layout`.* and `num_frame`"):
        Derainer(Custom(lambda x: x, num_frame=None), device="cpu")
    with torch.device("meta"):
        empty = SLDNet(preset="student2", num_feat=3)
    with pytest.raises(CSDError, match=r"SLDNet has no weights: .* is on the device meta"):
        Derainer(empty, device="cpu")


class Compiled(torch.nn.Module):
    """A network with a layer that its author has compiled."""

    num_frame = 3

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.jit.script(torch.nn.Conv2d(9, 3, 3, padding=1))

    def forward(self, window):
        return self.body(window.flatten(1, 2))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_layer_that_torch_jit_has_compiled_is_one_line():
    with pytest.raises(CSDError, match=r"Compiled: torch\.jit has compiled body, .* leave torch\.jit\.script out"):
        Derainer(Compiled())


@pytest.mark.parametrize("how", [{"batch": 0}, {"batch": -1}, {"memory": 0}])
def test_numbers_out_of_range_are_one_line(network, how):
    with pytest.raises(CSDError, match="give 1 or more"):
        Derainer(network, device="cpu", **how)


@pytest.mark.parametrize("make", [lambda: SLDNet(preset="student2", num_feat=8), lambda: HalfNet(preset="tiny")])
def test_autocast_outside_changes_nothing(make, clip, caplog):
    torch.manual_seed(0)
    network = make().eval()
    expected = list(Derainer(network, device="cpu")(clip))
    with torch.autocast("cpu", torch.bfloat16):
        derainer = Derainer(network, device="cpu")
        assert np.array_equal(list(derainer(clip)), expected)
    assert derainer.precision.name == "fp32" and "slower" not in caplog.text
    assert np.array_equal(list(derainer(clip)), expected)


def test_a_graph_that_is_made_under_autocast_computes_fp32(network, clip, expected):
    need("onnxruntime")
    with torch.autocast("cpu", torch.bfloat16):
        frames = list(Derainer(network, backend="onnxruntime", device="cpu")(clip))
    assert np.abs(np.stack(frames) - expected).max() < 0.51


class Attention(nn.Module):
    """Scaled by a mean over the frame."""

    num_frame = 1

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, window):
        frame = window[:, 0]
        return frame + 0.2 * self.body(frame) * frame.mean((-2, -1), keepdim=True).sigmoid()


class ByFunctions(nn.Module):
    """A filter of 9x9 that no layer shows."""

    num_frame = 1

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, 3, 9, 9) / 243)

    def forward(self, window):
        return nn.functional.conv2d(window[:, 0], self.weight, padding=4)


class Pooled(nn.Module):
    """Half the size inside, and back by a transposed convolution, which counts for nothing."""

    num_frame, size_divisor = 1, 2

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 3, 10, stride=2, padding=4)

    def forward(self, window):
        return window[:, 0] + 0.2 * self.up(nn.functional.avg_pool2d(window[:, 0], 2))


class Plain(nn.Module):
    """Counted as it is."""

    num_frame = 1

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)))

    def forward(self, window):
        return window[:, 0] + 0.2 * self.body(window[:, 0])


@pytest.mark.parametrize(
    ("make", "reach"), [(Attention, WHOLE), (ByFunctions, 4), (Pooled, 4), (Plain, 3)], ids=lambda made: str(made)
)
def test_tiles_of_a_network_of_your_own_leave_no_seam(make, reach, caplog):
    torch.manual_seed(0)
    network = make().eval()
    frame = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    frame[:, 200:] //= 8  # a mean over the frame is not that of a tile
    (whole,) = Derainer(network, device="cpu")([frame])
    assert not caplog.records
    tiled = Derainer(network, device="cpu", memory=1)
    assert tiled.backend.facts.reach == reach
    assert np.abs(next(tiled([frame])).astype(int) - whole).max() <= 1
    assert ("frames of 400x300 are not cut into tiles" in caplog.text) == (reach == WHOLE)


def test_a_network_may_say_its_reach():
    network = Attention()
    network.reach = 20
    assert study(network).reach == 20
