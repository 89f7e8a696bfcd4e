"""LMDB both ways: our stores read by BasicSR's own data sets, and stores of BasicSR's own tools read by ours."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import torch
from synthetic import TEST, TRAIN, write_image, write_ntu_rain
from torch.utils.data import ConcatDataset, DataLoader

from csd_plugin import registration
from csd_plugin.cli import main
from csd_plugin.data.datasets.paired_video import PairedVideoDataset, PairedVideoTestDataset
from csd_plugin.data.datasets.rendered_rain import RenderedRainDataset
from csd_plugin.data.stores import open_store
from csd_plugin.data.stores.build import build_store
from csd_plugin.errors import CSDError

ROOT = Path(__file__).resolve().parents[2]
SIZE = {"height": 16, "width": 20}
# The whole frame, so that random crops and mirrors change nothing.
WHOLE = {"gt_size": 16, "scale": 1, "use_hflip": False, "use_rot": False, "phase": "train"}


@pytest.fixture(scope="module")
def toolbox():
    registration.install()
    from basicsr import data

    return data


@pytest.fixture(scope="module")
def long_clips(tmp_path_factory) -> Path:
    """A training clip of REDS's length with two rainy versions, a shorter one, and test clips, one without truth."""
    root = tmp_path_factory.mktemp("stores") / "NTU"
    write_ntu_rain(root, frames=100, height=16, width=16, clips={f"{TRAIN}/t1": ("GT", "Rain_01", "Rain_02")})
    write_ntu_rain(root, frames=9, height=16, width=16, clips={f"{TRAIN}/t2": ("GT", "Rain_01")})
    write_ntu_rain(root, frames=9, height=16, width=16, clips={f"{TEST}/a1": ("GT", "Rain"), f"{TEST}/b1": ("Rain",)})
    return root


@pytest.fixture(scope="module")
def built(long_clips):
    """The folder of the stores that `csd prepare --for basicsr` has written, and what it printed is another's test."""
    arguments = [long_clips, long_clips, "--lmdb", "png", "--for", "basicsr", "--jobs", "1"]
    assert main(["prepare", *map(str, arguments)]) == 0
    return long_clips.parent


def stores(folder: Path, name: str) -> dict:
    """The options of a data set of the toolbox on a pair of stores."""
    return {
        "name": name,
        "dataroot_lq": str(folder / f"{name}_lq.lmdb"),
        "dataroot_gt": str(folder / f"{name}_gt.lmdb"),
        "meta_info_file": str(folder / f"{name}_meta_info.txt"),
        "io_backend": {"type": "lmdb"},
    }


def frames_of(root: Path, clip: str, numbers) -> torch.Tensor:
    """(T, 3, H, W) in [0, 1], of files."""
    images = [cv2.imread(str(root / clip / f"{number + 1:05d}.png"))[..., ::-1] for number in numbers]
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255)


def test_what_is_written_and_said(built, long_clips, capsys):
    arguments = [long_clips, long_clips, "--lmdb", "png", "--for", "basicsr", "--jobs", "1", "--verify"]
    assert main(["prepare", *map(str, arguments)]) == 0
    out = capsys.readouterr().out
    assert f"{built / 'NTU_train_lq.lmdb'}: 209 frames (0 new)" in out
    assert "note: train: for REDSDataset, REDSRecurrentDataset (frames 0 to 99 of each clip)" in out
    assert "Vimeo90KDataset, Vimeo90KRecurrentDataset read clips of 7 frames" in out
    assert "note: train: clips of fewer than 100 frames are not in its meta_info_file" in out and ": t2_Rain_01" in out
    assert "note: test: clips without truth are left out: b1" in out
    assert out.count("verified: every frame is identical") == 2
    meta = [(built / f"NTU_train_{side}.lmdb" / "meta_info.txt").read_text().splitlines() for side in ("lq", "gt")]
    assert meta[0] == meta[1] and meta[0][0] == "t1_Rain_01/00000000.png (16,16,3) 1" and len(meta[0]) == 209
    clips = (built / "NTU_train_meta_info.txt").read_text().splitlines()
    assert clips == ["t1_Rain_01 100 (16,16,3)", "t1_Rain_02 100 (16,16,3)"]


