"""The rain renderer: crops, time, light, parameters, and NTURain's statistics."""

from __future__ import annotations

from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from csd_plugin.data.rain import PRESETS, RainParams, RainRenderer, ambient_light, find_preset, override, random_params
from csd_plugin.data.rain.calibrate import NTURAIN, calibrate, load_samples, statistics
from csd_plugin.data.rain.motion import Drift
from csd_plugin.data.rain.statistics import difference_counts, statistics_of
from csd_plugin.data.rain.streaks import Streaks, draw_streaks
from csd_plugin.errors import CSDError

HEIGHT, WIDTH = 90, 130
EVERYTHING = replace(PRESETS["heavy"], wind=4.0, pan=40.0, shake=1.0, veil=0.4, splash=40.0, near=0.5)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def grey(level: int = 80) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), level, np.uint8)


def one_drop(**changes: float) -> RainParams:
    """Parameters under which few, long drops fall in still air before a still camera."""
    calm = {"gust": 0.0, "turbulence": 0.0, "shake": 0.0, "wind": 0.0, "density": 3.0, "opacity": 1.0}
    return replace(RainParams(), **{**calm, **changes})


# --- crops and time -----------------------------------------------------------------------------------------------


@example(seed=-3, t=0, rows=(0, 1), columns=(0, 1), pan=-170.0)  # a crop that only flat streaks nearly touch
@settings(max_examples=40)
@given(
    seed=st.integers(-5, 5),
    t=st.integers(0, 10_000),
    rows=st.tuples(st.integers(0, HEIGHT - 1), st.integers(1, HEIGHT)),
    columns=st.tuples(st.integers(0, WIDTH - 1), st.integers(1, WIDTH)),
    pan=st.sampled_from([-170.0, 0.0, 90.0]),
)
def test_any_crop_rendered_alone_is_that_crop_of_the_whole(seed, t, rows, columns, pan):
    rain = RainRenderer(replace(EVERYTHING, pan=pan), seed, HEIGHT, WIDTH)
    frame = noise()
    (top, height), (left, width) = rows, columns
    window = np.s_[top : top + height, left : left + width]
    np.testing.assert_array_equal(rain.render(frame[window], t, top, left), rain.render(frame, t)[window])


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6), radius=st.sampled_from([1.5, 20.0]), wind=st.floats(-1.2, 1.2), cut=st.integers(1, 79)
)
@example(seed=0, radius=20.0, wind=1.1, cut=14)
def test_part_of_a_streak_of_any_width_is_that_part_of_the_whole(seed, radius, wind, cut):
    rng = np.random.default_rng(seed)
    x0, y0, fall = rng.uniform(20, 60, (3, 5))
    streaks = Streaks(x0, y0, x0 + wind * fall / 2, y0 + fall / 2, np.full(5, radius), np.ones(5))
    for number in range(5):
        one = streaks.take(np.array([number]))
        whole = draw_streaks(one, 0, 0, 80, 80)
        np.testing.assert_array_equal(draw_streaks(one, cut, 0, 80 - cut, 80), whole[cut:])
        np.testing.assert_array_equal(draw_streaks(one, 0, 0, cut, 80), whole[:cut])
        np.testing.assert_array_equal(draw_streaks(one, 0, cut, 80, 80 - cut), whole[:, cut:])
        np.testing.assert_array_equal(draw_streaks(one, 0, 0, 80, cut), whole[:, :cut])


