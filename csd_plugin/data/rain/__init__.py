"""Rain on clean video: its parameters (`RainParams`), and a renderer for frames and crops (`RainRenderer`).

    rain = RainRenderer(random_params("nturain", rng), seed=1, height=360, width=640, ambient=ambient_light(frames[0]))
    rainy = rain.render(frames[5], 5)
    crop = rain.render(frames[5][100:228, 50:178], 5, top=100, left=50)  # equals rainy[100:228, 50:178]

`pairs` writes data sets, `calibrate` fits a preset to statistics, `sheet` draws contact sheets.
"""

from csd_plugin.data.rain.params import PRESETS, RainParams, find_preset, override, random_params
from csd_plugin.data.rain.renderer import RainRenderer, ambient_light

__all__ = ["PRESETS", "RainParams", "RainRenderer", "ambient_light", "find_preset", "override", "random_params"]
