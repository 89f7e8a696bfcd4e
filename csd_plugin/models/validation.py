"""One validation for every model: any device, any number of sets, clips with or without ground truth."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from basicsr.metrics import calculate_metric
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from csd_plugin import compat
from csd_plugin.archs.interface import Interface
from csd_plugin.data.images import write_png
from csd_plugin.devices import exact_float32
from csd_plugin.distill.processes import are_several
from csd_plugin.errors import CSDError, first_line
from csd_plugin.inference.folding import fold
from csd_plugin.metrics import results
from csd_plugin.metrics.protocols import score_frame, to_uint8
from csd_plugin.metrics.scores import Scores
from csd_plugin.metrics.table import WITHOUT_TRUTH, share
from csd_plugin.models.batches import Item, check_pair_sizes, read_test_item
from csd_plugin.models.mixing import FAILURES, IMAGES, check_metric_size, keywords_of
from csd_plugin.stopping import REQUEST


class ValidationMixin:
    """`validation()` as the toolbox calls it, for models with `net_g` (and `net_g_ema`).

    Frames go through the network `val.batch_size` at a time (default 2; a sequence network processes that many frames
    together). Both protocols are scored if there is ground truth, and so are the metrics of the toolbox in
    `val.metrics`: without ground truth, those that do not need it, and those that compare with the previous frame (see
    `metrics.registered`). Writes `<set>.json`, `.csv` and `.md` next to the log; with `val.save_img`, also the frames,
    where the toolbox puts them.
    """

    opt: dict[str, Any]
    device: torch.device
    net_g: nn.Module

    def validation(
        self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool = False
    ) -> None:
        dataset = dataloader.dataset
        name = dataset.opt["name"]  # type: ignore[attr-defined]
        if self.opt["is_train"]:  # the toolbox's last validation counts one iteration too many
            current_iter = min(int(current_iter), int(self.opt["train"]["total_iter"]))
        network = getattr(self, "net_g_ema", None) or self.get_bare_model(self.net_g)  # type: ignore[attr-defined]
        was_training = network.training
        network.eval()
        try:
            with compat.uncompiled(network):  # whole frames, whose every size would be compiled again
                mine = self._score_dataset(self._fastest(network), dataset, name, current_iter, save_img)
        finally:
            network.train(was_training)
        frames = _gather(mine)
        if get_dist_info()[0] == 0 and frames:
            self._report(name, frames, current_iter, tb_logger)

    def _score_dataset(
        self, network: nn.Module, dataset: Dataset, name: str, current_iter: int | str, save_img: bool
    ) -> list[dict[str, Any]]:
        """This process's share of the frames: index, clip, frame, and scores, which may be empty."""
        rank, world_size = get_dist_info()
        size = len(dataset)  # type: ignore[arg-type]
        # consecutive frames: neighbours share decoded frames, and sequence networks need them
        first, end = size * rank // world_size, size * (rank + 1) // world_size
        # plus the frame before it, of another process, if a metric needs that
        lead = int(0 < first < end and "previous" in self._wanted())
        indices = range(first - lead, end)
        interface = self.interface_of(network)  # type: ignore[attr-defined]
        scored = []
        before = _Before()
        hidden = True if rank or not self.opt["val"].get("pbar", True) else None  # None: only on a terminal
        with tqdm(total=len(indices), unit="frame", desc=name, disable=hidden) as bar:
            for items in _batches(dataset, indices, self.opt["val"].get("batch_size", 2), interface):
                if self.opt["is_train"] and REQUEST.signal and not self.opt["dist"]:
                    # several processes stop together, after their next step
                    self.save_and_stop(int(current_iter), REQUEST.signal)  # type: ignore[attr-defined]
                with _naming(f"{name}, clip {items[0].clip}, frame {items[0].frame}"):
                    outputs = self._predict(network, torch.stack([item.lq for item in items]))
                for item, output in zip(items, outputs, strict=True):
                    result = to_uint8(output)
                    truth = None if item.gt is None else to_uint8(item.gt)
                    guide = to_uint8(item.lq[len(item.lq) // 2]) if truth is None else truth
                    given = before.step(item.run, result, guide)
                    if item.index < first:
                        continue
                    given |= {"img": result} if truth is None else {"img": result, "img2": truth}
                    scored.append(
                        {
                            "index": item.index,
                            "clip": item.clip,
                            "frame": item.frame,
                            "score": {} if truth is None else score_frame(result, truth),
                            "metrics": self._toolbox_metrics(given, f"clip {item.clip}, frame {item.frame}"),
                        }
                    )
                    if save_img:
                        path = self._image_path(name, item.clip, item.frame, current_iter)
                        path.parent.mkdir(parents=True, exist_ok=True)
                        write_png(path, result)
                bar.update(len(items))
        return scored

    def _fastest(self, network: nn.Module) -> nn.Module:
        """If torch's 3-D convolutions are slow, the same network without them; see `fold`."""
        slow = self.device.type == "cpu" and any(isinstance(layer, nn.Conv3d) for layer in network.modules())
        known = hasattr(network, "num_frame") and self.interface_of(network).one_length  # type: ignore[attr-defined]
        return fold(network) if slow and known else network

    @torch.no_grad()
    def _predict(self, network: Any, windows: Tensor) -> Tensor:
        """(B, T, 3, H, W), of consecutive frames -> (B, 3, H, W) on the CPU; longer windows are cut to their middle."""
        interface = self.interface_of(network)  # type: ignore[attr-defined]
        with exact_float32():
            clips, num_target = interface.as_clips(windows)
            return interface.run(network, clips.to(self.device), num_target).float().cpu()

    def _wanted(self) -> set[str]:
        """The images that any metric in `val.metrics` names."""
        metrics = self.opt["val"].get("metrics") or {}
        return {image for opt in metrics.values() for image in _images_of(opt["type"])}

    def _toolbox_metrics(self, given: Mapping[str, Any], where: str) -> dict[str, float]:
        """The values of `val.metrics`, for metrics whose images (RGB) are all given.

        Raises CSDError if a metric refuses this frame size; other failures of a metric mean that it has no value.
        """
        values = {}
        for metric, opt in (self.opt["val"].get("metrics") or {}).items():
            wanted = _images_of(opt["type"])
            if wanted <= given.keys():
                try:
                    value = _number(calculate_metric({name: given[name][..., ::-1] for name in wanted}, dict(opt)))
                except FAILURES as error:
                    self._explain(metric, opt, given["img"].shape[:2], where, error)
                    continue
                if value is not None:
                    values[metric] = value
        return values

    def _explain(
        self, metric: str, opt: Mapping[str, Any], size: tuple[int, int], where: str, error: Exception
    ) -> None:
        """Raise CSDError if a metric failed because of the frame size; otherwise warn, and go on."""
        try:
            check_metric_size(METRIC_REGISTRY.get(opt["type"]), size, keywords_of(opt), where)
        except CSDError as reason:
            raise CSDError(f"val.metrics.{metric}: {reason}") from error
        get_root_logger().warning(f"val.metrics.{metric}: {where} has no value: {first_line(error)}")

    def _image_path(self, dataset_name: str, clip: str, frame: str, current_iter: int | str) -> Path:
        folder = Path(self.opt["path"]["visualization"]) / dataset_name
        if self.opt["is_train"]:
            return folder / clip / f"{frame}_{current_iter}.png"
        suffix = self.opt["val"].get("suffix")
        return folder / clip / f"{frame}_{suffix or self.opt['name']}.png"

    def _report(self, name: str, frames: list[dict[str, Any]], current_iter: int | str, tb_logger: Any) -> None:
        scores = Scores()
        for frame in sorted(frames, key=lambda frame: frame["index"]):
            if frame["score"] or frame["metrics"]:
                scores.record(frame["clip"], frame["frame"], frame["score"], frame["metrics"])
        if not scores.clips:
            get_root_logger().warning(f"Validation {name}: no clip has truth, and all metrics of val.metrics need it.")
            return
        true = dict.fromkeys(frame["clip"] for frame in frames if frame["score"])
        alone = [clip for clip in dict.fromkeys(frame["clip"] for frame in frames) if clip not in true]
        self._write(name, scores, alone, current_iter)
        # Frames have no NaN, but the mean of inf and -inf is one, and would be neither better nor worse than others.
        summary = {metric: value for metric, value in scores.summary().items() if not math.isnan(value)}
        best = self._update_best(name, summary, current_iter)
        if self.opt["is_train"]:
            self.remember_best(name, current_iter)  # type: ignore[attr-defined]
        lines = [f"Validation {name}{share(list(true), [*true, *alone]) if true else ''}"]
        for metric, value in summary.items():
            # A test has no iteration, and nothing that it could be better than.
            ahead = f"\tBest: {best[metric][0]:.4f} @ {best[metric][1]} iter" if self.opt["is_train"] else ""
            lines.append(f"\t # {metric}: {value:.4f}{ahead}")
        get_root_logger().info("\n".join(lines) + "\n")
        if tb_logger:
            for metric, value in summary.items():
                tb_logger.add_scalar(f"metrics/{name}/{metric}", value, current_iter)
            for clip, clip_scores in scores.clips.items():
                for protocol, quality in clip_scores.average().items():
                    tb_logger.add_scalar(f"metrics/{name}/{protocol}/psnr/{clip}", quality.psnr, current_iter)

    def _write(self, name: str, scores: Scores, alone: list[str], current_iter: int | str) -> None:
        """Write the scores, with their facts, to the folder of the training or test."""
        training, paths = self.opt["is_train"], self.opt["path"]
        results.write(
            Path(paths["experiments_root"]) / "metrics" if training else Path(paths["results_root"]),
            f"{name}_{current_iter}" if training else name,
            scores,
            {
                "network": self.opt["name"],
                "dataset": name,
                "iteration": current_iter if training else None,
                "options": dict(self.opt["network_g"]),
                "checkpoint": paths.get("pretrain_network_g"),
                "parameters": sum(p.numel() for p in self.net_g.parameters()),
                **({WITHOUT_TRUTH: alone} if alone else {}),
            },
            baseline=self.opt["val"].get("baseline"),
        )

    def _update_best(
        self, name: str, summary: dict[str, float], current_iter: int | str
    ) -> dict[str, tuple[float, Any]]:
        """Update the best value of each metric on a set, with its iteration; `better: lower` as in the toolbox."""
        if not hasattr(self, "best_metric_results"):
            self.best_metric_results: dict[str, dict[str, tuple[float, Any]]] = {}
        best = self.best_metric_results.setdefault(name, {})
        for metric, value in summary.items():
            lower = (self.opt["val"].get("metrics") or {}).get(metric, {}).get("better") == "lower"
            if metric not in best or (value <= best[metric][0] if lower else value >= best[metric][0]):
                best[metric] = (value, current_iter)
        return best


def _number(value: Any) -> float | None:
    """A metric's value as a number; None stays None. Raises ValueError for NaN, which would make every mean NaN."""
    if value is None:
        return None
    number = float(value)
    if math.isnan(number):
        raise ValueError("it is nan")
    return number


def _images_of(metric: str) -> set[str]:
    """The images that a registered metric names in its signature; if none, the toolbox's two."""
    parameters = inspect.signature(METRIC_REGISTRY.get(metric)).parameters
    return {name for name in IMAGES if name in parameters} or {"img", "img2"}


class _Before:
    """The previous frame, for metrics that compare neighbours."""

    def __init__(self) -> None:
        self._run: Any = None
        self._images: dict[str, Any] = {}

    def step(self, run: Any, result: Any, guide: Any) -> dict[str, Any]:
        """The images other than the result: `guide`, and, if the previous frame is of the same run, its two images."""
        given = {**(self._images if run == self._run else {}), "guide": guide}
        self._run, self._images = run, {"previous": result, "previous_guide": guide}
        return given


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Inside, errors name these frames; a failure inside the network also keeps its type and traceback."""
    try:
        yield
    except CSDError as error:
        raise CSDError(f"{where}: {error}") from error
    except Exception as error:
        error.add_note(f"in the validation of {where}")
        raise


def _batches(dataset: Any, indices: range, batch_size: int, interface: Interface) -> Iterator[list[Item]]:
    """Items in order, in lists of up to batch_size, each from one run of frames. Raises CSDError for wrong sizes."""
    batch: list[Item] = []
    for index in indices:
        item = read_test_item(dataset, index, interface.num_frame)
        try:
            check_pair_sizes(item, interface.scale)
        except CSDError as error:
            raise CSDError(f"{dataset.opt['name']}, {error}") from error
        if batch and (len(batch) == batch_size or batch[0].run != item.run):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _gather(mine: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not are_several():
        return mine
    parts: list[list[dict[str, Any]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, mine)
    return [frame for part in parts for frame in part]
