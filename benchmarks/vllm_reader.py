"""Reads model folders with vLLM. `vllm_check.py` runs it in the environment of a version of vLLM.

    python vllm_reader.py CASES_FILE RESULTS_FILE

Both files contain JSON. A result that cannot be read is an object with `error`.
"""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import transformers
import vllm
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.lora.request import LoRARequest

LENGTH = 128
BLOCKS = 64
RANK = 8
"""Highest rank of an adapter."""


def read(case: dict[str, Any]) -> dict[str, Any]:
    """What vLLM reads from a folder: settings, tokens of a conversation, and outputs for rows of tokens."""
    options: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": LENGTH}
    # Not the kernel for RMSNorm, which is wrong for the query and key norms of Qwen 3 in vLLM 0.13 on the CPU, also for
    # models that transformers has saved.
    options |= {"compilation_config": {"custom_ops": ["none"]}}
    options |= {"runner": "pooling"} if case["labels"] else {"max_logprobs": -1}
    if case["adapter"]:
        options |= {"enable_lora": True, "max_lora_rank": RANK}
    # Few blocks of the cache, because vLLM 0.13 does not free that of the previous model.
    llm = LLM(model=case["model"], disable_log_stats=True, num_gpu_blocks_override=BLOCKS, **options)
    try:
        config = llm.llm_engine.model_config.hf_config
        result = {"rope": getattr(config, "rope_parameters", None) or {}}
        return result | (classified(llm, case) if case["labels"] else continued(llm, case))
    finally:
        del llm
        cleanup_dist_env_and_memory()


def continued(llm: LLM, case: dict[str, Any]) -> dict[str, Any]:
    lora = LoRARequest("adapter", 1, case["adapter"]) if case["adapter"] else None

    def answers(prompts: list[list[int]], **settings: Any) -> list[Any]:
        wanted = SamplingParams(temperature=0, ignore_eos=True, **settings)
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], wanted, lora_request=lora)
        return [output.outputs[0] for output in outputs]

    # Not `prompt_logprobs`, which vLLM 0.32 cannot compute on the CPU with the adapters of some models.
    prefixes = [[row[:end] for end in range(1, len(row))] for row in case["rows"]]
    chat = llm.chat(case["messages"], SamplingParams(max_tokens=1), lora_request=lora, use_tqdm=False)
    return {
        "chat": list(chat[0].prompt_token_ids),
        "greedy": [list(answer.token_ids) for answer in answers(case["rows"], max_tokens=case["new_tokens"])],
        # For each row and position, log probabilities of the most probable tokens by their ids.
        "outputs": [
            [
                {token: entry.logprob for token, entry in answer.logprobs[0].items()}
                for answer in answers(prompts, max_tokens=1, logprobs=case["logprobs"])
            ]
            for prompts in prefixes
        ],
    }


def classified(llm: LLM, case: dict[str, Any]) -> dict[str, Any]:
    outputs = llm.classify([{"prompt_token_ids": row} for row in case["rows"]])
    return {"chat": [], "greedy": [], "outputs": [output.outputs.probs for output in outputs]}


def main() -> None:
    cases, target = (Path(name) for name in sys.argv[1:])
    results = {}
    for case in json.loads(cases.read_text()):
        try:
            results[case["name"]] = read(case)
        except Exception as error:  # noqa: BLE001 -- a result of the check
            traceback.print_exc()
            causes = [error]
            while causes[-1].__cause__ is not None:
                causes.append(causes[-1].__cause__)
            results[case["name"]] = {"error": f"{type(causes[-1]).__name__}: {causes[-1]}"}
    versions = {"vllm": vllm.__version__, "transformers": transformers.__version__}
    target.write_text(json.dumps({"versions": versions, "results": results}))


if __name__ == "__main__":
    main()
