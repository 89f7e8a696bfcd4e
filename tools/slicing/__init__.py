"""The parts of `gpu_slice.py`."""
