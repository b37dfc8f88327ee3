"""What a phase says."""

import pytest

from finetune_api.constants import Phase

TERMINAL = {"Suspended", "Succeeded", "Failed", "Invalid"}


@pytest.mark.parametrize("phase", Phase)
def test_a_phase_is_terminal_when_nothing_happens_without_a_change_of_the_job(phase: Phase) -> None:
    assert phase.is_terminal == (phase.value in TERMINAL)
