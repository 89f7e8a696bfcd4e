from __future__ import annotations

import io
import random
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
from rar_files import RarEntry, need_rar_reader, rar4, rar5

from csd_plugin.data import archives
from csd_plugin.data.archives import archive_stem, is_archive_name, members
from csd_plugin.errors import CSDError

FRAMES = [(f"t1_GT/{i:05d}.jpg", random.Random(i).randbytes(300)) for i in range(1, 6)]
TAR_MODES = {".tar": "w", ".tar.gz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}
KINDS = ("rar4", "rar5", ".zip", *TAR_MODES)


def archive(kind: str, entries: list[tuple[str, bytes]], link: bool = False) -> bytes:
    """An archive of these (name, content); with `link`, the last one is a symbolic link to its content."""
    if kind.startswith("rar"):
        need_rar_reader()
        last = len(entries) - 1
        made = [RarEntry(name, data, link and i == last) for i, (name, data) in enumerate(entries)]
        return rar4(made) if kind == "rar4" else rar5(made)
    file = io.BytesIO()
    if kind == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
            for i, (name, data) in enumerate(entries):
                info = zipfile.ZipInfo(name)
                info.external_attr = (0o120777 if link and i == len(entries) - 1 else 0o100644) << 16
                zipped.writestr(info, data)
        return file.getvalue()
    with tarfile.open(fileobj=file, mode=TAR_MODES[kind]) as tar:
        for i, (name, data) in enumerate(entries):
            entry = tarfile.TarInfo(name)
            if link and i == len(entries) - 1:
                entry.type, entry.linkname, data = tarfile.SYMTYPE, data.decode(), b""
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def unpack(path: Path) -> list[tuple[str, bytes]]:
    return [(member.name, member.read()) for member in members(path)]


def failing(path: Path) -> str:
    with pytest.raises(CSDError) as caught:
        unpack(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_content_in_order(tmp_path, kind):
    path = tmp_path / "named.anything"  # the content tells the kind
    path.write_bytes(archive(kind, FRAMES))
    assert unpack(path) == FRAMES
    assert [(member.name, member.size) for member in members(path)] == [(name, 300) for name, _ in FRAMES]
    some = [member.read() for i, member in enumerate(members(path)) if i in (1, 3)]  # others are passed over
    assert some == [FRAMES[1][1], FRAMES[3][1]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["../x.jpg", "/x.jpg", "t1_GT/../../x.jpg", "C:/x.jpg", "C:x.jpg", "..\\x.jpg", "\\x.jpg", "\x1b[2Jx.jpg"]
)
def test_names_that_lead_outside(tmp_path, kind, name):
    path = tmp_path / "evil"
    path.write_bytes(archive(kind, [FRAMES[0], (name, b"x")]))
    assert "leads outside" in failing(path)


@pytest.mark.parametrize("kind", KINDS)
def test_links(tmp_path, kind):
    path = tmp_path / "link"
    path.write_bytes(archive(kind, [FRAMES[0], ("t1_GT/00002.jpg", b"/etc/passwd")], link=True))
    assert "is a link" in failing(path)


@pytest.mark.parametrize("make", [rar4, rar5])
def test_encrypted_rar(tmp_path, make):
    need_rar_reader()
    path = tmp_path / "secret.rar"
    path.write_bytes(make([RarEntry("t1_GT/00001.jpg", b"x" * 32, encrypted=True)]))
    assert "encrypted" in failing(path)


def test_encrypted_zip(tmp_path):
    data = bytearray(archive(".zip", FRAMES[:1]))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path = tmp_path / "secret.zip"
    path.write_bytes(data)
    assert "encrypted" in failing(path)


def test_names_that_a_zip_has_twice(tmp_path):
    """No checksum covers them: a frame whose name were damaged would be left out as no image, without a word."""
    data = bytearray(archive(".zip", FRAMES[:2]))
    at = data.rindex(b"00002.jpg")
    data[at + 6] ^= 2
    path = tmp_path / "damaged.zip"
    path.write_bytes(data)
    with pytest.raises(CSDError, match="differ"):
        list(members(path))


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_devices_in_a_tar(tmp_path, kind):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as file:
        entry = tarfile.TarInfo("a/1.png")
        entry.type = kind
        file.addfile(entry)
    assert "'a/1.png' is a device or pipe" in failing(path)


def test_devices_in_a_zip(tmp_path):
    entry = zipfile.ZipInfo("a/1.png")
    entry.external_attr = 0o010644 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(entry, b"")
    assert "'a/1.png' is a device or pipe" in failing(tmp_path / "x.zip")


def test_names_with_a_nul_in_a_zip(tmp_path):
    """zipfile shows such a name up to the NUL."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a/1.png?.exe", b"x")
    path = tmp_path / "y.zip"
    path.write_bytes((tmp_path / "x.zip").read_bytes().replace(b"?", b"\0"))
    assert "cannot be printed" in failing(path)


@pytest.mark.parametrize("kind", [".zip", ".tar"])
def test_names_longer_than_paths(tmp_path, kind):
    (tmp_path / "x").write_bytes(archive(kind, [(f"a/{'b' * 5000}/1.png", b"x")]))
    assert "name has 5,008 characters" in failing(tmp_path / "x")


@pytest.mark.parametrize("kind", [".zip", ".tar", "rar4", "rar5"])
def test_more_files_than_frames_of_a_clip(tmp_path, monkeypatch, kind):
    path = tmp_path / "x"
    path.write_bytes(archive(kind, [(f"a/{number}.png", b"x") for number in range(5)]))
    assert len(unpack(path)) == 5
    monkeypatch.setattr(archives, "_MAX_ENTRIES", 3)
    assert "more than 3 files" in failing(path)


def test_a_list_that_is_far_too_long_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "x.zip"
    path.write_bytes(archive(".zip", [(f"a/{number}.png", b"x") for number in range(50)]))
    monkeypatch.setattr(archives, "_MAX_LIST", 1000)
    assert "list of files is too long" in failing(path)


@pytest.mark.parametrize(
    ("start", "kind"),
    [(b"7z\xbc\xaf\x27\x1c\0\4", "7z"), (b"\x28\xb5\x2f\xfd", "Zstandard"), (b"MSCF", "CAB"), (b"LZIP", "lzip")],
)
def test_kinds_that_are_not_read(tmp_path, start, kind):
    (tmp_path / "x.zip").write_bytes(start + bytes(99))
    assert f"{kind} archives are not supported, only ZIP, RAR and TAR" in failing(tmp_path / "x.zip")


def test_absurd_sizes(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("t1_GT/00001.png", bytes(300 * 2**20))
    assert "too many for a frame" in failing(path)

    one = bytes(2 * 2**20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        zipped.writestr("1.png", one)
    many = bytearray(path.read_bytes())
    entry = many[many.index(b"PK\x01\x02") : many.rindex(b"PK\x05\x06")]
    start, count = many.index(b"PK\x01\x02"), 1200  # that many names for the same bytes
    end = many[many.rindex(b"PK\x05\x06") :]
    end[8:12] = count.to_bytes(2, "little") * 2
    end[12:16] = (count * len(entry)).to_bytes(4, "little")
    path.write_bytes(bytes(many[:start]) + bytes(entry) * count + bytes(end))
    with pytest.raises(CSDError, match=r"unpack to over|zip bomb"):  # Python 3.13 refuses it first
        list(members(path))


def test_what_is_no_archive(tmp_path):
    for data in (b"", b"hello", bytes(2000), b"PK\x03\x04", b"Rar!\x1a\x07\x00", b"Rar!\x1a\x07\x01\x00" + bytes(100)):
        path = tmp_path / "no.rar"
        path.write_bytes(data)
        if data.startswith(b"Rar"):
            need_rar_reader()
        if data != bytes(2000):  # two blocks of zeros are a tar with nothing in it
            failing(path)
    failing(tmp_path / "not_there.rar")


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_never_silent(tmp_path, kind):
    """Cut anywhere or with a bit changed: an error of one line, or exactly the content that was put in."""
    whole = archive(kind, FRAMES)
    rng = random.Random(kind)
    path = tmp_path / "damaged"
    refused = 0
    for turn in range(120):
        if turn % 2:
            data = whole[: rng.randrange(len(whole))]
        else:
            changed = bytearray(whole)
            changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            data = bytes(changed)
        path.write_bytes(data)
        try:
            found = unpack(path)
        except CSDError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        if kind == ".tar":  # without checksums of content
            assert len(found) == len(FRAMES)
        else:
            assert found == FRAMES
    assert refused > 40


def test_rar_as_ntu_rain_is_distributed(shared):
    need_rar_reader()
    found = dict(unpack(shared / "data/NTURain/archives/ra1_Rain.rar"))
    assert "ra1_Rain/Thumbs.db" in found
    for file in (shared / "data/NTURain/Dataset_Testing_RealRain/ra1_Rain").iterdir():
        assert zlib.crc32(found[f"ra1_Rain/{file.name}"]) == zlib.crc32(file.read_bytes())


@pytest.mark.parametrize("module", ["libarchive", "rarfile"])
def test_the_extra_is_named(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "t1_GT.rar"
    path.write_bytes(rar4([RarEntry("t1_GT/00001.jpg", b"x")]))
    with pytest.raises(CSDError, match=rf"needs the package {module}: pip install '\.\[archives\]'"):
        list(members(path))


def test_the_c_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "libarchive.py").write_text("raise OSError('libarchive.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "libarchive", raising=False)
    path = tmp_path / "t1_GT.rar"
    path.write_bytes(rar4([RarEntry("t1_GT/00001.jpg", b"x")]))
    with pytest.raises(CSDError, match="apt-get install libarchive13"):
        list(members(path))


def test_names_of_archives():
    assert [archive_stem(name) for name in ("t1_GT.rar", "a.b.TAR.GZ", "x.tgz", "00001.jpg", ".zip")] == [
        "t1_GT",
        "a.b",
        "x",
        "00001.jpg",
        ".zip",
    ]
    assert is_archive_name("REDS.zip") and not is_archive_name("Thumbs.db")
