"""Our classes in the toolbox's registries, and the repairs of its versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from csd_plugin import compat, registration
from csd_plugin.errors import CSDError

NAMES = {
    "ARCH_REGISTRY": {"SLDNet", "PReNet", "S2VD", "HalfNet"},
    "DATASET_REGISTRY": {"PairedVideoDataset", "PairedVideoTestDataset", "RenderedRainDataset", "ResidentVideoDataset"},
    "LOSS_REGISTRY": {"PyramidSSIMLoss"},
    "METRIC_REGISTRY": {"calculate_lpips", "calculate_warping_error"},
    "MODEL_REGISTRY": {"VideoDerainModel", "DistillModel"},
}


def registries():
    registration.install()
    from basicsr.utils import registry

    return {name: getattr(registry, name) for name in NAMES}


def test_everything_is_registered_once_however_often_it_is_installed():
    before = {name: set(registry.keys()) for name, registry in registries().items()}
    registration.install()
    assert {name: set(registry.keys()) for name, registry in registries().items()} == before
    for name, ours in NAMES.items():
        present = {key for key, cls in registries()[name] if cls.__module__.startswith("csd_plugin.")}
        assert present == ours


def test_a_name_that_somebody_else_has_is_an_error(monkeypatch):
    registry = registries()["ARCH_REGISTRY"]
    monkeypatch.setitem(registry._obj_map, "SLDNet", type("SLDNet", (), {"__module__": "other_plugin.archs"}))
    with pytest.raises(CSDError, match=r"already has a SLDNet, from other_plugin\.archs"):
        registration.install()


def resume(path: dict, tmp_path, *saved: str) -> dict:
    """The options' paths after the toolbox has looked at them for a resume at iteration 7."""
    registration.install()
    from basicsr.utils import check_resume

    for name in saved:
        (tmp_path / name).write_bytes(b"")
    opt = {
        "network_g": {},
        "network_t": {},
        "network_t2": {},
        "path": {"models": str(tmp_path), "resume_state": "7.state", **path},
    }
    check_resume(opt, 7)
    return opt["path"]


def test_resume_repair_keeps_the_frozen_teacher(tmp_path):
    start = {"pretrain_network_t": "teacher.pth", "param_key_t": "params_ema", "param_key_g": "params_ema"}
    start |= {"pretrain_network_t2": "teacher2.pth", "param_key_t2": "params_ema"}
    for ignored in ({}, {"ignore_resume_networks": ["network_t"]}, {"ignore_resume_networks": "network_t2"}):
        path = resume(start | ignored, tmp_path, "net_g_7.pth")
        assert (path["pretrain_network_t2"], path["param_key_t2"]) == ("teacher2.pth", "params_ema")
        assert path["pretrain_network_t"] == "teacher.pth"
        assert path["param_key_t"] == "params_ema"
        assert path["pretrain_network_g"] == str(tmp_path / "net_g_7.pth")
        assert path["param_key_g"] == "params"


def test_resume_repair_leaves_networks_that_are_saved_to_the_toolbox(tmp_path):
    path = resume({"pretrain_network_t": "teacher.pth", "param_key_t": "params_ema"}, tmp_path, "net_t_7.pth")
    assert path["pretrain_network_t"] == str(tmp_path / "net_t_7.pth")
    assert path["param_key_t"] == "params"


def test_resume_repair_does_not_hide_a_missing_student(tmp_path):
    path = resume({"pretrain_network_g": "start.pth"}, tmp_path)
    assert path["pretrain_network_g"] == str(tmp_path / "net_g_7.pth")


def test_repairs_are_made_once():
    compat.repair_toolbox()
    from basicsr.utils import misc

    repaired = misc.check_resume
    compat.repair_toolbox()
    assert misc.check_resume is repaired
    assert not hasattr(repaired.__wrapped__, "__wrapped__")


def test_the_newest_state_is_found(tmp_path):
    for name in ("900.state", "1000.state", "best.state", ".2000.state.77"):
        (tmp_path / name).write_bytes(b"")
    opt = {"auto_resume": True, "path": {"training_states": str(tmp_path), "resume_state": "mine.state"}}
    assert compat.find_resume_state(opt) == str(tmp_path / "1000.state")
    assert compat.find_resume_state(opt | {"auto_resume": False}) == "mine.state"
    opt["path"]["training_states"] = str(tmp_path / "none")
    assert compat.find_resume_state(opt) == "mine.state"


def prepared(tmp_path: Path, torchvision: str) -> subprocess.CompletedProcess:
    """A process that prepares imports with a torchvision of this source."""
    package = tmp_path / "torchvision"
    (package / "transforms").mkdir(parents=True)
    (package / "__init__.py").write_text(torchvision)
    (package / "transforms" / "__init__.py").write_text("")
    (package / "transforms" / "functional.py").write_text("def rgb_to_grayscale(image): return 'grey'")
    code = (
        "from csd_plugin.compat import prepare_imports; prepare_imports(); prepare_imports();"
        "from torchvision.transforms.functional_tensor import rgb_to_grayscale; print(rgb_to_grayscale(0))"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[1])])
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_torchvision_without_its_compiled_part_imports(tmp_path):
    fakes = "import torch\n" + "".join(
        f"@torch.library.register_fake('torchvision::{name}')\ndef fake(dets, scores, iou): return dets\n"
        for name in ("nms", "qnms")
    )
    run = prepared(tmp_path, fakes)
    assert run.stdout == "grey\n", run.stderr[-2000:]


def test_other_faults_of_torchvision_are_not_hidden(tmp_path):
    run = prepared(tmp_path, "raise RuntimeError('operator torchvision::roi_align does not exist')")
    assert run.returncode == 1
    assert "roi_align does not exist" in run.stderr
