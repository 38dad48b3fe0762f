"""Times a score model on the answers of real pairs, in batches of similar length; prints one JSON line.

python benchmarks/score.py --model HF_FOLDER --pairs pku_saferlhf_pairs.jsonl --num-pairs 64 --batch-size 32
"""

from __future__ import annotations

import time

import harness
import torch

from cdpo_lightning.data.batching import sorted_batches
from cdpo_lightning.models.heads.score_model import from_causal_lm, pad
from cdpo_lightning.models.lm.packed_forward import precision_context


def main() -> None:
    """Load, time and report."""
    args = harness.arguments(__doc__, pairs=64).parse_args()
    model, pairs = harness.load_model(args), harness.load_pairs(args)
    scorer = from_causal_lm(model, 0).to(args.device, harness.DTYPES[args.precision])
    sequences = [[*prompt, *response] for prompt, responses in pairs.rows for response in responses]
    tokens, padded = sum(map(len, sequences)), 0
    rate = harness.matrix_rate(args.device, args.precision)
    trunk, _ = harness.trunk_and_head(model)
    harness.synchronize(args.device)
    start = time.perf_counter()
    with harness.profiled(args.profile), torch.no_grad(), precision_context(args.precision, torch.device(args.device)):
        for batch in sorted_batches([len(s) for s in sequences], args.batch_size):
            ids, mask = pad([sequences[i] for i in batch])
            padded += ids.numel()
            scorer(ids.to(args.device), mask.to(args.device)).cpu()
    seconds = time.perf_counter() - start
    harness.report_pairs("score", args, seconds, tokens, padded, rate, 2 * trunk * tokens)


if __name__ == "__main__":
    main()
