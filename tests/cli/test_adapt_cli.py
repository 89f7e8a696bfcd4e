"""`csd adapt`: from rainy frames and a teacher to a checkpoint, interruptions, and what it refuses."""

from __future__ import annotations

import itertools
import json

import cv2
import pytest
import torch
from synthetic import moving_scene, rain_on, write_image, write_ntu_rain

from csd_plugin.adapt import learning, run
from csd_plugin.adapt.teacher import Teacher
from csd_plugin.archs.checkpoint import load_network, save_plain
from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.archs.provenance import adapted_to, facts_in
from csd_plugin.cli import main
from csd_plugin.locks import alone

FRAMES = 14


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A rainy clip, a teacher that changes nothing, and a student of its kind that makes everything brighter.

    The clock goes on by 0.04 s whenever it is looked at, so that a run has the same steps on every machine.
    """
    monkeypatch.chdir(tmp_path)
    ticks = itertools.count()
    monkeypatch.setattr(learning, "perf_counter", lambda: next(ticks) / 25)
    monkeypatch.setattr(learning, "_WARM_UP", 1)
    for number, frame in enumerate(rain_on(moving_scene(FRAMES, 48, 56, 0), 1), start=1):
        write_image(tmp_path / "garden" / f"{number:05d}.png", frame)
    torch.manual_seed(0)
    teacher = HalfNet(preset="tiny", num_feat=4, num_deep=1)
    torch.nn.init.zeros_(teacher.tail.weight)
    torch.save({"params": teacher.state_dict()}, tmp_path / "teacher.pth")
    teacher.tail.bias.data.fill_(0.1)
    torch.save({"params": teacher.state_dict(), "facts": {"license": "CC0"}}, tmp_path / "student.pth")
    return tmp_path


def adapt(*more, minutes="0.01"):
    files = ["garden", "--teacher", "teacher.pth", "--student", "student.pth", "--out", "garden.pth"]
    return main(["adapt", *files, "--minutes", minutes, "--rate", "0.01", "--device", "cpu", *more])


def test_from_rain_to_a_network_that_derains(work, capsys):
    assert adapt(minutes="0.06") == 0
    said = capsys.readouterr().out
    before, after = (float(word) for word in said.split("PSNR to the teacher: ")[1].split()[:4:3])
    assert before == pytest.approx(21.3, abs=0.3) and after > before + 1  # a tenth of the luma, 219 levels
    assert "other rain than this camera's was not scored" in said

    facts = facts_in(work / "garden.pth")
    assert adapted_to(facts) == "garden" and facts["license"] == "CC0"
    assert [one["name"] for one in facts["adapted"]["teachers"]] == ["teacher.pth"]
    assert facts["adapted"]["student"]["name"] == "student.pth" and facts["adapted"]["steps"] > 0
    assert isinstance(load_network(work / "garden.pth"), HalfNet)

    assert main(["derain", "garden", "clean", "--model", "garden.pth"]) == 0
    assert "garden.pth, adapted to garden: about" in capsys.readouterr().out
    assert len(list((work / "clean").iterdir())) == FRAMES
    page = (work / "garden_report.md").read_text(encoding="utf-8")
    assert f"{after:.2f}" in page and "garden_report.png" in page and (work / "garden_report.png").exists()


def test_a_teacher_that_leaves_the_rain_is_warned_of(work, capsys):
    """This one changes nothing. Nothing flickers in the white pictures of the second student."""
    assert adapt() == 0
    assert "flicker more" not in capsys.readouterr().out  # the first one leaves the rain too
    student = load_network(work / "student.pth")
    student.tail.bias.data.fill_(1.0)
    torch.save({"params": student.state_dict()}, work / "student.pth")
    assert adapt("--overwrite") == 0
    assert "warning: the teacher's frames flicker more than the student's own results" in capsys.readouterr().out
    assert "flicker more than the student's own results" in (work / "garden_report.md").read_text(encoding="utf-8")


def test_the_teacher_works_once_and_other_rain_is_kept_and_scored(work, capsys, monkeypatch):
    assert adapt("--cache", "frames") == 0
    clean = Teacher.clean
    monkeypatch.setattr(Teacher, "clean", lambda *_: pytest.fail("the teacher was asked again"))
    write_ntu_rain(work / "data", frames=9, height=48, width=56)
    more = ("--cache", "frames", "--overwrite", "--pairs", "data", "--keep", "0.5", "--validation", "data")
    assert adapt(*more) == 0
    said = capsys.readouterr().out
    assert "14 frames cleaned by the teacher are in frames" in said
    assert "data, 1 clip (frames 1 to 9 of a1), PSNR and SSIM of the luma:" in said
    assert facts_in(work / "garden.pth")["adapted"]["kept"] == 0.5

    monkeypatch.setattr(Teacher, "clean", clean)
    (work / "garden" / "00003.png").unlink()
    assert adapt("--cache", "frames", "--overwrite") == 2
    assert "its frames were made with other inputs: give another --cache" in capsys.readouterr().err


def test_an_interrupted_teacher_is_continued(work, capsys, monkeypatch):
    clean = Teacher.clean

    def interrupted(self, read):
        for number, pair in enumerate(clean(self, read)):
            if number == 5:
                raise KeyboardInterrupt
            yield pair

    monkeypatch.setattr(Teacher, "clean", interrupted)
    assert adapt() == 130
    assert "the same command continues with the teacher's frames so far" in capsys.readouterr().err
    monkeypatch.setattr(Teacher, "clean", clean)
    assert adapt() == 0


def test_an_interrupted_student_leaves_its_best_and_is_continued(work, capsys, monkeypatch):
    step = learning.Learner._step

    def interrupted(self, batch, share):
        if self.progress.step == 3:
            raise KeyboardInterrupt
        step(self, batch, share)

    monkeypatch.setattr(learning.Learner, "_step", interrupted)
    assert adapt(minutes="5") == 130
    assert "the best network so far is in garden.pth; --resume continues" in capsys.readouterr().err
    assert facts_in(work / "garden.pth")["adapted"]["steps"] == 3
    monkeypatch.setattr(learning.Learner, "_step", step)

    assert adapt("--resume", "--rate", "0.02") == 2
    assert "belongs to a run with other --rate" in capsys.readouterr().err
    assert adapt("--resume", minutes="0.02") == 0
    assert "continued after" in capsys.readouterr().out
    assert facts_in(work / "garden.pth")["adapted"]["steps"] > 3


def test_what_is_replaced_is_not_taken_for_this_run(work, capsys, monkeypatch):
    assert adapt() == 0
    earlier = (work / "garden.pth").read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.scoring, "held_back", interrupted)
        assert adapt("--overwrite") == 130
    said = capsys.readouterr().err
    assert "the same command continues with the teacher's frames so far; garden.pth is unchanged" in said

    def killed(*_):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(learning.Learner, "learn", killed)
        with pytest.raises(RuntimeError, match="killed"):
            adapt("--overwrite")
    assert (work / "garden.pth").read_bytes() == earlier
    assert adapt("--resume") == 2  # not with the state of the run that was to be replaced
    assert "--resume: there is no garden.state to continue from" in capsys.readouterr().err


def test_a_disk_without_room_is_said_before_the_teacher_works(work, capsys, monkeypatch):
    resource = pytest.importorskip("resource", reason="limits of a file's size")
    monkeypatch.setattr(Teacher, "clean", lambda *_: pytest.fail("the teacher was asked"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # less than the student, as on a full disk
    try:
        assert adapt() == 2
        with pytest.raises(OSError, match=r"garden\.state"):  # and later the file has a name, too
            save_plain(list(range(1000)), work / "garden.state")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    line = "csd adapt: error: garden.pth: cannot be written (File too large); make room there, and run again\n"
    assert capsys.readouterr().err == line
    assert sorted(path.name for path in work.iterdir()) == ["garden", "student.pth", "teacher.pth"]


def test_what_did_not_help_is_not_shipped(work, capsys, monkeypatch):
    monkeypatch.setattr(run, "_nearness", lambda network, *_: -float(network.tail.bias[0] < 0.1))
    assert adapt() == 0
    assert "the checkpoint holds the unchanged student" in capsys.readouterr().out
    student, kept = (load_network(work / name).state_dict() for name in ("student.pth", "garden.pth"))
    assert all(torch.equal(student[name], kept[name]) for name in student)


def test_damaged_frames_are_not_learned_from(work, capsys):
    assert adapt() == 0
    data = work / "garden.cache" / "frames.lmdb" / "data.mdb"
    content = bytearray(data.read_bytes())
    frame = (48 * 56 * 3) // 2
    at = content.find(bytes(load_frame(work).tobytes()[frame : frame + 64]))
    content[at] ^= 1
    data.unlink()  # a store that is open in this process must not change under it
    data.write_bytes(content)
    assert adapt("--overwrite") == 2
    assert "1 frame damaged or missing" in capsys.readouterr().err


DAMAGES = [
    (lambda shot, _: {"shots": [shot | {"name": "../../outside"}]}, "shots.0.name is '../../outside'"),
    (lambda shot, _: {"shots": [shot | {"length": 10**8}]}, "shots.0.length"),
    (lambda shot, _: {"shots": [shot | {"held": float("nan")}]}, "NaN is not a JSON number"),
    (lambda *_: {"shots": []}, "shots"),
    (lambda *_: {"shots": None}, "shots"),
    (lambda _, content: [content], "it is ["),
]


def test_a_manifest_that_no_run_has_written_is_one_line(work, capsys):
    assert adapt("--features") == 0
    manifest = work / "garden.cache" / "manifest.json"
    content = json.loads(manifest.read_text())
    for damage, said in DAMAGES:
        damaged = damage(content["shots"][0], content)
        manifest.write_text(json.dumps(content | damaged if isinstance(damaged, dict) else damaged))
        before = set(work.rglob("*"))
        capsys.readouterr()
        assert adapt("--features", "--overwrite") == 2, said
        error = capsys.readouterr().err
        assert f"manifest.json: damaged ({said}" in error and len(error.splitlines()) == 1
        assert "remove garden.cache, and start again" in error and set(work.rglob("*")) == before


def test_a_cache_of_an_older_version_is_not_mixed_with_todays(work, capsys):
    assert adapt() == 0
    manifest = work / "garden.cache" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 1}))
    capsys.readouterr()
    assert adapt("--overwrite") == 2
    error = capsys.readouterr().err
    assert "garden.cache: its frames were made by an older version" in error and len(error.splitlines()) == 1
    assert "remove it, or give another --cache" in error
    assert adapt("--overwrite", "--cache", "new.cache") == 0


def test_adapting_takes_no_time_from_the_network(work, monkeypatch):
    times = itertools.count(1)
    monkeypatch.setattr(run.Derainer, "seconds_a_frame", lambda *_: next(times))
    assert adapt() == 0
    rows = [line.split("|") for line in (work / "garden_report.md").read_text(encoding="utf-8").splitlines()]
    took = {row[1].strip(): row[-2] for row in rows if len(row) > 5}
    assert took["before"] == took["after"] != took["teacher"]


def test_the_report_names_the_frames_of_validation(work, capsys):
    write_ntu_rain(work / "data", frames=20, height=48, width=56)
    assert adapt("--validation", "data") == 0
    for text in (capsys.readouterr().out, (work / "garden_report.md").read_text(encoding="utf-8")):
        assert "data, 1 clip (frames 3 to 18 of a1), PSNR and SSIM of the luma:" in text


def load_frame(work):
    from csd_plugin.data.images import read_image

    return read_image(work / "garden" / "00001.png")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--out", "garden.pt"], "ends in .pth"),
        (["--out", "nowhere/garden.pth"], "the folder nowhere does not exist"),
        (["--out", "student.pth"], "student.pth is also the input"),
        (["--student", "net.onnx"], "an exported network cannot learn"),
        (["--student", "nothing"], "there is no checkpoint nothing"),
        (["--keep", "0.3"], "there are no pairs to mix in"),
        (["--resume"], "there is no garden.state to continue from"),
        (["--validation", "garden"], "--validation garden: no Dataset_Testing_Synthetic/NAME_Rain"),
        (["--pairs", "nothing"], "nothing"),
        (["--out", "folder.pth", "--overwrite"], "folder.pth is a folder, but a file is to be written there"),
    ],
)
def test_mistakes_end_before_anything_is_learned(work, capsys, monkeypatch, more, words):
    monkeypatch.setattr(learning.Learner, "learn", lambda *_: pytest.fail("it has begun"))
    (work / "net.onnx").write_bytes(b"")
    (work / "folder.pth").mkdir()
    assert adapt(*more) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (work / "garden.pth").exists()


def test_an_input_without_frames_is_named_with_the_reason(work, capsys):
    (work / "drives").mkdir()
    (work / "drives" / "one.mp4").touch()
    for name, reason in (("drives", "holds videos, not images"), ("none.mp4", "none.mp4 does not exist")):
        files = [name, "--teacher", "teacher.pth", "--student", "student.pth", "--out", "garden.pth"]
        assert main(["adapt", *files, "--device", "cpu"]) == 2
        assert reason in capsys.readouterr().err


def test_inputs_that_cannot_be_learned_from_are_named_before_the_teacher_works(work, capsys, monkeypatch):
    monkeypatch.setattr(Teacher, "clean", lambda *_: pytest.fail("the teacher was asked"))
    for number, frame in enumerate(rain_on(moving_scene(FRAMES, 20, 56, 0), 1)):
        write_image(work / "low" / f"{number:05d}.png", frame)
    for name, reason in (
        ("low", "low: frames of 56x20 are too small to learn from: 32 pixels are needed"),
        ("-", "-: a camera or pipe cannot be read twice"),
        ("camera:0", "camera:0: a camera or pipe cannot be read twice"),
    ):
        files = [name, "--teacher", "teacher.pth", "--student", "student.pth", "--out", "new.pth"]
        assert main(["adapt", *files, "--device", "cpu"]) == 2
        assert reason in capsys.readouterr().err
    assert not list(work.glob("new*"))


def test_what_is_odd_about_the_frames_is_said_once(work, caplog):
    """They are read by the search for shots, by the teacher, and for the report."""
    (work / "garden" / "00013.png").unlink()
    deep = cv2.imread(str(work / "garden" / "00003.png")).astype("uint16") * 257
    cv2.imwrite(str(work / "garden" / "00003.png"), deep)
    assert adapt() == 0
    assert adapt("--overwrite") == 0
    for words in ("frames are missing between 00012 and 00014", "00003.png has 16 bits"):
        assert caplog.text.count(words) == 2, words  # in each of the two runs


def test_a_checkpoint_that_is_there_is_not_replaced_by_chance(work, capsys):
    (work / "garden.pth").write_text("mine")
    assert adapt() == 2
    assert "garden.pth already exists" in capsys.readouterr().err
    assert (work / "garden.pth").read_text() == "mine"


def test_what_would_be_found_after_the_teachers_work_is_found_before(work, capsys):
    for more, words in (
        (["--pairs", "nowhere"], "--pairs nowhere: data root nowhere does not exist"),
        (["--cache", "garden"], "--cache garden: is an input"),
    ):
        assert adapt(*more) == 2
        assert words in capsys.readouterr().err
    files = ["garden", "./garden", "--teacher", "teacher.pth", "--student", "student.pth", "--out", "garden.pth"]
    assert main(["adapt", *files]) == 2
    assert "garden is given twice" in capsys.readouterr().err
    assert sorted(path.name for path in work.iterdir()) == ["garden", "student.pth", "teacher.pth"]


def test_a_frozen_student_is_told_before_the_teacher_works(work, capsys, monkeypatch):
    from csd_plugin.adapt import run

    load = run.load_network
    monkeypatch.setattr(run, "load_network", lambda path: load(path).requires_grad_(False))
    before = sorted(work.iterdir())
    assert adapt() == 2
    assert "--student student.pth: all weights of" in capsys.readouterr().err
    assert sorted(work.iterdir()) == before


def test_a_run_that_gets_more_time_is_looked_at_on_the_way_there(work, capsys, monkeypatch):
    looked = []
    look = learning.Learner._look
    monkeypatch.setattr(learning.Learner, "_look", lambda self, *more: looked.append(1) or look(self, *more))
    assert adapt(minutes="0.04") == 0
    first = len(looked)
    assert adapt("--resume", minutes="0.2") == 0
    assert first > 6 and len(looked) - first > 6


def test_the_best_of_an_earlier_run_is_compared_on_the_same_frames(work, capsys, monkeypatch):
    """How many are looked at goes by the time; here more of them, on which everything has another score."""
    assert adapt(minutes="0.04") == 0
    earlier = torch.load(work / "garden.state")["best"]
    scores = []

    def scored(network, *_):
        scores.append(-1.0 if scores else 5.0)  # nothing is better than what was there
        return scores[-1]

    monkeypatch.setattr(run, "_nearness", scored)
    assert adapt("--resume", minutes="0.08") == 0
    state = torch.load(work / "garden.state")
    assert state["progress"]["best"] == 5.0 and len(scores) > 1
    assert all(torch.equal(state["best"][name], weight) for name, weight in earlier.items())
    assert "holds the unchanged student" not in capsys.readouterr().out


def test_a_cache_is_filled_by_one_command_and_read_by_many(work, capsys):
    with alone(work / "garden.cache"):
        assert adapt() == 2
    assert "garden.cache: another command is writing there now" in capsys.readouterr().err
    assert not (work / "garden.cache").exists()
    assert adapt() == 0
    with alone(work / "garden.cache"):
        assert adapt("--overwrite") == 0
    with alone(work / "garden.pth"):
        assert adapt("--overwrite") == 2
    assert "garden.pth: another command is writing there now" in capsys.readouterr().err


def test_outputs_that_share_a_cache_have_states_of_their_own(work, capsys):
    assert adapt("--cache", "frames") == 0
    (work / "other").mkdir()
    assert adapt("--cache", "frames", "--out", "other/garden.pth", "--rate", "0.02") == 0
    assert adapt("--cache", "frames", "--resume", minutes="0.02") == 0


@pytest.mark.parametrize("name", ["garden.state", "garden_report.md", "garden_report.png"])
def test_no_other_file_is_replaced_by_chance(work, capsys, name):
    (work / name).write_text("mine")
    assert adapt() == 2
    assert f"{name} already exists" in capsys.readouterr().err
    assert (work / name).read_text() == "mine"


def test_the_report_does_not_become_a_frame(work, capsys):
    assert adapt("--out", "garden/mine.pth") == 2
    assert "--out garden/mine.pth: the report's picture would be one of the frames in garden" in capsys.readouterr().err
    assert len(list((work / "garden").iterdir())) == FRAMES


def test_what_helps_on_some_frames_alone_is_not_shipped(work, capsys, monkeypatch):
    """On those that are looked at on the way anything is better than the student; the teacher brightens the others."""
    monkeypatch.setattr(run, "_nearness", lambda network, *_: float(network.tail.bias[0] != 0.1))
    monkeypatch.setattr(learning, "rate_at", lambda *_: -1.0)  # away from the teacher
    assert adapt() == 0
    assert "the checkpoint holds the unchanged student" in capsys.readouterr().out
    student, kept = (load_network(work / name).state_dict() for name in ("student.pth", "garden.pth"))
    assert all(torch.equal(student[name], kept[name]) for name in student)
