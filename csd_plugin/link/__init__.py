"""`csd link`: the plugin in toolboxes whose scripts are left as they are, by a file in them or by an import hook.

Nothing is imported here: a part of this package runs at every start of Python where the hook is set.
"""
