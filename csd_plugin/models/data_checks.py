"""Builds and tries the data sets of a run before it begins: frames, clips, epochs and the form of items."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from basicsr.data.video_test_dataset import VideoTestDataset
from basicsr.utils.registry import DATASET_REGISTRY
from torch import nn

from csd_plugin import compat, peers
from csd_plugin.archs.interface import Interface
from csd_plugin.data.batches import as_clips
from csd_plugin.data.datasets import DATASETS
from csd_plugin.data.datasets.paired_video import PairedVideoTestDataset
from csd_plugin.data.workers import check_shared_memory
from csd_plugin.devices import forked_random
from csd_plugin.errors import CSDError
from csd_plugin.models.batches import check_pair_sizes, read_test_item
from csd_plugin.models.building import as_mistakes, find_metrics, find_type
from csd_plugin.models.mixing import check_metric_size, keywords_of
from csd_plugin.models.pairing import (
    check_foreign_set,
    check_loader_options,
    check_on_test_frames,
    check_role,
)
from csd_plugin.options.problems import Problems


def check_data(
    opt: dict[str, Any], network: nn.Module | None, interfaces: dict[str, Interface], problems: Problems
) -> None:
    """Check all data sets; `network` is network_g, if it could be built, which is tried on the frames of test sets."""
    if not problems.sound("datasets"):
        return
    named: dict[str, str] = {}
    for key, content in opt["datasets"].items():
        if content["phase"] != "train" and (other := named.setdefault(content.get("name", key), key)) != key:
            problems.add(
                f"datasets.{key}.name",
                f"datasets.{key}.name: {content['name']!r} is also the name of datasets.{other}; give it another, as "
                f"scores are stored by name",
            )
        dataset = problems.attempt([f"datasets.{key}"], _check_set, key, content, interfaces)
        if content["phase"] == "train":
            needs = [f"datasets.{key}", "train.total_iter", "train.accumulate", "num_gpu"]
            problems.attempt(needs, _check_loader, dataset, content, opt)
            continue
        if isinstance(dataset, PairedVideoTestDataset):
            problems.attempt(["val"], _check_metric_sizes, opt.get("val") or {}, key, dataset)
        if dataset is not None and network is not None and "network_g" in interfaces:
            needs = [f"datasets.{key}", "num_gpu"]
            problems.attempt(needs, _check_test_frames, key, dataset, network, interfaces["network_g"], opt)


def _check_set(key: str, content: dict[str, Any], interfaces: dict[str, Interface]) -> Any:
    """Find a data set's frames. Returns the data set."""
    dataset_type = find_type(DATASET_REGISTRY, content.get("type"), f"datasets.{key}.type")
    if content["type"] not in DATASETS:
        check_loader_options(key, content)
        if "network_g" in interfaces:
            check_foreign_set(key, content, interfaces["network_g"].num_frame)
        return _try_foreign_set(dataset_type, key, content, interfaces)
    check_role(key, content)
    num_frame, num_target = content["num_frame"], content.get("num_target", 1)
    reach = num_frame - num_target + 1
    for name, interface in interfaces.items():
        needed = interface.num_frame
        if needed > reach and (name == "network_g" or content["phase"] == "train"):
            raise CSDError(
                f"datasets.{key}: num_frame {num_frame} with num_target {num_target} gives windows of "
                f"{reach} frames, but {name} needs {needed}; set num_frame to at least {num_frame + needed - reach}"
            )
    try:
        return dataset_type(content)
    except CSDError as error:
        raise CSDError(f"datasets.{key}: {error}") from error


def _try_foreign_set(cls: Any, key: str, content: dict[str, Any], interfaces: dict[str, Interface]) -> Any:
    """Build a data set that is not ours, like the toolbox, and read its first item.

    Without lasting effects: it gets a copy of its options, as many sets change them, and is closed when dropped.
    """
    own = copy.deepcopy(content)
    if own.get("cache_data") and isinstance(cls, type) and issubclass(cls, VideoTestDataset):
        own["cache_data"] = False  # otherwise all frames would be read, twice
    with forked_random(), compat.without_log(), compat.named_downloads():
        with as_mistakes(f"datasets.{key}", own):
            dataset = cls(own)
            length = len(dataset)
        if not length:
            raise CSDError(f"datasets.{key}: {content['type']} finds nothing; check its folders and lists")
        if "network_g" not in interfaces:
            return dataset
        if content["phase"] == "train":
            with as_mistakes(f"datasets.{key}", own):
                item = dict(dataset[0])
            pair = {name: item[name] for name in ("lq", "gt") if isinstance(item.get(name), torch.Tensor)}
            batch = {name: value.expand(content["batch_size_per_gpu"], *value.shape) for name, value in pair.items()}
            seen = max(interface.num_frame for interface in interfaces.values())
            scale = interfaces["network_g"].scale
            as_clips(batch, seen, f"datasets.{key}: {content['type']}", scale=scale)
        else:
            with as_mistakes(f"datasets.{key}", own):
                read_test_item(dataset, 0, interfaces["network_g"].num_frame)
    return dataset


