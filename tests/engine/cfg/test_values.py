import pytest

from mdistiller.engine.cfg import load_cfg


def test_words_that_yaml_reads_as_booleans():
    cfg = load_cfg(None, ["SOLVER.AMP", "off", "DATASET.IN_MEMORY", "yes", "EXPERIMENT.NAME", "2024"])
    assert (cfg.SOLVER.AMP, cfg.DATASET.IN_MEMORY, cfg.EXPERIMENT.NAME) == ("off", "yes", "2024")
    assert load_cfg(None, ["DATASET.IN_MEMORY", "no"]).DATASET.IN_MEMORY == "no"


@pytest.mark.parametrize("word", ["007", "1:30", "on", "0x10", "1.10", "2024-01-01", "#3", "[a]", "null"])
def test_a_text_stays_as_it_was_typed(word):
    assert word == load_cfg(None, ["EXPERIMENT.NAME", word]).EXPERIMENT.NAME


def test_empty_and_none_overrides():
    cfg = load_cfg(None, ["DISTILLER.TEACHER_WEIGHTS", "", "DATASET.INPUT_SIZE", "None", "EXPERIMENT.NAME", "null_run"])
    assert (cfg.DISTILLER.TEACHER_WEIGHTS, cfg.DATASET.INPUT_SIZE, cfg.EXPERIMENT.NAME) == ("", None, "null_run")