def test_reds_data_sets_read_it(built, long_clips, toolbox):
    video = {"val_partition": "REDS4", "interval_list": [1], "random_reverse": False, "dataroot_flow": None}
    options = {**stores(built, "NTU_train"), **WHOLE, **video, "num_frame": 5}
    dataset = toolbox.build_dataset({**options, "type": "REDSDataset"})
    assert len(dataset) == 200
    item = dataset[150]
    assert item["key"] == "t1_Rain_02/00000050"
    assert torch.equal(item["lq"], frames_of(long_clips / TRAIN, "t1_Rain_02", range(48, 53)))
    assert torch.equal(item["gt"], frames_of(long_clips / TRAIN, "t1_GT", [50])[0])

    # a second one over the same stores, in the same process
    options = {**stores(built, "NTU_train"), **WHOLE, **video, "num_frame": 5}
    item = toolbox.build_dataset({**options, "type": "REDSRecurrentDataset", "test_mode": False})[95]
    assert torch.equal(item["lq"], frames_of(long_clips / TRAIN, "t1_Rain_01", range(95, 100)))
    assert torch.equal(item["gt"], frames_of(long_clips / TRAIN, "t1_GT", range(95, 100)))


def test_the_paired_image_data_set_reads_it(built, long_clips, toolbox):
    dataset = toolbox.build_dataset({**stores(built, "NTU_test"), **WHOLE, "type": "PairedImageDataset"})
    assert len(dataset) == 9
    assert torch.equal(dataset[8]["lq"], frames_of(long_clips / TEST, "a1_Rain", [8])[0])
    assert torch.equal(dataset[8]["gt"], frames_of(long_clips / TEST, "a1_GT", [8])[0])


def test_septuplets_are_named_as_those_of_vimeo(tmp_path, toolbox, capsys):
    root = write_ntu_rain(tmp_path / "seven", frames=7, height=16, width=16, clips={f"{TRAIN}/t1": ("GT", "Rain_01")})
    assert main(["prepare", str(root), str(root), "--lmdb", "source", "--for", "basicsr", "--jobs", "1"]) == 0
    assert "note: train: for Vimeo90KDataset, Vimeo90KRecurrentDataset, PairedImageDataset" in capsys.readouterr().out
    options = {**stores(tmp_path, "seven_train"), **WHOLE, "num_frame": 5, "random_reverse": False}
    (item,) = toolbox.build_dataset({**options, "type": "Vimeo90KDataset"})
    assert torch.equal(item["lq"], frames_of(root / TRAIN, "t1_Rain_01", range(1, 6)))
    assert torch.equal(item["gt"], frames_of(root / TRAIN, "t1_GT", [3])[0])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lmdb", "raw"], "--for basicsr: BasicSR reads stores of image files"),
        ([], "--for basicsr: BasicSR reads stores of image files"),
    ],
)
def test_what_basicsr_cannot_read_is_not_written(long_clips, tmp_path, capsys, flags, words):
    assert main(["prepare", str(long_clips), str(tmp_path / "out"), "--for", "basicsr", *flags]) == 2
    assert words in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("clips", "words"),
    [
        ({f"{TEST}/a.1": ("GT", "Rain")}, "cannot read the clip 'a.1'"),
        ({f"{TEST}/a\t1": ("GT", "Rain")}, r"cannot read the clip 'a\t1'"),
        ({f"{TEST}/a1": ("Rain",)}, "no clip has clean frames"),
    ],
)
def test_clips_that_basicsr_cannot_have(tmp_path, capsys, clips, words):
    root = write_ntu_rain(tmp_path / "in", frames=2, height=8, width=8, clips=clips)
    assert main(["prepare", str(root), str(root), "--lmdb", "png", "--for", "basicsr", "--jobs", "1"]) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.glob("*.lmdb*"))


# --- stores that BasicSR has made -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, toolbox) -> Path:
    """lq.lmdb and gt.lmdb by the toolbox's own tool, of clips 000 and 001, next to their frames."""
    from basicsr.utils.lmdb_util import make_lmdb_from_imgs

    folder = tmp_path_factory.mktemp("theirs")
    rng = np.random.default_rng(0)
    for side in ("lq", "gt"):
        for clip in ("000", "001"):
            for number in range(7):
                image = rng.integers(0, 256, (24, 28, 3), np.uint8)
                write_image(folder / side / clip / f"{number + 1:08d}.png", image)
        paths = sorted(str(path.relative_to(folder / side)) for path in (folder / side).rglob("*.png"))
        keys = [path.removesuffix(".png") for path in paths]
        make_lmdb_from_imgs(str(folder / side), str(folder / f"{side}.lmdb"), paths, keys)
    return folder


TRAINING = {"num_frame": 5, "num_target": 3, "gt_size": 20, "random_reverse": True}


def batches(dataset, **loader):
    torch.manual_seed(1)
    return list(DataLoader(dataset, batch_size=2, **loader))


def roots(folder: Path, ending: str) -> dict[str, str]:
    return {f"dataroot_{side}": str(folder / f"{side}{ending}") for side in ("lq", "gt")}


