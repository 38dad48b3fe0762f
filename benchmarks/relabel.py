"""Times the relabelling of stored pairs after an update of lambda; prints one JSON line.

python benchmarks/relabel.py --num-pairs 1000000
"""

from __future__ import annotations

import statistics
import time

import harness
import torch

from cdpo_lightning.config import ConstraintConfig
from cdpo_lightning.constraints.build import make_constraints
from cdpo_lightning.constraints.constraint import DualState
from cdpo_lightning.data.pairs.objectives import LagrangianPreference
from cdpo_lightning.data.pairs.pair_table import PairTable, draws


def main() -> None:
    """Build a table of random scores, relabel it and report the median of nine."""
    args = harness.arguments(__doc__, pairs=1_000_000).parse_args()
    count, draw = args.num_pairs, torch.Generator().manual_seed(0)
    reward, cost = (torch.randn(2 * count, generator=draw, dtype=torch.float64) for _ in range(2))
    table = PairTable(
        prompts=(),
        responses=(),
        prompt_N=torch.zeros(2 * count, dtype=torch.long),
        scores={"reward": reward, "cost": cost},
        reference_logp_N=torch.zeros(2 * count),
        pair_M2=torch.randperm(2 * count, generator=draw).view(-1, 2),
        draw_M=draws(count, 0),
    )
    constraints = make_constraints(ConstraintConfig())
    result = []
    for labels in ("soft", "bernoulli", "argmax"):
        times = []
        for number in range(10):
            start = time.perf_counter()
            LagrangianPreference(1.0, labels, constraints).target(table, DualState(lam={"cost": 0.1 * number}))
            times.append(time.perf_counter() - start)
        result.append((labels, statistics.median(times[1:])))
    harness.report(who="relabel", pairs=count, **{f"seconds_{labels}": seconds for labels, seconds in result})


if __name__ == "__main__":
    main()
