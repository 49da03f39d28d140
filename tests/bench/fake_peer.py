"""A peer's child without a model: speaks the protocol of bench/peers/children/README.md. Started as a script by tests.

Token n of an answer is the prompt's last id plus n; tokens come two at a time. `--fail` ends it at the first request,
`--miscount` makes it report one token too many.
"""

import json
import sys


def main() -> None:
    print(json.dumps({"ready": {"version": "1", "dtype": "none"}}), flush=True)
    for line in sys.stdin:
        if "--fail" in sys.argv:
            sys.exit("the fake peer fails")
        request = json.loads(line)
        print(json.dumps({"answers": [answer(p, request["max_new_tokens"]) for p in request["prompts"]]}), flush=True)


def answer(prompt: list[int], num_tokens: int) -> dict:
    counts = [2] * (num_tokens // 2) + [1] * (num_tokens % 2)
    if "--miscount" in sys.argv:
        counts[-1] += 1
    return {
        "token_ids": [prompt[-1] + 1 + n for n in range(num_tokens)],
        "times_s": [0.01 * (n + 1) for n in range(len(counts))],
        "counts": counts,
        "steps": len(counts),
    }


if __name__ == "__main__":
    main()
