"""Register our models in BasicSR, or in a project built on it, without changing its train.py.

PATH is a clone, a fork, an installed package, or a project structured like BasicSR-examples and Real-ESRGAN: the
package or the folder above it. Without PATH it is the BasicSR that this Python imports. One file is written there,
models/csd_model.py (for BasicSR 1.4.2 also archs/csd_arch.py). It does nothing once csd-plugin is uninstalled, and git
does not list it. --hook writes one line into site-packages instead: for toolboxes that must not be touched, and for
torchvision without its compiled part. CSD_NO_HOOK=1 switches the hook off.

Exit status: 0 if all is well; 1 if it is not linked, or is linked but does not work here; 2 after a mistake.

examples:
  csd link                       the installed BasicSR
  csd link ~/Real-ESRGAN
  csd link ~/BasicSR --check     report whether it is linked and works: imports it in a new process
  csd link ~/BasicSR --undo      restore every byte
  csd link --hook
  csd link --hook --undo
"""

from __future__ import annotations

import argparse
import sys

from csd_plugin.cli.flags import path_given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", type=path_given, nargs="?", help="a clone, fork, package or project")
    parser.add_argument("--hook", action="store_true", help="hook into `import basicsr` of this Python instead")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="report whether it is linked and works; change nothing")
    action.add_argument("--undo", action="store_true", help="remove what was written")


def run(args: argparse.Namespace) -> int:
    from csd_plugin.errors import CSDError

    if args.hook and args.path:
        raise CSDError(
            f"--hook is for every BasicSR of this Python, not for {args.path} alone; leave one of the two out"
        )
    return _hook(args) if args.hook else _files(args)


def _files(args: argparse.Namespace) -> int:
    from csd_plugin.link import files
    from csd_plugin.link.trees import find_tree

    tree = find_tree(args.path)
    print(tree, flush=True)
    if args.undo:
        removed = files.unlink(tree)
        print(*(f"removed {file}" for file in removed), sep="\n") if removed else print("nothing to remove")
        return 0
    if args.check:
        lacking = files.missing(tree)
        if lacking:
            return _told(f"not linked: {lacking[0]} is missing or of another version; run `csd link`")
    else:
        linked = files.link(tree)
        for file in linked.written:
            print(f"wrote {file}")
        for file in linked.current:
            print(f"already there: {file}")
        if linked.hidden:
            print(f"hidden from git by {linked.hidden}")
    return _verdict(tree.fault())


def _hook(args: argparse.Namespace) -> int:
    from csd_plugin.link import hook, trees

    file = hook.hook_file()
    if args.undo:
        print(f"removed {file}" if hook.remove_hook() else "nothing to remove")
        return 0
    if args.check and not hook.is_set():
        return _told(f"no hook: {file} is missing or of another version; run `csd link --hook`")
    if not args.check:
        print(f"wrote {file}" if hook.set_hook() else f"already there: {file}")
    return _verdict(trees.import_fault("basicsr"))


def _verdict(fault: str) -> int:
    if fault:
        return _told(f"linked, but does not work yet: {fault}")
    print("works: option files of VideoDerainModel and DistillModel train, resume and test there")
    return 0


def _told(problem: str) -> int:
    print(f"csd link: {problem}", file=sys.stderr)
    return 1