def test_streaks_equal_a_plain_drawing_of_them():
    """Against the definition: profile (1 - d^2)^2 across the streak, straight ramps at its ends, pixel by pixel."""
    rng = np.random.default_rng(0)
    n, height, width = 40, 30, 40
    x0, y0 = rng.uniform(-5, width + 5, n), rng.uniform(-5, height + 5, n)
    streaks = Streaks(x0, y0, x0 + rng.normal(0, 9, n), y0 + rng.normal(0, 9, n), rng.uniform(1.5, 4, n), rng.random(n))
    plain = np.zeros((height, width))
    for ax, ay, bx, by, radius, depth in zip(*streaks, strict=True):
        if abs(bx - ax) > abs(by - ay):
            (ax, ay, bx, by), picture = (ay, ax, by, bx), plain.T
        else:
            picture = plain
        if ay > by:
            ax, ay, bx, by = bx, by, ax, ay
        slope = (bx - ax) / (by - ay)
        for i, j in np.ndindex(picture.shape):
            across = (j - ax - slope * (i - ay)) / (radius * np.hypot(1, slope))
            begin, end = (i - ay) / (2 * radius) + 0.5, (by - i) / (2 * radius) + 0.5
            ends = min(max(begin, 0), 1) * min(max(end, 0), 1)
            picture[i, j] += depth * ends * max(0, 1 - across**2) ** 2
    np.testing.assert_allclose(draw_streaks(streaks, 0, 0, height, width), plain, atol=1e-9)


def test_the_rain_is_a_function_of_its_seed_and_of_time():
    frame = noise()
    rain, again = (RainRenderer(EVERYTHING, 7, HEIGHT, WIDTH) for _ in range(2))
    forth = [rain.render(frame, t) for t in range(5)]
    back = [again.render(frame, t) for t in reversed(range(5))]
    np.testing.assert_array_equal(forth, back[::-1])
    assert not np.array_equal(forth[0], forth[1])
    assert not np.array_equal(forth[0], RainRenderer(EVERYTHING, 8, HEIGHT, WIDTH).render(frame, 0))


MOTIONS = [{}, {"pan": 170.0, "wind": 0.0}, {"shake": 2.0}, {"turbulence": 2.0, "gust": 3.0}]
"""Of the air and the camera."""


@pytest.mark.parametrize("motion", MOTIONS, ids=str)
def test_a_drop_moves_by_its_velocity_from_frame_to_frame(motion):
    """In a frame that is exposed throughout, a streak begins where that of the frame before it ended."""
    fps = 200.0
    rain = RainRenderer(
        one_drop(**{"exposure": 1 / fps, "wind": 3.0, "density": 200.0, **motion}), 1, HEIGHT, WIDTH, fps
    )
    for t in (0, 17, 4000):
        now, then = rain._drops.at(t / fps), rain._drops.at((t + 1) / fps)
        inside = (now.y1 > 0) & (now.y1 < HEIGHT) & (now.x1 > 0) & (now.x1 < WIDTH)
        assert inside.sum() > 50
        np.testing.assert_allclose(np.stack([now.x1, now.y1])[:, inside], np.stack([then.x0, then.y0])[:, inside])


def test_the_picture_of_a_drop_moves_with_it():
    fps = 500.0
    params = one_drop(near=4.0, far=4.01, exposure=1 / 200, density=40.0)
    rain = RainRenderer(params, 2, HEIGHT, WIDTH, fps)
    step = np.median(rain._drops._fall) / fps
    now, then = (rain.optical_depth(t, 0, 0, HEIGHT, WIDTH) for t in (100, 105))
    lag = [np.sum(now[: HEIGHT - d] * then[d:]) for d in range(25)]
    assert abs(int(np.argmax(lag)) - 5 * step) < 1.5
    assert now.sum() > 0


def test_wind_turns_the_streaks_and_a_still_camera_keeps_them_upright():
    for wind in (-8.0, 0.0, 8.0):
        streaks = RainRenderer(one_drop(wind=wind, density=100.0), 3, HEIGHT, WIDTH)._drops.at(0.4)
        lean = (streaks.x1 - streaks.x0) / (streaks.y1 - streaks.y0)
        assert np.all(np.sign(lean.round(9)) == np.sign(wind))


def test_a_camera_that_turns_right_moves_the_drops_left():
    for pan in (-20.0, 10.0):
        streaks = RainRenderer(one_drop(pan=pan, density=100.0), 3, HEIGHT, WIDTH)._drops.at(0.4)
        turned = np.radians(pan) / 60  # within the exposure; the focal length is 1.5 frame heights
        np.testing.assert_allclose(streaks.x1 - streaks.x0, -turned * 1.5 * HEIGHT)


