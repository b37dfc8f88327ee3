"""The poll of a run that has ended: lists its source files, to find out whether they have changed."""

from finetune_api.progress import PollResult

from ..stage_context import StageContext
from .sources import listing_digest


def run(context: StageContext) -> PollResult:
    """Run the stage: one request per address, or per 1,000 files of a pattern. Nothing is downloaded."""
    return PollResult(source_digest=listing_digest(context.config.spec.data, context.store))
