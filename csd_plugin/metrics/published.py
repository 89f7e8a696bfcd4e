"""The numbers that were published for the NTURain test clips: PSNR in dB and SSIM on the 8-bit luma, every frame.

From "Collaborative Spatial-Temporal Distillation for Efficient Video Deraining" (ICME 2023): the teacher and the
students from its Table 1, the other methods from its Table 3, which gives the four clips a1 .. a4 only.
"""

from __future__ import annotations

from csd_plugin.metrics.protocols import Quality

PROTOCOL = "nturain_y"

_CLIPS = ("a1", "a2", "a3", "a4", "b1", "b2", "b3", "b4")


def _row(psnr: str, ssim: str) -> dict[str, Quality]:
    """Clip -> Quality, from two lines as they are printed; clips beyond the end of the lines are not published."""
    pairs = zip(psnr.split(), ssim.split(), strict=True)
    return {clip: Quality(float(p), float(s)) for clip, (p, s) in zip(_CLIPS, pairs, strict=False)}


PUBLISHED: dict[str, dict[str, Quality]] = {
    "PReNet": _row(
        "31.40 28.58 30.57 33.62",
        "0.9505 0.9291 0.9375 0.9658",
    ),
    "SpacCNN": _row(
        "30.57 31.29 30.63 35.30",
        "0.9334 0.9356 0.9247 0.9620",
    ),
    "S2VD": _row(
        "36.39 33.06 35.75 39.53",
        "0.9658 0.9519 0.9564 0.9779",
    ),
    "teacher": _row(
        "37.60 34.94 36.58 40.86 38.25 38.90 40.07 38.33",
        "0.9786 0.9734 0.9734 0.9853 0.9762 0.9742 0.9824 0.9761",
    ),
    "student1": _row(
        "35.49 31.28 34.49 37.63 35.92 34.67 36.93 34.96",
        "0.9723 0.9611 0.9651 0.9787 0.9704 0.9589 0.9741 0.9681",
    ),
    "student1 + CSD": _row(
        "36.81 33.33 35.63 39.40 37.19 36.18 38.72 36.33",
        "0.9757 0.9686 0.9689 0.9829 0.9739 0.9645 0.9791 0.9726",
    ),
    "student2": _row(
        "35.35 31.91 34.36 37.78 35.80 34.60 36.73 35.01",
        "0.9721 0.9626 0.9644 0.9789 0.9699 0.9563 0.9739 0.9677",
    ),
    "student2 + CSD": _row(
        "36.50 31.99 35.44 38.24 36.71 36.02 38.02 36.22",
        "0.9748 0.9645 0.9683 0.9816 0.9729 0.9607 0.9783 0.9722",
    ),
    "student3": _row(
        "28.78 25.71 28.93 30.47 31.21 27.41 26.29 28.80",
        "0.9442 0.9201 0.9305 0.9561 0.9522 0.9511 0.9468 0.9414",
    ),
    "student3 + CSD": _row(
        "31.18 27.07 30.51 32.46 32.76 33.86 33.08 32.54",
        "0.9520 0.9305 0.9358 0.9618 0.9556 0.9600 0.9597 0.9455",
    ),
}
"""Row name in the tables -> clip -> Quality."""
