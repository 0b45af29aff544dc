"""The double of `crash_files` bites: what a careless store may lose on it, it does lose in some image."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import harness
from tests.support.crash_files import CrashFiles


@pytest.fixture
def place(path: Path) -> Path:
    return path.parent


def contents(files: CrashFiles, name: str, at_most: int = 4096) -> set[bytes | None]:
    """Return what the file may hold after a power cut; None: there may be no such file."""
    return {
        next((content.ljust(length, b"\0") for path, content, length in image.files if path == name), None)
        for image in files.images(at_most)
    }


def write(files: CrashFiles, path: Path, content: bytes, *, sync: bool = False) -> None:
    descriptor = files.open(str(path), write=True, create=True)
    files.write(descriptor, content, 0, str(path))
    if sync:
        files.sync(descriptor, str(path))
    files.close(descriptor)


def test_what_was_not_synced_may_be_lost_whole_or_by_halves(place: Path) -> None:
    (place / "log").write_bytes(b"a" * 1024)
    files = CrashFiles(place)
    write(files, place / "log", b"b" * 1024)
    a, b = b"a" * 512, b"b" * 512
    assert contents(files, "log") == {a + a, a + b, b + a, b + b}
    write(files, place / "log", b"c" * 512)
    assert contents(files, "log") == {one + other for one in (a, b, b"c" * 512) for other in (a, b)}
    write(files, place / "log", b"d" * 1024, sync=True)
    assert contents(files, "log") == {b"d" * 1024}


def test_a_growing_file_may_be_short_or_end_in_zeros(place: Path) -> None:
    (place / "log").write_bytes(b"a" * 100)
    files = CrashFiles(place)
    write(files, place / "log", b"a" * 100 + b"b" * 500)
    long, short = b"a" * 100 + b"b" * 412, b"a" * 100
    assert contents(files, "log") == {
        *(short, short.ljust(600, b"\0"), short.ljust(512, b"\0") + b"b" * 88),
        *(long.ljust(600, b"\0"), long + b"b" * 88),
    }


def test_a_cut_file_may_come_back_in_its_old_length(place: Path) -> None:
    (place / "log").write_bytes(b"a" * 100)
    files = CrashFiles(place)
    descriptor = files.open(str(place / "log"), write=True)
    files.truncate(descriptor, 10, str(place / "log"))
    assert contents(files, "log") >= {b"a" * 100, b"a" * 10}
    files.sync(descriptor, str(place / "log"))
    assert contents(files, "log") == {b"a" * 10}
    files.close(descriptor)


def test_a_cut_and_every_single_write_make_versions_of_their_own(place: Path) -> None:
    (place / "log").write_bytes(b"a" * 4)
    files = CrashFiles(place)
    path = str(place / "log")
    descriptor = files.open(path, write=True)
    files.write(descriptor, b"b", 0, path)
    files.write(descriptor, b"c", 0, path)
    assert contents(files, "log") == {b"aaaa", b"baaa", b"caaa"}
    mapping = files.map(descriptor, 4, path, write=True)
    mapping[:1] = b"m"
    files.truncate(descriptor, 2, path)
    assert contents(files, "log") >= {b"maaa", b"ma"}
    mapping.close()
    files.close(descriptor)


def test_a_mapped_write_is_seen_though_nothing_was_called(place: Path) -> None:
    (place / "log").write_bytes(bytes(4096))
    files = CrashFiles(place, unit=4096)
    descriptor = files.open(str(place / "log"), write=True)
    mapping = files.map(descriptor, 4096, str(place / "log"), write=True)
    mapping[:5] = b"first"
    assert contents(files, "log") == {bytes(4096), b"first".ljust(4096, b"\0")}
    mapping[:5] = b"other"
    assert len(contents(files, "log")) == 3
    files.sync(descriptor, str(place / "log"))
    assert contents(files, "log") == {b"other".ljust(4096, b"\0")}
    mapping.close()
    files.close(descriptor)


def test_a_synced_file_is_gone_if_its_name_was_not_synced(place: Path) -> None:
    files = CrashFiles(place)
    write(files, place / "new", b"new", sync=True)
    assert contents(files, "new") == {None, b"new"}
    files.sync_directory(str(place))
    assert contents(files, "new") == {b"new"}


def test_a_toy_store_that_renames_without_a_sync_of_the_directory_loses_its_file(place: Path) -> None:
    """Write a temporary file, sync it, rename it, unlink the old ones: fine on any real ext4, wrong all the same."""
    for adversarial in (False, True):
        (toy := place / f"{adversarial}").mkdir()
        (toy / "list").write_bytes(b"old")
        (toy / "old").write_bytes(b"what the old list names")
        files = CrashFiles(toy, adversarial=adversarial)
        write(files, toy / "list.new", b"new", sync=True)
        files.replace(str(toy / "list.new"), str(toy / "list"))
        assert contents(files, "list") == {b"old", b"new"}
        files.unlink(str(toy / "old"))
        left = {tuple(content for _, content, _ in image.files if content != b"new") for image in files.images(64)}
        assert (left >= {(b"old",)}) == adversarial  # its file is gone, and it is the list that stays
        files.sync_directory(str(toy))
        assert [image.files for image in files.images(64)] == [(("list", b"new", 3),)]


def test_names_survive_as_a_prefix_or_as_any_subset_that_can_be(place: Path) -> None:
    for adversarial, expected in (False, ["a", "ab", "b", "c"]), (True, ["", "a", "ab", "ac", "b", "c"]):
        (toy := place / f"{adversarial}").mkdir()
        (toy / "a").write_bytes(b"")
        files = CrashFiles(toy, adversarial=adversarial)
        write(files, toy / "b", b"")
        files.unlink(str(toy / "a"))
        files.replace(str(toy / "b"), str(toy / "c"))
        # Each once: a rename whose source has not survived is no image.
        assert sorted("".join(name for name, _, _ in image.files) for image in files.images(64)) == expected


def test_a_name_is_not_made_again_before_it_is_gone(place: Path) -> None:
    (place / "a").write_bytes(b"old")
    files = CrashFiles(place)
    files.unlink(str(place / "a"))
    write(files, place / "a", b"new", sync=True)
    assert sorted(image.files for image in files.images(64)) == [(), (("a", b"new", 3),), (("a", b"old", 3),)]


def test_a_directory_that_is_lost_takes_along_all_below_it(place: Path) -> None:
    files = CrashFiles(place)
    files.make_directory(str(place / "a"))
    files.make_directory(str(place / "a" / "b"))
    files.make_directory(str(place / "a" / "b" / "c"))
    found = sorted({image.folders for image in files.images(64)})
    assert found == [(), ("a",), ("a", "a/b"), ("a", "a/b", "a/b/c")]


def test_a_directory_that_is_lost_takes_along_what_lies_in_it(place: Path) -> None:
    files = CrashFiles(place)
    files.make_directory(str(place / "store"))
    write(files, place / "store" / "new", b"new", sync=True)
    files.sync_directory(str(place / "store"))
    assert sorted((image.folders, bool(image.files)) for image in files.images(9)) == [((), False), (("store",), True)]
    files.sync_directory(str(place))
    assert contents(files, "store/new") == {b"new"}


def test_an_image_is_made_of_real_files_and_starts_a_double_of_its_own(place: Path) -> None:
    (place / "one").mkdir()
    (place / "two").mkdir()
    files = CrashFiles(place / "one")
    files.make_directory(str(place / "one" / "store"))
    write(files, place / "one" / "store" / "new", b"new".ljust(100_000, b"\0"))
    last = [*files.images(64)][-1]
    last.put_into(place / "two")
    assert harness.snapshot_of(place / "two") == harness.snapshot_of(place / "one")
    assert [image.digest() for image in CrashFiles(place / "two").images(64)] == [last.digest()]


def test_a_sample_is_as_large_as_asked_for_and_the_same_for_the_same_seed(place: Path) -> None:
    (place / "log").write_bytes(b"a" * 512 * 20)
    samples = []
    for _ in range(2):
        files = CrashFiles(place, seed=7)
        descriptor = files.open(str(place / "log"), write=True)
        files.write(descriptor, b"b" * 512 * 20, 0, str(place / "log"))
        samples.append([image.digest() for image in files.images(100)])
        files.close(descriptor)
        (place / "log").write_bytes(b"a" * 512 * 20)
    assert samples[0] == samples[1]
    assert len(samples[0]) == 100
