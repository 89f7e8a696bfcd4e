"""Option files as they are read: YAML keys, and all mistakes of a file in one list."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from toolbox import changed, distill_options

from csd_plugin.errors import CSDError
from csd_plugin.options import files
from csd_plugin.options.files import load_options, safe_ordered_yaml


def test_an_empty_section_val_is_as_none(monkeypatch):
    """`--debug` of the toolbox writes into `val` where it is there."""
    monkeypatch.setattr(files, "check_file", lambda *_: None)
    content = yaml.load("name: x\nval: ~\n", Loader=safe_ordered_yaml()[0])
    assert "val" not in content
    content["val"] = {}
    content["val"] = None  # as --force_yml does it
    assert "val" not in content


def test_mistakes_in_parts_are_in_the_same_list_as_those_that_the_toolbox_would_meet_first(tmp_path):
    """Without a right `num_gpu`, the toolbox cannot read the file; what it names is looked for all the same."""
    from csd_plugin.models.preflight import check_parts

    options = changed(
        distill_options(Path("data"), Path("teacher.pth")),
        {"num_gpu": "many", "train.optim_g.type": "Adamm", "network_g.preset": "student9"},
    )
    options["train"]["pixel_opt"] = {"type": "PyramidSSIMLosss"}
    (tmp_path / "x.yml").write_text(yaml.safe_dump(options), encoding="utf-8")
    with pytest.raises(CSDError) as caught:
        load_options(tmp_path / "x.yml", check_parts)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    for words in ("num_gpu is 'many'", "'Adamm' is not in torch.optim", "preset 'student9'", "PyramidSSIMLosss"):
        assert sum(words in line for line in lines) == 1
    for model_type in (["DistillModel"], "SRModel", 3):  # of nobody, or somebody else's
        (tmp_path / "x.yml").write_text(yaml.safe_dump(options | {"model_type": model_type}), encoding="utf-8")
        with pytest.raises(CSDError) as caught:
            load_options(tmp_path / "x.yml", check_parts)
        assert "Adamm" not in str(caught.value)


def test_merge_keys_are_refused_as_what_they_are(tmp_path):
    """They cannot be put in quotes, as other keys that are no text."""
    (tmp_path / "x.yml").write_text("a: &a {b: 1}\nc: {<<: *a, d: 2}\n")
    with pytest.raises(CSDError, match=r"x.yml: line 2: merge keys \(<<\) are not supported; write the keys out"):
        load_options(tmp_path / "x.yml")
