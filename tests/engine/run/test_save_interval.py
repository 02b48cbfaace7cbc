import pytest

from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.run.save_interval import SaveInterval
from mdistiller.engine.validate import check_settings
from mdistiller.errors import UserError


def test_steps():
    schedule = SaveInterval("3 steps")
    assert [step for step in range(1, 10) if schedule.due(step)] == [3, 6, 9]
    assert all(SaveInterval("1 step").due(step) for step in range(1, 4))


def test_minutes_count_from_the_last_save():
    now = [100.0]
    schedule = SaveInterval("1.5 minutes", clock=lambda: now[0])
    now[0] += 89
    assert not schedule.due(1)
    now[0] += 1
    assert schedule.due(2)
    schedule.reset()
    assert not schedule.due(3)
    now[0] += 90
    assert schedule.due(4)


def test_never():
    assert not any(SaveInterval("").due(step) for step in range(1, 100))


@pytest.mark.parametrize(
    "text", ["500", "0 steps", "-1 steps", "1.5 steps", "0 minutes", "ten minutes", "5 hours", "5minutes"]
)
def test_other_texts_are_refused_with_the_other_faults(text):
    with pytest.raises(ValueError):
        SaveInterval(text)
    cfg = load_cfg(None, ["SOLVER.CHECKPOINT_EVERY", text, "SOLVER.LR", "-1"])
    with pytest.raises(UserError) as caught:
        check_settings(cfg)
    expected = "500 steps, 10 minutes or the like; empty to save after each epoch only"
    line = f"SOLVER.CHECKPOINT_EVERY is {text!r}; expected {expected}"
    assert line in str(caught.value).splitlines()
    assert len(str(caught.value).splitlines()) == 2