def test_drops_are_as_many_as_deep_and_as_fast_as_they_should_be():
    drops = RainRenderer(one_drop(density=9000.0, near=2.0, far=9.0, aperture=0.0), 1, HEIGHT, WIDTH)._drops
    assert len(drops.at(0.0).x0) == round(9000 * WIDTH / HEIGHT)
    depth = 1.5 * HEIGHT / drops._scale
    nearer = np.mean(depth < 6.0)
    assert nearer == pytest.approx((6**3 - 2**3) / (9**3 - 2**3), abs=0.02) and depth.min() > 2 and depth.max() < 9
    diameter = 2000 * np.sqrt(drops._radius**2 - 1.5**2) / drops._scale  # mm, wider than the sharpest
    assert diameter.min() == pytest.approx(0.5 * 1.5, rel=0.01) and diameter.max() == pytest.approx(3 * 1.5, rel=0.01)
    for wide, fast in ((1.0, 4.03), (2.0, 6.49), (3.0, 8.06)):  # mm, m/s: measured by Gunn and Kinzer, 1949
        alike = np.abs(diameter - wide) < 0.02
        assert alike.any()
        np.testing.assert_allclose((drops._fall / drops._scale)[alike], fast, rtol=0.05)


def test_near_drops_are_faster_and_blurred_out_of_focus():
    def drops(**changes: float):
        return RainRenderer(one_drop(density=9000.0, near=0.5, **changes), 1, HEIGHT, WIDTH)._drops

    pinhole, open_lens = drops(aperture=0.0), drops(aperture=0.05)
    near = pinhole._scale > np.quantile(pinhole._scale, 0.99)
    assert pinhole._fall[near].mean() > 2 * pinhole._fall[~near].mean()
    wider = open_lens._radius / pinhole._radius
    assert wider[near].mean() > 1.4 and wider[~near].mean() < 1.02
    fainter = open_lens._depth / pinhole._depth
    np.testing.assert_allclose(wider * fainter, 1)


def test_drift_is_the_integral_of_a_bounded_velocity():
    drift = Drift.draw(1.0, 2.0, (1.0, 3.0), np.random.default_rng(0))
    times = np.linspace(0, 20, 20_001)
    velocity = np.gradient([drift.position(t) for t in times], times)
    assert drift.position(0) == 0
    assert np.abs(velocity).max() <= drift.fastest == 3.0
    assert np.ptp(velocity) > 1


@pytest.mark.parametrize("motion", MOTIONS, ids=str)
def test_drops_give_way_to_the_next_outside_the_picture(motion):
    """What is seen only moves: where a drop jumps, nearly nothing is seen of it the moment before and the one after."""
    params = one_drop(**{"density": 300.0, "wind": 2.0, "exposure": 1 / 100, "near": 1.0, **motion})
    drops = RainRenderer(params, 5, HEIGHT, WIDTH)._drops

    def jumped(early: float, late: float) -> np.ndarray:
        now, then = drops.at(early), drops.at(late)
        return (np.abs(then.y0 - now.y0) > HEIGHT / 2) | (np.abs(then.x0 - now.x0) > WIDTH / 2)

    jumps = 0
    for begin in np.arange(0, 0.15, 0.0025):
        for number in np.flatnonzero(jumped(begin, begin + 0.0025)):
            early, late = begin, begin + 0.0025
            while late - early > 1e-8:
                middle = (early + late) / 2
                early, late = (early, middle) if jumped(early, middle)[number] else (middle, late)
            for moment in (early, late):
                drop = drops.at(moment).take(np.array([number]))
                assert draw_streaks(drop, 0, 0, HEIGHT, WIDTH).max() < 0.01 * drop.depth
            jumps += 1
    assert jumps > 50


# --- light --------------------------------------------------------------------------------------------------------


def test_rain_brightens_the_dark_and_leaves_the_rest():
    rain = RainRenderer(PRESETS["medium"], 0, HEIGHT, WIDTH)
    frame = grey(60)
    change = rain.render(frame, 3).astype(int) - frame
    assert change.min() == 0 and change.max() > 10
    untouched = rain.optical_depth(3, 0, 0, HEIGHT, WIDTH) == 0
    assert untouched.any() and not change[untouched].any()


