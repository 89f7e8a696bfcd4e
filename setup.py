"""Metadata of csd-plugin. Torch is never pinned: whatever is importable serves."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = next(
    line.split('"')[1]
    for line in (ROOT / "csd_plugin" / "__init__.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

TRAIN = ["filelock>=3.12", "mmengine", "pydantic>=2", "pyyaml", "scipy", "tensorboard"]
ARCHIVES = ["libarchive-c>=5", "rarfile>=4.2"]  # RAR; needs the system's libarchive (Debian: libarchive13)
ONNX = ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.3"]
OPENVINO = ["onnx>=1.16", "onnxscript>=0.3", "openvino>=2024.4"]
FIGURES = ["matplotlib", "mmengine"]
METRICS = ["lpips>=0.1.4", "mmeval>=0.2.1"]
DEV = [
    "hypothesis",
    "mypy",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "pytorch-msssim>=1",
    "ruff",
    "scikit-image",
    "types-PyYAML",
]

setup(
    name="csd-plugin",
    version=VERSION,
    description="Collaborative spatial-temporal distillation for video deraining, as a plugin for BasicSR",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["csd_plugin", "csd_plugin.*"]),
    include_package_data=True,
    package_data={"csd_plugin.weights": ["*.pth", "*.json", "*.md"]},
    # What `csd prepare`, `data`, `rain`, `derain` and `score` need.
    install_requires=["av", "jinja2", "lmdb", "numpy", "opencv-python", "pillow", "torch", "tqdm"],
    extras_require={
        "train": TRAIN,
        # Its setup.py needs torch at build time: pip install --no-build-isolation basicsr==1.4.2
        "basicsr": ["basicsr>=1.4.2"],
        "archives": ARCHIVES,
        # Other runtimes than torch, and `csd export` to their files.
        "onnx": ONNX,
        "openvino": OPENVINO,
        "figures": FIGURES,  # `csd figure`
        "metrics": METRICS,  # NIQE and LPIPS of `csd score`
        "dev": [*TRAIN, *ARCHIVES, *ONNX, *FIGURES, *METRICS, *DEV],
    },
    entry_points={"console_scripts": ["csd = csd_plugin.cli:main"]},
)