@pytest.mark.parametrize(
    ("kind", "options"), [(PairedVideoDataset, TRAINING), (PairedVideoTestDataset, {"num_frame": 3, "clips": ["001"]})]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_our_data_sets_read_them_as_they_read_the_folders(theirs, kind, options, workers):
    one = batches(kind({**roots(theirs, ""), **options}), num_workers=min(workers, 1))
    other = batches(kind({**roots(theirs, ".lmdb"), **options}), num_workers=workers)
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a["lq"], b["lq"]) and torch.equal(a["gt"], b["gt"])


def test_one_that_is_there_is_taken_without_checksums(theirs):
    assert build_store(theirs / "lq", theirs / "lq.lmdb").new == 0


def test_a_test_set_without_truth(theirs):
    dataset = PairedVideoTestDataset({"dataroot_lq": str(theirs / "lq.lmdb"), "num_frame": 1})
    assert len(dataset) == 14 and "gt" not in dataset[0] and dataset[0]["folder"] == "000"


def test_ours_and_the_toolboxs_own_read_one_store_in_one_process(theirs, toolbox):
    """LMDB forbids to open a store twice: whoever comes second takes what the first has, in either order."""
    from basicsr.utils import FileClient, imfrombytes

    files = open_store(theirs / "gt")
    ours = open_store(theirs / "gt.lmdb")
    client = FileClient("lmdb", db_paths=[str(theirs / "gt.lmdb")], client_keys=["gt"])
    again = FileClient("lmdb", db_paths=str(theirs / "gt.lmdb"))
    for key in ("000/00000001", "001/00000007"):
        frame = files.read(f"{key}.png")
        assert np.array_equal(ours.read(f"{key}.png"), frame)
        assert np.array_equal(imfrombytes(client.get(key, "gt"))[..., ::-1], frame)
        assert np.array_equal(imfrombytes(again.get(key))[..., ::-1], frame)
    assert client.get("no such key", "gt") is None

    later = theirs / "later.lmdb"
    later.mkdir()
    for file in (theirs / "gt.lmdb").iterdir():
        (later / file.name).write_bytes(file.read_bytes())
    first = FileClient("lmdb", db_paths=[str(later)], client_keys=["gt"])
    assert np.array_equal(open_store(later).read("000/00000001.png"), files.read("000/00000001.png"))
    assert first.get("000/00000001", "gt") is not None


def test_a_reader_from_before_activation_is_one_line(theirs, tmp_path, toolbox):
    """Who has opened a store without our repair has a handle that cannot be shared; the other way round too."""
    from basicsr.utils.file_client import LmdbBackend

    shutil.copytree(theirs / "gt.lmdb", tmp_path / "gt.lmdb")
    before = LmdbBackend.__new__(LmdbBackend)
    LmdbBackend.__init__.__wrapped__(before, [str(tmp_path / "gt.lmdb")], ["gt"])
    with pytest.raises(CSDError, match=r"gt.lmdb: another reader, .* call csd_plugin.activate\(\) before") as caught:
        open_store(tmp_path / "gt.lmdb")
    assert "\n" not in str(caught.value)
    with pytest.raises(CSDError, match="another reader"):
        LmdbBackend([str(tmp_path / "gt.lmdb")], ["gt"])
    assert before.get("000/00000001", "gt") is not None

    before._client["gt"].close()
    ours = open_store(tmp_path / "gt.lmdb")
    with pytest.raises(lmdb.Error, match="already open"):
        LmdbBackend.__init__.__wrapped__(before, [str(tmp_path / "gt.lmdb")], ["gt"])
    client = LmdbBackend([str(tmp_path / "gt.lmdb")], ["gt"])
    assert client.get("000/00000001", "gt") == ours.encoded("000/00000001.png")


WORKERS = """
import sys
from torch.utils.data import DataLoader, Dataset

if __name__ != "__main__":  # in the worker, as every script that calls it at its top has it; importing it takes long
    import csd_plugin
    csd_plugin.activate()

class Both(Dataset):
    def __init__(self, root):
        self.root = root

    def __len__(self):
        return 3

    def __getitem__(self, index):
        from basicsr.utils import FileClient
        from csd_plugin.data.stores import open_store

        key = f"001/{index + 1:08d}"
        store = open_store(f"{self.root}/lq.lmdb")
        client = FileClient("lmdb", db_paths=[f"{self.root}/lq.lmdb", f"{self.root}/gt.lmdb"], client_keys=["lq", "gt"])
        later = open_store(f"{self.root}/gt.lmdb")
        return all(client.get(key, k) == s.encoded(f"{key}.png") for k, s in (("lq", store), ("gt", later)))

def equal(context, root):
    return [bool(item) for item in DataLoader(Both(root), num_workers=1, multiprocessing_context=context)]

if __name__ == "__main__":
    print(equal("spawn", sys.argv[1]))
"""


