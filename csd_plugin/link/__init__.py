"""`csd link`: the plugin in toolboxes whose scripts are left as they are, by a file in them or by an import hook."""
