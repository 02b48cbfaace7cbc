import pytest

from mdistiller.engine.cfg import CFG, load_cfg
from mdistiller.errors import UserError
from tests.conftest import REPO


def test_base_files_chain_and_are_relative_to_the_file(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/a.yaml").write_text("SOLVER: {LR: 0.3, EPOCHS: 7}\n")
    (tmp_path / "base/b.yaml").write_text("_BASE_: a.yaml\nSOLVER: {EPOCHS: 8}\n")
    (tmp_path / "c.yaml").write_text("_BASE_: base/b.yaml\nDISTILLER: {TYPE: KD}\n")
    cfg = load_cfg(str(tmp_path / "c.yaml"), ["SOLVER.LR", "1e-2"])
    assert (cfg.SOLVER.LR, cfg.SOLVER.EPOCHS, cfg.DISTILLER.TYPE) == (0.01, 8, "KD")
    assert CFG.SOLVER.LR == 0.05  # the defaults stay what they are


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1\n", "holds a list; expected sections"),
        ("SOLVER: {LR: 0.1\n", "is not valid YAML"),
        ("SOLVER: 3\n", "SOLVER in .* is a section"),
        ("SOLVER: {LRR: 3}\n", "unknown config key SOLVER.LRR in .*bad.yaml"),
        ("SOLVER.LR: 0.1\n", "SOLVER.LR in .*bad.yaml is written with a dot; write SOLVER: {LR: …}"),
        ("SFAKD: {MASK.TYPE: hard}\n", "SFAKD.MASK.TYPE in .* is written with a dot; write SFAKD: {MASK: {TYPE: …}}"),
        ("SOLVER: {EPOCHS: 010}\n", "SOLVER.EPOCHS in .* is '010'; expected a whole number"),
        ("_BASE_: bad.yaml\n", "leads back to the file itself"),
        ("_BASE_: gone.yaml\n", "gone.yaml cannot be read"),
        ("SOLVER: !!python/object/apply:os.system ['touch owned']\n", "is not valid YAML"),
    ],
)
def test_bad_files(tmp_path, content, message):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        load_cfg(str(tmp_path / "bad.yaml"))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["2024_01_15", "010", "12:30", "0x10", "2024-01-15", "1_000"])
def test_a_name_of_digits_stays_as_it_is_written(tmp_path, name):
    (tmp_path / "a.yaml").write_text(f"EXPERIMENT: {{NAME: {name}, SEED: 10}}\nSOLVER: {{WARMUP_EPOCHS: +3}}\n")
    cfg = load_cfg(str(tmp_path / "a.yaml"))
    assert (name, 10, 3) == (cfg.EXPERIMENT.NAME, cfg.EXPERIMENT.SEED, cfg.SOLVER.WARMUP_EPOCHS)
    assert name == load_cfg(None, ["EXPERIMENT.NAME", name]).EXPERIMENT.NAME


def test_a_missing_file_offers_its_neighbors():
    with pytest.raises(UserError, match="did you mean .*res32x4_res8x4.yaml"):
        load_cfg(str(REPO / "configs/cifar100/sfakd/res32x4_res8x.yaml"))


def test_a_path_far_off_is_not_searched_for():
    with pytest.raises(UserError, match="did you mean .*res32x4_res8x4"):
        load_cfg("/no/such/folder/res32x4_res8x4.yml")
    with pytest.raises(UserError, match="config  cannot be read|config . cannot be read"):
        load_cfg("")


def test_an_anchor_in_itself_is_refused(tmp_path):
    (tmp_path / "loop.yaml").write_text("SOLVER: &a {LR: *a}\n")
    line = "loop.yaml is not valid YAML: more than .* an anchor .* may lead back to itself"
    with pytest.raises(UserError, match=line):
        load_cfg(str(tmp_path / "loop.yaml"))
    (tmp_path / "twice.yaml").write_text("SOLVER: {EPOCHS: &n 7, BATCH_SIZE: *n}\n")
    assert load_cfg(str(tmp_path / "twice.yaml")).SOLVER.BATCH_SIZE == 7


def test_a_base_is_not_looked_for_in_the_working_directory(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {EPOCHS: 9}\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/mine.yaml").write_text("_BASE_: base.yaml\n")
    with pytest.raises(UserError, match="folder/base.yaml cannot be read"):
        load_cfg("folder/mine.yaml")
    (tmp_path / "folder/base.yaml").write_text("SOLVER: {EPOCHS: 300}\n")
    for name in ("base.yaml", "base"):
        (tmp_path / "folder/mine.yaml").write_text(f"_BASE_: {name}\n")
        assert load_cfg("folder/mine.yaml").SOLVER.EPOCHS == 300
    (tmp_path / "folder/mine.yaml").write_text("_BASE_: demo/sfakd\n")
    assert load_cfg("folder/mine.yaml").DISTILLER.TYPE == "SFAKD"
