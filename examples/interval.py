"""A listening test: how sure is a win rate?

    python examples/interval.py 253 420

The numbers of wins and votes are those behind DRAGON's published listening test (60.24 %, at least 56.15 %).
"""

import sys

from dragontune.evaluation.statistics import clopper_pearson, lower_bound, p_value, probability_better


def main(wins: int, votes: int) -> None:
    low, high = clopper_pearson(wins, votes)
    print(f"win rate {wins / votes:.2%}, 95 % interval {low:.2%} to {high:.2%}")
    print(f"at least {lower_bound(wins, votes):.2%} with 95 % confidence")
    print(f"p-value of no better than even: {p_value(wins, votes):.3g}")
    print(f"probability of better than even: {probability_better(wins, votes):.5%}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3] or (253, 420)))
