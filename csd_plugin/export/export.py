"""Exports a network to a file for another runtime, which is run and compared with torch before it gets its name."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from csd_plugin.atomic import draft_folder, link_or_copy
from csd_plugin.errors import CSDError, cannot_write
from csd_plugin.export.quantize import quantise
from csd_plugin.export.writers import FORMATS, Run
from csd_plugin.extras import check_temporary_folder
from csd_plugin.inference.backends import INCOMPLETE
from csd_plugin.inference.facts import Facts, study
from csd_plugin.inference.graph import DTYPES, OPSET, Computing, ready, to_onnx

TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
"""The largest difference of a file's frames from torch's in fp32, where 1 is white: rounding in each precision through
some 20 layers. int8 has no bound; its error is reported."""


@dataclass(frozen=True)
class Exported:
    """The written file, and its comparison with torch in fp32 on `windows` windows.

    Attributes:
        max_difference: the largest difference, where 1 is white.
        psnr: in dB with white as peak, infinite for equal frames.
    """

    path: Path
    title: str
    precision: str
    facts: Facts
    num_bytes: int
    windows: int
    max_difference: float
    psnr: float


def files_written(output: Path) -> list[Path]:
    """The files that `export_network` writes: the file, and the weights of OpenVINO IR next to it."""
    return [output, *([output.with_suffix(".bin")] if output.suffix.lower() == ".xml" else [])]


def export_network(
    network: nn.Module,
    output: str | Path,
    *,
    precision: str = "fp32",
    opset: int | None = None,
    license: str = "not stated",
    adapted: str = "",
    windows: Sequence[Tensor] = (),
    calibration: Sequence[Tensor] = (),
) -> Exported:
    """Write a network for any batch size, height and width, and check the result.

    The file's inputs and outputs are float32, whatever its precision. It is opened and run as by its users, on
    `windows` and on a batch of an odd size, and only appears under its name if its frames match torch's.

    Args:
        output: the name says the kind: .onnx, .xml (OpenVINO IR, with its weights next to it in .bin) or .pt2.
        precision: 'fp32', 'fp16', for .pt2 also 'bf16', or 'int8' (.onnx and .xml).
        opset: for .onnx, by default `inference.graph.OPSET`; the other kinds have none.
        license: of the weights, for the file's metadata.
        adapted: the clips that the network was adapted to, for the metadata.
        windows: (B, T, 3, H, W) float32 in [0, 1] to compare on; by default synthetic ones.
        calibration: the windows from which int8 takes its value ranges.

    Raises:
        CSDError: the kind of file, precision or opset is not supported, a package is not installed, calibration is
            missing for int8 or given for another precision, the folder or one for temporary files does not exist, or
            frames differ.
    """
    output = Path(output)
    if output.suffix.lower() not in FORMATS:
        kinds = ", ".join(f"{suffix} ({form.title})" for suffix, form in FORMATS.items())
        raise CSDError(f"{output}: cannot export to '{output.suffix}'; give a name that ends in one of {kinds}")
    form = FORMATS[output.suffix.lower()]
    if precision not in form.precisions:
        raise CSDError(f"{form.title} can be written in {', '.join(form.precisions)}, not in {precision}")
    if precision == "int8" and not calibration:
        raise CSDError("int8 needs frames to find the value range of every layer: give a clip with --calibrate")
    if calibration and precision != "int8":
        raise CSDError(
            f"--calibrate is for int8, but {precision} was asked for: add --int8, or use --check to compare on the clip"
        )
    if opset is not None and not form.has_opset:
        raise CSDError(f"{output}: {form.title} has no ONNX opset; leave --opset out, or write .onnx")
    if not output.parent.is_dir():
        raise CSDError(f"{output}: the folder {output.parent} does not exist; make it first")
    check_temporary_folder()

    opset = OPSET if opset is None else opset
    facts = replace(study(network, license), adapted=adapted)
    reference = ready(network)
    with _beside(output) as temporary:
        if precision == "int8" and form.write_int8:
            ranges = [_to_cells(window, facts.divisor) for window in calibration]
            form.write_int8(quantise(to_onnx(reference, facts, opset=opset), ranges), temporary)
        else:
            form.write(ready(network, DTYPES[precision]), facts, opset, temporary)
        shown = [_to_cells(window, facts.divisor) for window in windows or _made_up(facts)]
        try:
            difference, error, count = _compare(form.open(temporary), reference, shown)
        except CSDError as fault:
            raise CSDError(
                f"{output}: {str(fault).removeprefix(f'{temporary}: ')}; nothing was written; sizes that the forward "
                f"of {type(network).__name__} computes by int(..) or round(..) stay those of one frame: use //"
            ) from fault
        tolerance = TOLERANCE.get(precision, math.inf)
        if not difference <= tolerance:
            raise CSDError(
                f"{output}: the exported network's frames differ from torch's by up to {difference:.2g}, more than "
                f"the {tolerance:g} of {precision}; nothing was written; try another --opset or --dtype"
            )
        num_bytes = sum(path.stat().st_size for path in temporary.parent.iterdir())
    psnr = -10 * math.log10(error) if error else math.inf
    return Exported(output, form.title, precision, facts, num_bytes, count, difference, psnr)


def _compare(run: Run, reference: Computing, windows: Sequence[Tensor]) -> tuple[float, float, int]:
    """Largest difference and mean squared error over the windows, and the number of windows."""
    largest, squared, numbers, count = 0.0, 0.0, 0, 0
    for window in windows:
        with torch.inference_mode():
            expected = reference(window.clone())  # a network may change its frames in place
        result = run(window)
        if result.shape != expected.shape:
            raise CSDError(f"the exported network returns {tuple(result.shape)}, expected {tuple(expected.shape)}")
        difference = (result.clamp(0, 1) - expected.clamp(0, 1)).abs()
        # NaN is a difference, too, and Python's max() would drop it.
        largest = max(largest, float(difference.max()) if bool(result.isfinite().all()) else math.inf)
        squared, numbers = squared + float(difference.double().square().sum()), numbers + difference.numel()
        count += len(window)
    return largest, squared / numbers, count


def _to_cells(window: Tensor, divisor: int) -> Tensor:
    """(B, T, 3, H, W) cut to multiples of `divisor`. Raises CSDError if nothing is left."""
    height, width = (length // divisor * divisor for length in window.shape[-2:])
    if not (height and width):
        raise CSDError(
            f"the frames are {window.shape[-1]}x{window.shape[-2]}, the network needs at least {divisor}x{divisor}; "
            f"give a clip of larger frames"
        )
    return window[..., :height, :width]


def _made_up(facts: Facts) -> list[Tensor]:
    """Smooth moving pictures with noise, in two sizes and batches, all of which the file must accept.

    For sequences, in two lengths.
    """
    generator = torch.Generator().manual_seed(0)
    windows = []
    longer = facts.num_seen + 3 if facts.interface.gives_clip else facts.num_seen
    for batch, frames, height, width in ((1, facts.num_seen, 48, 64), (2, longer, 37, 53)):
        coarse = torch.rand(batch, frames * 3, 6, 8, generator=generator)
        pictures = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
        noise = 0.05 * torch.randn(pictures.shape, generator=generator)
        windows.append((pictures + noise).clamp(0, 1).unflatten(1, (frames, 3)))
    return windows


@contextlib.contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """A path in a hidden folder next to the output; files written there are moved to their place if all went well."""
    try:
        with draft_folder(output) as folder:
            temporary = folder / output.name
            yield temporary
            _take_their_places(folder, output, [path for path in folder.iterdir() if path != temporary])
    except OSError as error:
        raise cannot_write(output, error) from error


def _take_their_places(folder: Path, output: Path, others: Sequence[Path]) -> None:
    """Move the output, and other files that belong to it, from a folder of drafts to their places.

    Files of two exports do not match, and their readers may not notice. So signals are delayed until all are in place;
    and if the process is killed in between, the output says that it is not complete, and can be exported again.

    Raises OSError; as long as no other file has been replaced, the earlier output is then put back.
    """
    files = {path: output.with_name(path.name) for path in (*others, folder / output.name)}
    earlier = folder / "earlier"
    if others:
        if output.exists():
            link_or_copy(output, earlier)
        (folder / "incomplete").write_text(INCOMPLETE, encoding="utf-8")
        files = {folder / "incomplete": output, **files}
    try:
        for draft, path in files.items():
            draft.replace(path)
    except KeyboardInterrupt:
        for draft, path in files.items():
            if draft.exists():
                draft.replace(path)
        raise
    except OSError:
        if others and all(path.exists() for path in others):
            earlier.replace(output) if earlier.exists() else output.unlink(missing_ok=True)
        raise
