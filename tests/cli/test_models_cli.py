"""`csd models` from the command line."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from csd_plugin import archs
from csd_plugin.cli import main
from csd_plugin.report import networks
from csd_plugin.weights import DEFAULT, FASTEST, NETWORKS, RAINY


def test_a_table_to_choose_by(capsys, monkeypatch):
    monkeypatch.setattr(networks, "seconds_a_frame", lambda shown: dict.fromkeys(shown, 1.25))
    assert main(["models"]) == 0
    head, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head[:4] == ["network", "parameters", "frames", "s/frame"]
    for (name, network), row in zip(NETWORKS.items(), rows, strict=False):
        assert row[:4] == [name, f"{network.parameters:,}", str(network.numbers["num_frame"]), "1.25"]
        assert " ".join(row).endswith(network.what)
    rainy, _, chosen = rows[len(NETWORKS) : len(NETWORKS) + 3]
    assert rainy[2] == f"{RAINY['validation']['nturain_y']['psnr']:.2f}"
    assert chosen[:4] == ["csd", "derain", "uses", f"{DEFAULT},"] and chosen[-1] == f"{FASTEST}."


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ({"tiny": 0.02, "realtime": 0.04}, "Fast enough for 25 frames per second: tiny, realtime."),
        ({}, "Fast enough for 25 frames per second: none."),
    ],
)
def test_those_that_keep_up_here_are_named(capsys, monkeypatch, seconds, words):
    monkeypatch.setattr(networks, "seconds_a_frame", lambda shown: dict.fromkeys(shown, 0.041) | seconds)
    assert main(["models"]) == 0
    assert words in capsys.readouterr().out


def test_what_can_be_trained_is_listed_below(capsys, monkeypatch):
    """Every preset of the table of networks as an option file takes it: built so, it has what is said of it."""
    monkeypatch.setattr(networks, "seconds_a_frame", lambda shown: dict.fromkeys(shown, 1.25))
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["trainable"]
    assert [(one["type"], one["preset"]) for one in listed] == [
        (name, preset) for name, cls in archs.NETWORKS.items() for preset in archs.presets_of(cls) or [None]
    ]
    for one in listed:
        cls = archs.NETWORKS[one["type"]]
        network = cls(preset=one["preset"]) if one["preset"] else cls()
        assert sum(p.numel() for p in network.parameters()) == one["parameters"]
        assert (network.num_frame, one["package"]) == (one["num_frame"], "csd_plugin")
    assert main(["models"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert all(
        [one["type"], one["preset"] or "-", f"{one['parameters']:,}"] in [row[:3] for row in rows] for one in listed
    )


def test_all_that_is_known_for_programs(capsys, monkeypatch):
    seconds = networks.seconds_a_frame({FASTEST: NETWORKS[FASTEST]})
    assert seconds[FASTEST] > 0
    monkeypatch.setattr(networks, "seconds_a_frame", lambda shown: dict.fromkeys(shown, seconds[FASTEST]))
    assert main(["models", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["default"], content["fast"], content["rainy"]) == (DEFAULT, FASTEST, RAINY)
    for entry, network in zip(content["networks"], NETWORKS.values(), strict=True):
        assert (entry["name"], entry["path"], entry["scores"]) == (network.name, str(network.path), network.scores)
        assert entry["seconds_a_frame"] == seconds[FASTEST]
        assert entry["license"] == entry["licence"] == network.license


def test_networks_built_alike_are_as_fast(monkeypatch):
    tried = []

    class Derainer:
        def __init__(self, path, *, precision) -> None:
            assert precision == "auto"  # as csd derain computes
            tried.append(path)

        def seconds_a_frame(self, *_) -> float:
            return float(len(tried))

    monkeypatch.setattr(networks, "Derainer", Derainer)
    one = NETWORKS["realtime"]
    catalogue = {"realtime": one, "alike": replace(one, name="alike"), "other": replace(one, numbers={"num_frame": 1})}
    seconds = networks.seconds_a_frame(catalogue)
    assert seconds.keys() == catalogue.keys()
    assert seconds["alike"] == seconds["realtime"] != seconds["other"]
    assert len(tried) == 2


def test_the_path_of_one(capsys):
    assert main(["models", "--path", DEFAULT]) == 0
    assert capsys.readouterr().out == f"{NETWORKS[DEFAULT].path}\n"


def test_the_model_cards_table():
    head, _, *rows = networks.as_markdown(NETWORKS, RAINY).splitlines()
    assert [row.split(" | ")[0] for row in rows] == [*(f"| `{name}`" for name in NETWORKS), "| rainy input"]
    assert all(row.count(" | ") == head.count(" | ") for row in rows)
