"""Arguments of the operator that are checked before it starts."""

import pytest

from finetune_operator.__main__ import _parser


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("--lease=finetune-operator", "must be NAMESPACE/NAME, not finetune-operator"),
        ("--lease=a/b/c", "must be NAMESPACE/NAME, not a/b/c"),
        ("--lease=../a", "must be NAMESPACE/NAME, not ../a"),
        ("--lease-seconds=1", "must be a whole number of at least 5, not 1"),
        ("--lease-seconds=7.5", "must be a whole number of at least 5, not 7.5"),
    ],
)
def test_an_unusable_argument_is_refused_with_its_reason(
    argument: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _parser().parse_args(["run", argument])
    assert reason in capsys.readouterr().err


def test_the_lease_has_a_namespace_and_a_name() -> None:
    options = _parser().parse_args(["run", "--lease=finetune-system/finetune-operator"])
    assert (options.lease, options.lease_seconds) == (("finetune-system", "finetune-operator"), 15)
