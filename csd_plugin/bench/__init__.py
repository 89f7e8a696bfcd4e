"""Measurements on this machine: all rows of a table in one run, so that their ratios are meaningful.

A benchmark is one module with a docstring, `add_arguments(parser)` and `run(args) -> int | None`.
"""

BENCHMARKS = {
    "data": "csd_plugin.bench.data",
    "infer": "csd_plugin.bench.infer",
    "realtime": "csd_plugin.bench.realtime",
    "growth": "csd_plugin.bench.growth",
    "step": "csd_plugin.bench.step",
}
