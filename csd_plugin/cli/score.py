"""Score frames against the ground truth: PSNR and SSIM on 8-bit luma, as in the published NTURain tables, and on RGB.

RESULTS and GT are folders of frames, or folders of clip folders. GT and RAIN may also be NTURain's root: then its test
clips are used, or its training or real clips if RESULTS holds those. Clips pair by name, frames by name or number.

Real rain has no truth. Without --truth, two metrics are measured: NIQE (how natural frames look; needs the extra
'metrics') and the warping error (how much the video flickers; motion is estimated on --input, or else on RESULTS). For
both, and for LPIPS (how different result and truth look to a network), lower is better. Note that a blurred video does
not flicker either.

examples:
  csd score results/a1 --truth NTURain/Dataset_Testing_Synthetic/a1_GT
  csd score results/ --truth NTURain --input NTURain --published --out scores/student1.json
  csd score distilled/ --truth NTURain --baseline scores/student1.json
  csd score results/a1 --truth NTURain --metrics warping lpips --lpips-weights alexnet-owt-7be5be79.pth
  csd score results/ra1 --input NTURain --out scores/ra1.json
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from functools import partial

from csd_plugin.cli.flags import jobs, path_given, whole
from csd_plugin.errors import CSDError
from csd_plugin.metrics import METRICS, WITHOUT_TRUTH


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", metavar="RESULTS", type=path_given, help="frames to score")
    parser.add_argument("--truth", metavar="GT", type=path_given, help="the ground truth")
    parser.add_argument(
        "--input", metavar="RAIN", type=path_given, help="the rainy frames, scored as a row of their own"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help=f"further metrics: {', '.join(METRICS)}, or one of another package (default: none with a truth, else "
        f"{' '.join(WITHOUT_TRUTH)})",
    )
    parser.add_argument(
        "--lpips-weights",
        metavar="FILE.pth",
        type=path_given,
        help="torchvision's AlexNet (default: torch's own cache)",
    )
    parser.add_argument(
        "--skip",
        metavar=("FIRST", "LAST"),
        type=whole(0),
        nargs=2,
        default=(0, 0),
        help="leave out FIRST frames at the start and LAST at the end of each clip",
    )
    parser.add_argument(
        "--out", metavar="FILE.json", type=path_given, help="write the scores, with .csv and .md next to it"
    )
    parser.add_argument(
        "--baseline", metavar="FILE.json", type=path_given, help="show the gain over these scores (default: the input)"
    )
    parser.add_argument("--published", action="store_true", help="show published NTURain numbers for the same clips")
    parser.add_argument("--name", help="name of the results in tables (default: their folder's)")
    parser.add_argument("--jobs", metavar="N", type=jobs, help="threads (default: one per processor)")


def run(args: argparse.Namespace) -> int:
    from csd_plugin.atomic import refuse_inputs
    from csd_plugin.inference.memory import keep_freed_memory
    from csd_plugin.metrics.metric import open_metrics
    from csd_plugin.metrics.results import files_written, load_results, refuse_strangers, save
    from csd_plugin.metrics.scores import Result
    from csd_plugin.metrics.scoring import score_folders
    from csd_plugin.metrics.table import comparison_table, other_frames

    if args.out and args.out.suffix != ".json":
        raise CSDError(f"--out {args.out}: the name must end in .json")
    if args.out:
        refuse_inputs(files_written(args.out), [path for path in (args.baseline, args.lpips_weights) if path])
        refuse_strangers(args.out)
    keep_freed_memory()
    baseline = load_results(args.baseline) if args.baseline else None
    names = args.metrics if args.metrics is not None else [] if args.truth else WITHOUT_TRUTH
    if any(METRICS[name].uses_torchvision for name in names if name in METRICS):
        from csd_plugin.compat import prepare_imports

        with suppress(ImportError):  # the metric reports a missing torchvision itself
            prepare_imports()
    options = {"lpips": {"weights": args.lpips_weights}}
    metrics = open_metrics(names, has_truth=args.truth is not None, options=options)
    skip, dataset = tuple(args.skip), (args.truth or args.input or args.results).resolve().name
    score = partial(score_folders, truth=args.truth, guide=args.input, metrics=metrics, skip=skip, jobs=args.jobs)

    scores = score(args.results)
    name = " ".join((args.name or args.results.resolve().name).split())  # a table has it in one line
    result = Result(name, dataset, scores)
    difference = other_frames(result, baseline)
    if difference:
        raise CSDError(
            f"--baseline {args.baseline} has scores of different frames: {difference}; score the same frames (--skip)"
        )
    rows = [row for row in (baseline, result) if row]
    if args.input:
        rainy = Result("rainy input", dataset, score(args.input, clips=list(scores.clips), of_input=True))
        rows = [rainy, *rows]
        baseline = baseline or rainy

    table = comparison_table(rows, baseline=baseline, published=args.published)
    print(table)
    if args.out:
        print(f"\nwritten: {save(args.out, result, table)}, with .csv and .md next to it")
    return 0
