"""Make the README's picture: a moving scene from a photograph in the public domain, rendered rain, the shipped student.

python tools/readme_picture.py csd_plugin/weights/before_after.jpg
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from csd_plugin.data.rain import PRESETS, RainRenderer, ambient_light
from csd_plugin.data.scenes import moving_scene
from csd_plugin.inference.runner import Derainer
from csd_plugin.weights import find_checkpoint

SIZE = (360, 400)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", help="another checkpoint than the shipped one")
    args = parser.parse_args(argv)
    import skimage.data

    photo = cv2.cvtColor(cv2.imread(str(Path(skimage.data.__file__).parent / "astronaut.png")), cv2.COLOR_BGR2RGB)
    clean = list(moving_scene(photo, 7, SIZE, seed=4))
    renderer = RainRenderer(PRESETS["nturain"], seed=5, height=SIZE[0], width=SIZE[1], ambient=ambient_light(clean[0]))
    rainy = [renderer.render(frame, t) for t, frame in enumerate(clean)]
    derained = list(Derainer(find_checkpoint(args.model))(rainy))
    picture = np.hstack([rainy[3], np.full((SIZE[0], 6, 3), 255, np.uint8), derained[3]])
    cv2.imwrite(str(args.out), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return 0


if __name__ == "__main__":
    sys.exit(main())