def test_a_spawned_worker_opens_a_store_for_both(theirs, tmp_path):
    """In either order: ours first, of lq, and the toolbox's first, of gt."""
    (tmp_path / "workers.py").write_text(WORKERS)
    run = subprocess.run(
        [sys.executable, "workers.py", str(theirs)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout == "[True, True, True]\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked")
def test_a_forked_worker_opens_a_store_for_both(theirs, tmp_path, toolbox):
    for side in ("lq", "gt"):
        shutil.copytree(theirs / f"{side}.lmdb", tmp_path / f"{side}.lmdb")  # which this process has not opened
    names = {"__name__": "workers"}
    exec(WORKERS.replace("csd_plugin.activate()", ""), names)  # the fixture has registered them
    assert names["equal"]("fork", str(tmp_path)) == [True, True, True]


def test_forked_workers_of_both(theirs, toolbox):
    options = {**WHOLE, "type": "PairedImageDataset", "name": "both", "io_backend": {"type": "lmdb"}}
    dataset = toolbox.build_dataset({**options, **roots(theirs, ".lmdb")})
    alone = [dataset[i]["lq"] for i in range(len(dataset))]  # opened before the workers start
    random.seed(0)
    loader = DataLoader(ConcatDataset([dataset]), num_workers=2, multiprocessing_context="fork")
    assert [item["lq"].shape[-1] for item in loader] == [16] * 14 == [16] * len(alone)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dataroot_gt": None}, "give both dataroot_lq and dataroot_gt"),
        ({"dataroot_lq": None}, "give both dataroot_lq and dataroot_gt"),
        ({"dataroot": "x"}, "leave dataroot and split out"),
        ({"split": "train"}, "leave dataroot and split out"),
        ({"clips": ["002"]}, "clips: lq has no clip '002'"),
        ({"dataroot_lq": "nowhere"}, "data root nowhere does not exist"),
    ],
)
def test_roots_that_do_not_go_together(theirs, options, words):
    with pytest.raises(CSDError, match=words):
        PairedVideoDataset({**roots(theirs, ".lmdb"), **TRAINING, **options})


def test_rendered_rain_takes_clean_clips_alone(theirs):
    with pytest.raises(CSDError, match="give the clean clips as dataroot"):
        RenderedRainDataset({**roots(theirs, ".lmdb"), **TRAINING})


def change_meta(text):
    return lambda store: (store / "meta_info.txt").write_text(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda store: (store / "meta_info.txt").unlink(), "neither a store of `csd prepare` nor one of BasicSR"),
        (change_meta("000/1.png 24 28\n"), "is not `KEY.png"),
        (change_meta("000/9.png (24,28,3) 1\n"), "no such frame"),
        (change_meta("000/00000001.png (9,9,3) 1\n"), "24 pixels, but its header or an earlier read said 9x9"),
    ],
)
def test_stores_whose_list_is_wrong(theirs, tmp_path, change, words):
    store = tmp_path / "lq.lmdb"
    store.mkdir()
    for file in (theirs / "lq.lmdb").iterdir():
        (store / file.name).write_bytes(file.read_bytes())
    change(store)
    with pytest.raises(CSDError, match=words.replace("(", r"\(")):
        frames = open_store(store)
        frames.read(frames.keys()[0])


def test_stores_without_checksums_are_not_verified(theirs):
    from csd_plugin.data.stores.verify import verify_store

    with pytest.raises(CSDError, match="made by BasicSR, without checksums"):
        verify_store(theirs / "lq.lmdb")


def test_clips_without_a_partner_and_a_store_of_one_clip(tmp_path):
    for side, clips in (("lq", ("a/0001", "b")), ("gt", ("a/0001",))):
        for clip in clips:
            write_image(tmp_path / side / clip / "im1.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(CSDError, match="dataroot_gt: no clip b, which dataroot_lq has"):
        PairedVideoTestDataset({**roots(tmp_path, ""), "num_frame": 1})
    assert PairedVideoTestDataset({**roots(tmp_path, ""), "num_frame": 1, "clips": ["a_0001"]})[0]["folder"] == "a_0001"
    flat = {f"dataroot_{side}": str(tmp_path / side / "a" / "0001") for side in ("lq", "gt")}
    assert PairedVideoTestDataset({**flat, "num_frame": 1})[0]["folder"] == "clip"


def test_an_option_file_names_them(launcher, theirs):
    from toolbox import train_options

    data = {"datasets.train.dataroot": ..., "datasets.train.num_frame": 5, "datasets.train.num_target": 1}
    data |= {f"datasets.train.{key}": root for key, root in roots(theirs, ".lmdb").items()}
    assert launcher.train(train_options(theirs, **data, **{"datasets.train.gt_size": 20})) == 0
    assert launcher.models[-1].samples_done == 4
