"""Event files: the bytes that tensorboardX's own writer makes, and what is cut off them."""

from tensorboardX import SummaryWriter

from mdistiller.engine.log.tensorboard import EventFile, cut_events, records


def numbers(path):
    events = [event for _, event in records(path.read_bytes())]
    return [(value.tag, event.step, value.simple_value) for event in events for value in event.summary.value]


def test_they_are_tensorboards(tmp_path):
    ours = EventFile(tmp_path / "ours")
    theirs = SummaryWriter(str(tmp_path / "theirs"))
    for writer in (ours, theirs):
        writer.add_scalar("step/loss", 0.25, 7)
        writer.add_scalar("epoch/loss", 0.5, 1)
        writer.flush()
    theirs.close()
    (path,) = (tmp_path / "theirs").iterdir()
    expected = [("step/loss", 7, 0.25), ("epoch/loss", 1, 0.5)]
    assert numbers(ours.path) == numbers(path) == expected
    versions = [next(records(file.read_bytes()))[1].file_version for file in (ours.path, path)]
    assert versions == ["brain.Event:2"] * 2
    assert "tfevents" in ours.path.name
    # the reading above checks every checksum; both files are whole to it
    assert sum(len(record) for record, _ in records(ours.path.read_bytes())) == ours.path.stat().st_size


def test_two_files_of_one_second(tmp_path):
    first, second = EventFile(tmp_path), EventFile(tmp_path)
    for step, file in enumerate((first, second)):
        file.add_scalar("step/loss", 1.0, step)
        file.flush()
    assert [len(numbers(file.path)) for file in (first, second)] == [1, 1]


def test_epochs_and_steps_are_cut_each_by_its_own_count(tmp_path):
    file = EventFile(tmp_path)
    for step in (10, 20, 30):
        file.add_scalar("step/loss", 1.0, step)
        file.add_scalar("epoch/loss", 1.0, step // 10)
    file.flush()
    cut_events(tmp_path, epoch=1, step=20)
    assert numbers(file.path) == [("step/loss", 10, 1.0), ("epoch/loss", 1, 1.0), ("step/loss", 20, 1.0)]


def test_what_is_not_whole_is_cut(tmp_path):
    file = EventFile(tmp_path)
    file.add_scalar("step/loss", 1.0, 1)
    file.flush()
    whole = file.path.read_bytes()
    for tail in (b"\x00", whole[:20], whole[:-1], whole[:-3] + b"abc"):
        file.path.write_bytes(whole + tail)
        cut_events(tmp_path, epoch=9, step=9)
        left = file.path.read_bytes()
        assert left.startswith(whole)
        assert sum(len(record) for record, _ in records(left)) == len(left)
    assert [path.name for path in tmp_path.iterdir()] == [file.path.name]
