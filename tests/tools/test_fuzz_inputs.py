"""A small slice of the fuzzing, and that the tool sees what it is there to see."""

from __future__ import annotations

import random

import fuzz_inputs

from csd_plugin.errors import CSDError


def test_no_damage_passes_unseen(tmp_path, capsys):
    assert fuzz_inputs.main(["--count", "12", "--seed", "1", "--work", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    *_, total = captured.out.splitlines()
    assert total.split()[0] == "all" and sum(map(int, total.split()[1:])) == 12
    assert "Traceback" not in captured.err and not list(tmp_path.iterdir())


def test_faults_are_seen(tmp_path, monkeypatch):
    frames = fuzz_inputs.make_frames()

    def outcome(subject):
        return fuzz_inputs.judge(subject, random.Random(0))[0]

    lists = fuzz_inputs.ClipLists(tmp_path / "clips", frames)
    monkeypatch.setattr(fuzz_inputs, "mutate", lambda data, rng: b"a1")
    assert outcome(lists) == fuzz_inputs.UNDETECTABLE
    monkeypatch.setattr(lists, "_read", lambda: lists.whole)  # whatever the list names
    assert outcome(lists) == fuzz_inputs.FAILED

    archives = fuzz_inputs.Archives(tmp_path / "zip", lambda prefix: fuzz_inputs.make_zip(prefix, frames), frames)
    assert outcome(archives) == fuzz_inputs.REFUSED
    monkeypatch.setattr(fuzz_inputs, "call_prepare", lambda source, out: out.with_name("beside").write_bytes(b""))
    assert outcome(archives) == fuzz_inputs.FAILED

    def raising(error):
        def subject(rng):
            raise error

        return subject

    assert outcome(raising(CSDError("one line"))) == fuzz_inputs.REFUSED
    assert outcome(raising(CSDError("two\nlines"))) == outcome(raising(KeyError("x"))) == fuzz_inputs.FAILED


def test_mutations_always_change():
    rng = random.Random(0)
    for data in (b"\0", b"ab", bytes(100)):
        assert all(fuzz_inputs.mutate(data, rng) != data for _ in range(200))
