"""Job phases."""

import pytest

from finetune_api.constants import Phase

TERMINAL = {"Suspended", "Succeeded", "Failed", "Invalid"}


@pytest.mark.parametrize("phase", Phase)
def test_a_phase_is_terminal_if_only_a_change_of_the_job_can_leave_it(phase: Phase) -> None:
    assert phase.is_terminal == (phase.value in TERMINAL)
