"""`csd link`: adds the plugin to toolboxes whose scripts stay unchanged, by a file in them or by an import hook."""