def _check_test_frames(key: str, dataset: Any, network: nn.Module, interface: Interface, opt: dict[str, Any]) -> None:
    """Check the frames with which the clips of a test set begin: their sizes, and that `network_g` can process them."""
    scale, sizes = interface.scale, dict[tuple[int, int], str]()
    if isinstance(dataset, PairedVideoTestDataset):
        sizes = {(height // scale, width // scale): clip for (height, width), clip in dataset.sizes().items()}
    else:
        clips = getattr(dataset, "data_info", {}).get("folder") or [None]
        for index in (clips.index(clip) for clip in dict.fromkeys(clips)):
            with as_mistakes(f"datasets.{key}"):
                item = read_test_item(dataset, index, interface.num_frame)
                check_pair_sizes(item, scale)
            sizes.setdefault((item.lq.shape[2], item.lq.shape[3]), item.clip)
    with forked_random():
        for size, clip in sizes.items():
            check_on_test_frames(network, interface, opt, f"datasets.{key}, clip {clip}", size)


def _check_metric_sizes(val: Mapping[str, Any], key: str, dataset: PairedVideoTestDataset) -> None:
    for name, metric in find_metrics(val).items():
        keywords = keywords_of(val["metrics"][name])
        for size, clip in dataset.sizes().items():
            try:
                check_metric_size(metric, size, keywords, f"datasets.{key}, clip {clip}")
            except CSDError as error:
                raise CSDError(f"val.metrics.{name}: {error}") from error


def _check_loader(dataset: Any, content: dict[str, Any], opt: dict[str, Any]) -> None:
    if content.get("persistent_workers") and not content.get("num_worker_per_gpu"):
        raise CSDError("datasets.train: persistent_workers needs num_worker_per_gpu of 1 or more; switch it off")
    if content.get("num_worker_per_gpu"):
        check_shared_memory("set datasets.train.num_worker_per_gpu: 0")
    parts = opt["train"].get("accumulate", 1)
    if parts > content.get("batch_size_per_gpu", 1):
        raise CSDError(
            f"train.accumulate: {parts} parts of batches of {content['batch_size_per_gpu']} clips; batch_size_per_gpu "
            f"is the whole batch: raise it, or lower train.accumulate"
        )
    if content.get("prefetch_mode") == "cuda" and not (content.get("pin_memory") and opt["num_gpu"]):
        raise CSDError("datasets.train: prefetch_mode: cuda needs pin_memory: true and a GPU; leave it out")

    if dataset is None:
        return
    kind = f"clips of {content['num_frame']} frames" if content["type"] in DATASETS else "samples"
    if opt["dist"]:
        peers.check_same({f"datasets.train, {content['type']}: {kind}": len(dataset)})
    _check_epochs(dataset, kind, content, opt)


def _check_epochs(dataset: Any, kind: str, content: dict[str, Any], opt: dict[str, Any]) -> None:
    """Check the number of epochs: the toolbox drops an epoch's incomplete last batch, but its count ignores that."""
    count, ratio, batch = len(dataset), content.get("dataset_enlarge_ratio", 1), content["batch_size_per_gpu"]
    world_size, total = opt["world_size"], int(opt["train"]["total_iter"])
    epochs = math.ceil(total / math.ceil(count * ratio / (batch * world_size))) + 1
    share = count * ratio / world_size  # the toolbox's sampler rounds it up, that of `places` down
    possible = epochs * ((math.floor(share) if hasattr(dataset, "places") else math.ceil(share)) // batch)
    if possible < total:
        least = math.ceil(ratio)
        whole = least * batch * world_size // math.gcd(count * least, batch * world_size)
        raise CSDError(
            f"datasets.train: with {count} {kind} and batches of {batch}, training would end after {possible} of "
            f"{total} iterations; set dataset_enlarge_ratio to {whole}"
        )
