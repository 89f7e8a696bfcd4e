"""At every start of Python where `csd link --hook` has set it: wait for `import basicsr`.

Programs that never import it pay for this file alone, so it imports nothing. CSD_NO_HOOK=1 switches it off.
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
        from csd_plugin.link import linked

        module.__spec__.loader = module.__loader__ = self.loader  # from now on nobody needs to know
        linked.prepare_imports()
        self.loader.exec_module(module)
        linked.activate()


class Waiting:
    """A finder that knows one name. It imports nothing itself, as others only ask whether the toolbox is there."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "basicsr":
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find and finder is not cls else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module") and spec.origin is not None:  # no left-over empty folder
                    spec.loader = BeforeAndAfter(spec.loader)
                return spec
        return None


if not os.environ.get("CSD_NO_HOOK") and Waiting not in sys.meta_path:
    sys.meta_path.insert(0, Waiting)