def test_without_drops_every_grey_level_comes_back():
    frame = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    np.testing.assert_array_equal(RainRenderer(replace(RainParams(), density=0), 0, 16, 16).render(frame, 0), frame)


def test_rain_is_composited_in_linear_light():
    """A drop that hides half: the mean of the linear values, not of the grey levels."""
    params = replace(one_drop(), brightness=1.0, opacity=20.0, density=20.0, near=1.0, far=1.01)
    rain = RainRenderer(params, 0, HEIGHT, WIDTH, ambient=(1.0, 1.0, 1.0))
    out = rain.render(grey(0), 0)
    depth = rain.optical_depth(0, 0, 0, HEIGHT, WIDTH)
    half = np.abs(depth - 1) < 0.02
    assert half.any()
    assert np.abs(out[half].astype(int) - 188).max() <= 2  # sRGB of one half


def test_colours_follow_the_light_around():
    red = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    red[: HEIGHT // 2] = (200, 60, 60)
    light = ambient_light(red)
    assert light[0] > light[1] == pytest.approx(light[2])
    rain = RainRenderer(PRESETS["heavy"], 0, HEIGHT, WIDTH, ambient=light)
    below = rain.render(red, 0)[HEIGHT // 2 :].reshape(-1, 3).mean(0)
    assert below[0] > below[1] > 0


def test_ambient_light_has_half_of_the_colour():
    """Linear, (200, 60, 60) is 0.5776, 0.0452, 0.0452, whose mean is 0.2227."""
    frame = np.full((8, 12, 3), (200, 60, 60), np.uint8)
    assert ambient_light(frame) == pytest.approx((0.4001, 0.1339, 0.1339), abs=2e-4)


def test_ambient_light_weighs_bright_areas():
    frame = np.zeros((40, 40, 3), np.uint8)
    frame[:4] = 255
    assert ambient_light(frame) == pytest.approx((1, 1, 1), abs=0.01)
    assert ambient_light(np.zeros((8, 8, 3), np.uint8)) == (0, 0, 0)


def test_veil_covers_more_above_and_splashes_stay_below_the_horizon():
    dry = replace(RainParams(), density=0)
    veiled = RainRenderer(replace(dry, veil=1.0), 0, HEIGHT, WIDTH).render(grey(10), 0).astype(int)
    assert veiled[:20].mean() > veiled[-20:].mean() + 20 > 30
    splashed = RainRenderer(replace(dry, splash=100.0), 0, HEIGHT, WIDTH).render(grey(10), 0).astype(int) - 10
    assert splashed[: HEIGHT // 2].max() == 0 < splashed[HEIGHT // 2 :].max()


def test_splashes_and_veil_leave_the_drops_where_they_are():
    plain, wet = (RainRenderer(replace(PRESETS["light"], splash=s), 0, HEIGHT, WIDTH)._drops.at(1.0) for s in (0, 50))
    np.testing.assert_array_equal(plain.x0, wet.x0)


# --- parameters ---------------------------------------------------------------------------------------------------


def test_presets_are_ordered():
    means = [
        np.mean(
            [
                RainRenderer(PRESETS[name], seed, 180, 320).render(np.full((180, 320, 3), 70, np.uint8), 9)
                for seed in range(3)
            ]
        )
        for name in ("light", "medium", "heavy")
    ]
    assert 70 < means[0] < means[1] < means[2]


@pytest.mark.parametrize("field", [field.name for field in fields(RainParams)])
def test_a_parameter_out_of_range_is_named(field):
    for wrong in (-1e9, 1e9, float("nan"), "much", True):
        with pytest.raises(CSDError, match=f"rain parameter {field} = "):
            replace(RainParams(), **{field: wrong})


def test_parameters_may_be_numbers_of_numpy():
    assert RainParams(density=np.float32(500), near=np.int64(2)) == RainParams(density=500.0, near=2)


@pytest.mark.parametrize("wrong", [np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint16), np.zeros((4, 4))])
def test_ambient_light_of_what_is_no_frame_is_one_line(wrong):
    with pytest.raises(CSDError, match=r"give \(H, W, 3\) uint8"):
        ambient_light(wrong)


def test_near_must_be_less_than_far():
    with pytest.raises(CSDError, match="near = 5: must be less than far = 4"):
        RainParams(near=5, far=4)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), name=st.sampled_from(sorted(PRESETS)))
