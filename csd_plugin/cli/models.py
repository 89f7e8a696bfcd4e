"""List the shipped networks (size, speed on this machine, scores, purpose) and the networks that can be trained.

`csd derain --model NAME`, `csd export NAME` and, in option files, `pretrain_network_g: NAME` take them by name.

examples:
  csd models
  csd models --json
  csd models --path realtime        print its file's path
"""

from __future__ import annotations

import argparse

from csd_plugin.weights import NETWORKS, RAINY


def add_arguments(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print all facts about them in machine-readable form")
    form.add_argument("--path", choices=NETWORKS, metavar="NAME", help=f"print the file's path: {', '.join(NETWORKS)}")


def run(args: argparse.Namespace) -> None:
    if args.path:
        print(NETWORKS[args.path].path)
        return
    from csd_plugin.inference.memory import keep_freed_memory
    from csd_plugin.report.networks import as_json, as_text, seconds_a_frame, trainable

    keep_freed_memory()
    show = as_json if args.json else as_text
    print(show(NETWORKS, RAINY, seconds_a_frame(NETWORKS), trainable()))
