"""How fast answers are graded, what hostile ones cost, and how often the verdict is plain math-verify's.

    python benchmarks/grading.py                 the real thing: 512 hostile answers, each of which takes 2 s
    python benchmarks/grading.py --hostile 16    a quick look, which writes no result

Ordinary batches are drawn from `grading_pairs.json`: 300 pairs of gold and answer, each with what a person says of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import operator
import os
import random
import statistics
import time
from contextlib import closing
from pathlib import Path

import psutil
from measured import claim, write_result

from vgpo_lite.rewards.client import ANSWER_SECONDS, usable_cores
from vgpo_lite.rewards.correctness import AnswerGrader

BATCH = 64
ORDINARY_SECONDS = 0.2
ROUNDS = 5  # each with a fresh server, which has seen none of the pairs
HOSTILE = 512
HOSTILE_FORMS = (
    lambda number: rf"{number}^{{9^{{9^9}}}}",
    lambda number: "(" * 500 + str(number) + ")" * 500,
    lambda number: rf"(10^{{7}}+{number})!",
)
"""Each of them keeps math-verify busy for longer than an answer has."""


def seconds_for(grader: AnswerGrader, pairs: list[tuple[str, str]]) -> tuple[float, list[float | None]]:
    """Grade pairs of gold and answer; returns the time and the rewards."""
    texts = [rf"<think>So it is.</think> The answer is $\boxed{{{answer}}}$." for _, answer in pairs]
    started = time.perf_counter()
    rewards = grader.correct(texts, [gold for gold, _ in pairs])
    return time.perf_counter() - started, rewards


def busy_seconds() -> list[float]:
    """Processor time so far of this process, the server and each worker."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return [sum(process.cpu_times()[:2]) for process in family]


def plain_verdicts(pairs: list[tuple[str, str]]) -> list[bool]:
    """What math-verify says by itself of a gold in dollar signs and a boxed answer."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    return [verify(parse(f"${gold}$"), parse(rf"\boxed{{{answer}}}")) for gold, answer in pairs]


def main() -> None:
    """Measure, print and write the result."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--hostile", type=int, default=HOSTILE, help="hostile answers")
    options.add_argument("--workers", type=int, default=min(usable_cores(), 8), help="grading processes")
    chosen = options.parse_args()
    rows = json.loads((Path(__file__).parent / "grading_pairs.json").read_text())
    pairs = [(row["gold"], row["answer"]) for row in rows]
    shuffled = random.Random(0).sample(pairs, len(pairs))
    batches = [shuffled[first : first + BATCH] for first in range(0, len(shuffled) - BATCH + 1, BATCH)]
    start_seconds, batch_seconds, chain_seconds = [], [], []
    for _ in range(ROUNDS):
        with closing(AnswerGrader(workers=chosen.workers)) as fresh:
            started = time.perf_counter()
            fresh.warm_up()
            start_seconds.append(time.perf_counter() - started)
            before = busy_seconds()
            batch_seconds.append([seconds_for(fresh, batch)[0] for batch in batches])
            trainer, server, *workers = map(operator.sub, busy_seconds(), before)
            chain_seconds.append((trainer + server + max(workers)) / len(batches))
    load = os.getloadavg()[0]
    grader = AnswerGrader(workers=chosen.workers)
    grader.warm_up()
    ours = [bool(reward) for reward in seconds_for(grader, pairs)[1]]
    plain = plain_verdicts(pairs)
    judged = [row["right"] for row in rows]
    hostile = [("4", HOSTILE_FORMS[number % len(HOSTILE_FORMS)](number + 10)) for number in range(chosen.hostile)]
    hostile_seconds, hostile_rewards = seconds_for(grader, hostile)
    after_seconds, _ = seconds_for(grader, batches[0])
    grader.close()
    allowed = ANSWER_SECONDS * math.ceil(chosen.hostile / chosen.workers) + 1
    measurements = {
        "workers": chosen.workers,
        "load_average_beside_the_ordinary_batches": load,
        "start_seconds": start_seconds,
        "ordinary_batch_size": BATCH,
        "ordinary_batch_seconds": batch_seconds,
        "ordinary_batch_processor_seconds_of_the_longest_chain": chain_seconds,
        "ordinary_batch_seconds_after_the_hostile": after_seconds,
        "hostile_answers": chosen.hostile,
        "hostile_seconds": hostile_seconds,
        "pairs": len(pairs),
        "agreeing_with_plain_math_verify": sum(map(bool.__eq__, ours, plain)),
        "right_by_hand": sum(map(bool.__eq__, ours, judged)),
        "plain_math_verify_right_by_hand": sum(map(bool.__eq__, plain, judged)),
        "disagreements": [
            {**row, "vgpo_lite": mine, "math_verify": theirs}
            for row, mine, theirs in zip(rows, ours, plain, strict=True)
            if mine != theirs
        ],
    }
    claims = [
        claim("64 ordinary answers", statistics.median(itertools.chain(*batch_seconds)), "<=", ORDINARY_SECONDS, "s"),
        claim(f"{chosen.hostile} hostile answers, {chosen.workers} workers", hostile_seconds, "<=", allowed, "s"),
        claim("hostile answers rewarded", sum(map(bool, hostile_rewards)), "==", 0, "answers"),
        claim("verdicts as a person gives them", measurements["right_by_hand"], "==", len(pairs), "of 300"),
    ]
    print(json.dumps({"measurements": measurements, "claims": claims}, indent=2))
    if chosen.hostile == HOSTILE:
        packages = ("math-verify", "sympy", "latex2sympy2_extended", "antlr4-python3-runtime")
        print(write_result("grading", measurements=measurements, claims=claims, packages=packages, gpu="none"))


if __name__ == "__main__":
    main()
