"""Write a trained network as a file that runs without this package.

The ending of OUT sets the format: .onnx (ONNX Runtime and others), .xml (OpenVINO IR, with a .bin next to it) or .pt2
(torch.export). All take (batch, frames, 3, height, width), float32 RGB in [0, 1], and return the clean centre frames.
The file's metadata give the number of frames, what height and width must be multiples of (`divisor`), and how to pad
frames and a clip at their ends. The file is run and compared with torch before it is saved under its name. `csd derain
--model` takes .onnx and .xml.

examples:
  csd export net_g_latest.pth student.onnx
  csd export net_g_latest.pth student.xml --dtype fp16 --check rain.mp4
  csd export net_g_latest.pth student_int8.onnx --int8 --calibrate rainy_frames/
"""

from __future__ import annotations

import argparse
from pathlib import Path

from csd_plugin.cli.flags import path_given, whole
from csd_plugin.errors import CSDError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="the network's checkpoint, or a name in `csd models`")
    parser.add_argument("output", metavar="OUT", type=path_given, help="file to write: .onnx, .xml or .pt2")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        "--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="number format of the layers (default fp32)"
    )
    precision.add_argument("--int8", action="store_true", help="quantise to 8-bit integers; needs --calibrate")
    parser.add_argument(
        "--calibrate",
        metavar="CLIP",
        type=path_given,
        help="rainy video or folder from which --int8 takes its value ranges",
    )
    parser.add_argument(
        "--check", metavar="CLIP", type=path_given, help="rainy clip to compare on (default: made-up frames)"
    )
    parser.add_argument("--opset", type=whole(1), metavar="N", help="version of the ONNX operators (default 18)")
    parser.add_argument(
        "--license",
        metavar="TEXT",
        help="license of the weights, for the metadata (known for networks that come with csd)",
    )


def outputs(args: argparse.Namespace) -> list[Path]:
    return [args.output]


def run(args: argparse.Namespace) -> None:
    from csd_plugin.archs.checkpoint import load_network
    from csd_plugin.archs.provenance import adapted_to, facts_in
    from csd_plugin.atomic import refuse_inputs, refuse_strangers
    from csd_plugin.data.images import files_of
    from csd_plugin.data.video.pipes import is_single_pass
    from csd_plugin.export.export import export_network, files_written
    from csd_plugin.export.writers import FORMATS
    from csd_plugin.inference.facts import study
    from csd_plugin.inference.files import sample_windows
    from csd_plugin.weights import find_checkpoint, under_todays_keys

    for flag, clip in (("--calibrate", args.calibrate), ("--check", args.check)):
        if clip is not None and is_single_pass(clip):
            raise CSDError(f"{flag} {clip}: frames of a camera or pipe can be read only once; give a video or a folder")
    if args.license is not None and any("\ud800" <= letter <= "\udfff" for letter in args.license):
        raise CSDError("--license: not valid text; give it in the encoding of this terminal")
    checkpoint = find_checkpoint(args.checkpoint)
    written = files_written(args.output)
    clips = [file for clip in (args.calibrate, args.check) if clip for file in files_of(clip)]
    refuse_inputs(written, [checkpoint, *clips])
    form = FORMATS.get(args.output.suffix.lower())
    if form is not None:  # an unknown ending is the export's to refuse
        refuse_strangers(args.output, form.sign, written[1:])
    network, known = load_network(checkpoint), under_todays_keys(facts_in(checkpoint))
    facts = study(network)
    calibration = sample_windows(args.calibrate, facts) if args.calibrate else []
    # int8 is compared on frames that it was not calibrated on.
    windows = sample_windows(args.check, facts) if args.check else calibration[1::2]
    exported = export_network(
        network,
        args.output,
        precision="int8" if args.int8 else args.dtype,
        opset=args.opset,
        license=args.license if args.license is not None else str(known.get("license", "not stated")),
        adapted=adapted_to(known),
        windows=windows,
        calibration=calibration if args.check or len(calibration) < 2 else calibration[::2],
    )
    print(
        f"{exported.path}: {exported.title}, {facts.preset}, window of {facts.num_seen}, {exported.precision}, "
        f"{exported.num_bytes / 1000:.0f} kB"
    )
    print(
        f"against torch in fp32, {exported.windows} windows: largest difference {exported.max_difference:.2g}, "
        f"PSNR {exported.psnr:.1f} dB"
    )