def test_variations_are_valid_and_repeatable(seed, name):
    one, two = (random_params(name, np.random.default_rng(seed)) for _ in range(2))
    assert one == two != PRESETS[name]


def test_wrong_names_get_a_hint():
    with pytest.raises(CSDError, match=r"'nturian' is unknown.*did you mean nturain"):
        find_preset("nturian")
    with pytest.raises(CSDError, match=r"'winf' is unknown.*did you mean wind"):
        override(RainParams(), ["winf=3"])
    with pytest.raises(CSDError, match="write wind=NUMBER"):
        override(RainParams(), ["wind=strong"])
    assert override(RainParams(), ["wind=3", "veil=0.5"]) == replace(RainParams(), wind=3, veil=0.5)


def test_what_cannot_be_rendered_is_refused():
    rain = RainRenderer(RainParams(), 0, HEIGHT, WIDTH)
    for frame, top, left in ((noise(), 1, 0), (noise()[:5], HEIGHT - 4, 0), (noise()[:, :5], 0, -1)):
        with pytest.raises(CSDError, match=f"the frames of {WIDTH}x{HEIGHT}"):
            rain.render(frame, 0, top, left)
    with pytest.raises(CSDError, match="uint8"):
        rain.render(noise().astype(np.float32), 0)
    for wrong in ({"fps": 0.0}, {"height": 0}, {"ambient": (1.0, 2.0)}, {"ambient": (float("nan"), 0, 0)}):
        with pytest.raises(CSDError):
            RainRenderer(**{"params": RainParams(), "seed": 0, "height": HEIGHT, "width": WIDTH, **wrong})


# --- statistics ---------------------------------------------------------------------------------------------------


def test_nturain_preset_has_nturains_statistics(shared):
    got = statistics(PRESETS["nturain"], load_samples(shared / "data" / "clean_clips"), seed=1)
    for name in ("mean", "brighter", "darker"):
        assert getattr(got, name) == pytest.approx(getattr(NTURAIN, name), rel=0.15), name
    assert abs(got.median) < 0.5


@example(darker=[40], brighter=[30, 20, 20, 20, 10, 70, 30])  # shares that sum to less than a half
@given(darker=st.lists(st.integers(0, 255), max_size=9), brighter=st.lists(st.integers(0, 255), min_size=1, max_size=9))
def test_statistics_are_those_of_all_differences(darker, brighter):
    """By numpy, on differences in pairs of equal numbers, which have their median between two levels."""
    rainy = np.array([*darker, *[0] * len(darker), *brighter, *brighter], np.uint8)
    clean = np.array([*[0] * len(darker), *darker, *[0] * (2 * len(brighter))], np.uint8)
    difference = rainy.astype(float) - clean
    expected = difference.mean(), np.median(difference), *(100 * (s * difference > 10).mean() for s in (1, -1))
    assert statistics_of(difference_counts(rainy, clean)) == pytest.approx(expected)


def test_calibration_finds_the_rain_that_made_the_statistics(tmp_path):
    (tmp_path / "clip").mkdir()
    for i in range(4):
        picture = cv2.resize(noise(i), (240, 180), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(tmp_path / "clip" / f"{i}.png"), picture // 2)
    samples = load_samples(tmp_path)
    secret = replace(PRESETS["nturain"], density=1100.0, opacity=0.06)
    goal = statistics(secret, samples, seed=3)
    fitted, reached = calibrate(PRESETS["nturain"], samples, goal, seed=3)
    assert reached.mean == pytest.approx(goal.mean, rel=0.1)
    assert fitted.density == pytest.approx(secret.density, rel=0.3)
