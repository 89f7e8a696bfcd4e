"""Functions whose source `csd link` copies to places where it must work even if csd-plugin is missing or broken.

Each imports what it needs. They are not called in this package.
"""

from __future__ import annotations


def call_linked(name: str) -> None:
    """Call a function of `csd_plugin.link.linked`. If that cannot be imported, the program goes on.

    Nothing is said where csd-plugin is gone. A line is, where it is there in part: while pip exchanges it, or after pip
    was killed.
    """
    import sys
    from pathlib import Path

    try:
        from csd_plugin.link import linked

        calls = {"prepare_imports": linked.prepare_imports, "activate": linked.activate}
    except Exception as error:
        # pip gives what it is about to remove another first letter
        signs = ("?sd_plugin/__init__.py", "?sd_plugin-*.dist-info")
        there = any(sign for folder in sys.path for pattern in signs for sign in Path(folder).glob(pattern))
        line = (
            f"csd-plugin is not active: {type(error).__name__}: {error}; if pip is running, start again when it has "
            f"ended, else install csd-plugin again"
        )
        said = vars(sys).setdefault("csd_plugin_said", set())  # by all copies of this function
        if there and line not in said:
            said.add(line)
            print(line, file=sys.stderr, flush=True)
        return
    calls[name]()


def wait_for_toolbox() -> None:
    """Call `linked` before and after `import basicsr`, whenever that will be. CSD_NO_HOOK=1 switches it off.

    Programs that never import it pay for this function alone.
    """
    import os
    import sys

    class BeforeAndAfter:
        """The toolbox's own loader, with our repairs before it and our classes after it."""

        def __init__(self, loader):
            self.loader = loader

        def create_module(self, spec):
            return self.loader.create_module(spec)

        def exec_module(self, module):
            module.__spec__.loader = module.__loader__ = self.loader  # from now on nobody needs to know
            call_linked("prepare_imports")
            self.loader.exec_module(module)
            call_linked("activate")

    class Waiting:
        """A finder that knows one name. It imports nothing, as others only ask whether the toolbox is there."""

        waits_for = "basicsr"

        @classmethod
        def find_spec(cls, name, path=None, target=None):
            if name != cls.waits_for or cls not in sys.meta_path:
                return None
            for finder in sys.meta_path[sys.meta_path.index(cls) + 1 :]:
                find = getattr(finder, "find_spec", None)
                spec = find(name, path, target) if find else None
                if spec is not None:
                    if hasattr(spec.loader, "exec_module") and spec.origin is not None:  # no left-over empty folder
                        spec.loader = BeforeAndAfter(spec.loader)
                    return spec
            return None

    # an environment that sees the packages of another has the line of each
    waiting = any(getattr(finder, "waits_for", "") == Waiting.waits_for for finder in sys.meta_path)
    if not waiting and not os.environ.get("CSD_NO_HOOK"):
        sys.meta_path.insert(0, Waiting)
