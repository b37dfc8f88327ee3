"""`make soak`: kill all processes that write checkpoints, hundreds of times, and measure what is lost.

    make soak ARGS='--kills 200 --seed 1'

Two ranks train tiny models with and without dropout, full and with LoRA, ZeRO 1 to 3, with checkpoint.maxLostWork of
five seconds. One rank, all ranks, an uploader or the storage server are killed with SIGKILL at random times and at
every kind of request: before storage gets it, or after it was executed but before the response. Half of the attempts
find no node-local cache. Storage's clock runs 1,800 times as fast, so unneeded blobs are removed within seconds. Every
run completes in the end, and its log is compared with that of an uninterrupted run.

kills             Number of kills.
corruptResumes    Attempts that failed by themselves, checkpoints that were skipped or damaged at the end: must be 0.
maxLostIntervals  Work lost by the kill of a rank, in units of checkpoint.maxLostWork: at most 1. Attempts in which an
                  uploader or storage was killed before are in maxLostIntervalsAfterOtherKills.
lossMismatches    Logged losses that differ from those of the uninterrupted run in any bit: must be 0.

An interrupted campaign is continued by the next call. The last line of output is one JSON object.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from soak.campaign import Campaign, setup

MAX_LOST_SECONDS = 5.0


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--folder", type=Path, default=Path(".finetune/soak"), help="folder with the state of the campaign"
    )
    return parser.parse_args()


def main() -> None:
    """Run the remaining runs, print each, summarize; exit with 1 if anything was lost."""
    options = _parsed()
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / f"seed-{options.seed}-kills-{options.kills}.jsonl"
    campaign = Campaign(seed=options.seed, kills=options.kills, path=path)
    if campaign.outcomes:
        print(f"continuing after {len(campaign.outcomes)} runs recorded in {path}")
    with tempfile.TemporaryDirectory() as folder, setup(Path(folder), max_lost_seconds=MAX_LOST_SECONDS) as place:
        begun = time.monotonic()
        for outcome in campaign.run(place):
            print(
                f"{time.monotonic() - begun:6.0f} s  run {outcome.number}: {outcome.attempts} attempts, "
                f"{len(outcome.kills)} kills ({campaign.kills} of {options.kills}), {len(outcome.corrupt)} corrupt, "
                f"{outcome.mismatches} mismatches",
                flush=True,
            )
            for reported in outcome.corrupt:
                print(f"    {reported}", flush=True)
    summary = campaign.summary(MAX_LOST_SECONDS)
    print(f"\n{campaign.table()}\n\n{json.dumps(summary)}")
    path.unlink()  # the next call starts a new campaign
    is_whole = summary["corruptResumes"] == summary["lossMismatches"] == 0 and summary["maxLostIntervals"] <= 1
    sys.exit(0 if is_whole and summary["kills"] >= options.kills else 1)


if __name__ == "__main__":
    main()
