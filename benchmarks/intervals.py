"""Measures what the intervals of ``kart-rewards ablate`` are worth with few seeds, on simulated studies.

    python benchmarks/intervals.py

Each study has two arms of normally distributed values without a real difference. The table shows in how many studies
the 95 % interval of the difference holds 0, and the smallest p-value that so few seeds can have.
"""

from __future__ import annotations

import numpy as np

from kart_rewards.evaluation.statistics import compare_seeds

STUDIES = 2000


def main() -> None:
    """Simulates the studies, and prints the table."""
    rng = np.random.default_rng(1)
    print(f"{'seeds':>5} {'holds 0':>8} {'smallest p':>11}")
    for seeds in (2, 3, 4, 5, 8):
        results = [compare_seeds(*rng.normal(size=(2, seeds, 1))) for _ in range(STUDIES)]
        share = np.mean([each.difference.holds_zero for each in results])
        print(f"{seeds:>5} {share:>8.0%} {results[0].smallest_p_value:>11.2g}")


if __name__ == "__main__":
    main()
