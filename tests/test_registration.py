"""Our classes in the toolbox's registries, and the repairs of its versions."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
import warm
from toolbox import changed, distill_options, train_options

from csd_plugin import compat, registration
from csd_plugin.archs import NETWORKS
from csd_plugin.data.datasets import DATASETS
from csd_plugin.losses import LOSSES
from csd_plugin.options.sections import MODELS
from csd_plugin.resume_states import find_resume_state

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


@pytest.fixture
def restored(monkeypatch):
    """The registries, which are as they were after the test, and so are the names that option files are checked by."""
    for registry in registries().values():
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))
    for table in (DATASETS, NETWORKS, LOSSES):
        monkeypatch.setattr(table, "_rows", dict(table._rows))
    models = dict(MODELS)
    yield registries()
    MODELS.clear()
    MODELS.update(models)


def somebodys(name, base=object):
    """A class, or for a metric a function, of another package."""
    return type(name, (base,), {"__module__": "other_plugin.archs"})


@pytest.mark.parametrize("theirs_first", [True, False])
@pytest.mark.parametrize(
    ("registry", "name"), [(registry, name) for registry in NAMES for name in sorted(NAMES[registry])]
)
def test_a_name_that_somebody_else_has_is_theirs(restored, caplog, registry, name, theirs_first):
    registry, theirs = restored[registry], somebodys(name)
    ours = registry.get(name)
    if theirs_first:
        del registry._obj_map[name]
        registry.register(theirs)
        registration.install()
    else:
        assert registry.register()(theirs) is theirs  # as a decorator
    registration.install()
    assert registry.get(name) is theirs
    assert registry.get(f"CSD_{name}") is ours
    assert [key for key, cls in registry if cls is ours] == [f"CSD_{name}"]
    [line] = caplog.messages
    assert f"{name} in BasicSR's registry" in line and "other_plugin.archs" in line and f"CSD_{name}" in line

    with pytest.raises(AssertionError, match="already registered"):  # among others it is an error as ever
        registry.register(somebodys(name))


def test_option_files_are_checked_by_whose_name_it_is(restored, launcher, tiny_rain, tiny_teacher, capfd):
    """A network and a model of somebody else's have our names; both parties' are trained."""

    class PReNet(torch.nn.Conv2d):
        def __init__(self, channels):
            super().__init__(channels, 3, 3, padding=1)

    class VideoDerainModel(restored["MODEL_REGISTRY"].get("VideoDerainModel")):
        pass

    restored["ARCH_REGISTRY"].register(PReNet)
    restored["MODEL_REGISTRY"].register(VideoDerainModel)
    ours = train_options(tiny_rain, model_type="CSD_VideoDerainModel", network_g={"type": "CSD_PReNet", "num_feat": 4})
    assert launcher.train(ours) == 0
    assert type(launcher.models[-1].net_g).__module__ == "csd_plugin.archs.prenet"
    assert launcher.train(changed(ours, {"network_g.num_feats": 4})) == 2
    assert "network_g.num_feats is unknown; did you mean num_feat?" in capfd.readouterr().err

    theirs = train_options(tiny_rain, name="theirs", network_g={"type": "PReNet", "channels": 3})
    assert launcher.train(theirs | {"interface_g": {"layout": "image"}}) == 0
    assert type(launcher.models[-1].net_g) is PReNet and type(launcher.models[-1]) is VideoDerainModel

    class DistillModel:
        pass

    restored["MODEL_REGISTRY"].register(DistillModel)
    stage2 = distill_options(tiny_rain, tiny_teacher, name="stage2", model_type="CSD_DistillModel")
    assert launcher.train(changed(stage2, {"path.pretrain_network_t": ...})) == 2
    assert "path.pretrain_network_t is missing" in capfd.readouterr().err
    assert launcher.train(stage2) == 0
    assert len(launcher.models[-1].teachers) == 1


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


def test_resume_repair_keeps_the_frozen_teacher(tmp_path, capsys):
    start = {"pretrain_network_t": "teacher.pth", "param_key_t": "params_ema", "param_key_g": "params_ema"}
    start |= {"pretrain_network_t2": "teacher2.pth", "param_key_t2": "params_ema"}
    for ignored in ({}, {"ignore_resume_networks": ["network_t"]}, {"ignore_resume_networks": "network_t2"}):
        path = resume(start | ignored, tmp_path, "net_g_7.pth")
        said = capsys.readouterr().out.splitlines()
        for name in ("network_t", "network_t2"):
            lines = [line for line in said if line.startswith(f"Set pretrain_{name} ")]
            assert not lines or lines[-1].startswith(f"Set pretrain_{name} back to teacher")
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
    for iteration, name in ((900, "900"), (1000, "1000"), (1, "best")):
        state = {"iter": iteration, "epoch": 0, "optimizers": [], "schedulers": []}
        torch.save(state, tmp_path / f"{name}.state")
        torch.save({"params": {}}, tmp_path / f"net_g_{iteration}.pth")
    (tmp_path / ".2000.state.77").write_bytes(b"")
    paths = {"training_states": str(tmp_path), "models": str(tmp_path), "resume_state": "mine.state"}
    opt = {"auto_resume": True, "path": paths}
    assert find_resume_state(opt) == (str(tmp_path / "1000.state"), [])
    assert find_resume_state(opt | {"auto_resume": False}) == ("mine.state", [])
    opt["path"]["training_states"] = str(tmp_path / "none")
    assert find_resume_state(opt) == ("mine.state", [])


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
    return warm.python("-c", code, environment=os.environ | {"PYTHONPATH": paths})


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
