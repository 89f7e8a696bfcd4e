"""From nothing to a derained clip by a shipped network, then to a distilled student: data, training, scores, pictures.

    python tools/quickstart.py            moving scenes made from photographs that scikit-image ships
    python tools/quickstart.py FOLDER     a folder of clean clips, folders of frames or videos (rain is rendered), or
                                          one in NTURain's layout

Everything is written to ./quickstart (for FOLDER: ./quickstart_NAME). The same command continues an interrupted run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import yaml

from csd_plugin.atomic import write_text
from csd_plugin.cli import main as csd
from csd_plugin.data.layout import find_sequences
from csd_plugin.data.rain.clips import find_clips
from csd_plugin.data.scenes import moving_scene
from csd_plugin.data.stores import open_store
from csd_plugin.errors import CSDError
from csd_plugin.lab.matrix import read_yaml

REPOSITORY = Path(__file__).resolve().parents[1]
OPTIONS = REPOSITORY / "options"
TRAIN_PHOTOS = (
    "motorcycle_left.png",
    "coffee.png",
    "rocket.jpg",
    "chelsea.png",
    "retina.jpg",
    "hubble_deep_field.jpg",
    "ihc.png",
)
TEST_PHOTO = "astronaut.png"
SCENES_PER_PHOTO, SCENE_FRAMES, TEST_FRAMES, SCENE_SIZE = 2, 16, 12, (168, 240)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="clean clips, or a data set in NTURain's layout")
    args = parser.parse_args(argv)
    try:
        run(args.folder)
    except CSDError as error:
        print(f"quickstart: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("quickstart: interrupted; the same command continues from here", file=sys.stderr)
        return 130
    return 0


def run(folder: Path | None) -> None:
    """All steps, in order. Raises CSDError where one cannot be done."""
    started = time.monotonic()
    source = None if folder is None else folder.resolve()
    if source is not None and not source.is_dir():
        raise CSDError(f"{folder} is not a folder; give clean clips, or a data set in NTURain's layout")
    work = Path("quickstart" if source is None else f"quickstart_{source.name}").resolve()
    work.mkdir(exist_ok=True)
    os.chdir(work)

    data = prepare_data(source)
    derain_clip(data, None, "shipped")
    make_table(data)
    derain_clip(data, "experiments/quickstart_student2_csd/models/net_g_latest.pth", "distilled")
    print(f"\nEverything is in {work}: table.md, shipped.png, distilled.png and their frames, results/, experiments/.")
    print(f"The commands of the README (csd ..) are in {Path(sys.executable).parent}: activate that environment.")
    print(f"It took {(time.monotonic() - started) / 60:.1f} minutes.")


def prepare_data(source: Path | None) -> Path:
    """The root of a data set in NTURain's layout: the user's, or rain put on the user's clean clips or on ours."""
    if source is not None and any(source.glob("Dataset_*")):
        keys = open_store(str(source)).keys()
        for split in ("train", "test"):  # both are needed: say so before the first training, not after the last
            find_sequences(keys, split, root=str(source))
        return source
    say("training and test pairs: rendered rain on clean clips")
    clean = source or make_scenes(Path("clean"))
    clips = sorted(clip.name for clip in find_clips(clean))
    if len(clips) < 2:
        raise CSDError(
            f"{clean} has one clip, {clips[0]}; give at least 2, folders or videos: one to train on, one to test"
        )
    held_out = clips[-1:]
    for flags, chosen in (
        (["--layout", "training", "--variants", "2"], clips[:-1]),
        (["--layout", "testing", "--seed", "1"], held_out),
    ):
        run_csd("rain", str(clean), "data", *flags, "--clips", *chosen)
    return Path("data")  # relative, so that the folder can be moved


def make_scenes(clean: Path) -> Path:
    """Two moving scenes of each photograph to train on, and one of another photograph to test on."""
    import skimage.data

    photos = Path(skimage.data.__file__).parent
    scenes = [(name, SCENE_FRAMES) for name in TRAIN_PHOTOS * SCENES_PER_PHOTO] + [(TEST_PHOTO, TEST_FRAMES)]
    for number, (name, length) in enumerate(scenes):
        folder = clean / f"scene{number:02d}_{Path(name).stem}"
        if folder.is_dir() and len(list(folder.iterdir())) == length:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        photo = cv2.imread(str(photos / name))
        for k, frame in enumerate(moving_scene(photo, length, SCENE_SIZE, seed=number), start=1):
            cv2.imwrite(str(folder / f"{k:05d}.png"), frame)
    return clean


def make_table(data: Path) -> None:
    """Train, test and score all rows of the matrix file on this data; the table goes to table.md."""
    say("training a teacher and students, and scoring the held-out clips")
    test = read_yaml(OPTIONS / "quickstart" / "test.yml")
    test["datasets"]["test"]["dataroot"] = str(data)
    matrix = {
        "name": "quickstart",
        "include": [str(OPTIONS / "matrix" / "quickstart.yml")],
        "set": {"datasets.train.dataroot": str(data)},
        "test": "test.yml",
    }
    for name, content in (("test.yml", test), ("matrix.yml", matrix)):
        write_text(Path(name), yaml.safe_dump(content, sort_keys=False))
    run_csd("table", "matrix.yml")
    shutil.copyfile(Path("results", "quickstart", "table.md"), "table.md")


def run_csd(*arguments: str) -> None:
    """`csd` in this process; it reports its errors itself.

    Raises:
        CSDError: it failed.
        KeyboardInterrupt: it was interrupted.
    """
    status = csd(arguments)
    if status == 130:
        raise KeyboardInterrupt
    if status:
        raise CSDError(f"csd {arguments[0]} failed, see above; delete {Path.cwd()} to start over")


def derain_clip(data: Path, model: str | None, name: str) -> None:
    """The first test clip through `csd derain` into NAME/, and the picture before / after / truth NAME.png."""
    say(f"deraining a held-out clip with the {name} student")
    sequence = find_sequences(open_store(str(data)).keys(), "test", root=str(data))[0]
    rainy = (data / sequence.lq[0]).parent
    run_csd("derain", str(rainy), name, "--overwrite", *(["--model", model] if model else []))

    assert sequence.gt is not None
    middle = len(sequence.lq) // 2
    derained = sorted(Path(name).iterdir())[middle]
    frames = [cv2.imread(str(path)) for path in (data / sequence.lq[middle], derained, data / sequence.gt[middle])]
    labels = ("rainy", f"derained by the {name} student", "truth")
    cv2.imwrite(f"{name}.png", np.hstack([_labelled(f, text) for f, text in zip(frames, labels, strict=True)]))


def _labelled(frame: np.ndarray, text: str) -> np.ndarray:
    frame = cv2.resize(frame, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC) if frame.shape[1] < 400 else frame
    banner = np.full((26, frame.shape[1], 3), 255, np.uint8)
    cv2.putText(banner, text, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([banner, frame])


def say(text: str) -> None:
    print(f"== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
