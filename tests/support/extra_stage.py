"""A stage that is not part of the product: its row in the table and its function. Imported by `sitecustomize`."""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune_trainer.stage_context import StageContext

NAME = "sign"


def register() -> None:
    """Add the stage to this process before anything reads the table, because members cannot be added to an Enum
    later."""
    from finetune_api.constants import Phase, Reason, Stage

    member = str.__new__(Stage, NAME)
    member._name_, member._value_ = NAME.upper(), NAME
    Stage._member_names_.append(member._name_)
    Stage._member_map_[member._name_] = Stage._value2member_map_[NAME] = member

    from finetune_api.stages import STAGES, StageSpec

    STAGES[member] = StageSpec(
        member, Phase.EVALUATING, Reason.EVALUATING, Reason.EVALUATE_FAILED, "signing", entry=f"{__name__}:run"
    )


def run(context: "StageContext") -> None:
    """Write a note about the exported model next to it."""
    config = context.prepared_config()
    assert config.prepared is not None
    note = {"model": config.model_uri, "base": config.prepared.model_digest, "attempts": len(config.attempts)}
    context.store.put(f"{config.run_uri}/signature.json", json.dumps(note).encode())
