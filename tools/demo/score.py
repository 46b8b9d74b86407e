"""Scores results against the expected answers by exact match, per set.

In:  expected.jsonl of make_eval.py, a results file with a JSON object {"id", "text"} a line.   Out: a table, or JSON with --json.
Run: python score.py EVAL/expected.jsonl results.jsonl [--wrong 5] [--json]
"""

import argparse
import json
from collections import defaultdict


def score(expected, results):
    """{set: (right, total, wrong examples)}; a missing result counts as wrong."""
    table = defaultdict(lambda: [0, 0, []])
    for e in expected:
        got = results.get(e["id"])
        entry = table[e["set"]]
        entry[1] += 1
        if got is not None and got.strip() == e["answer"]:
            entry[0] += 1
        else:
            entry[2].append((e["id"], e.get("question"), e["answer"], got))
    return table


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("expected")
    parser.add_argument("results")
    parser.add_argument("--wrong", type=int, default=0, help="print this many wrong answers of each set")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with open(args.expected) as file:
        expected = [json.loads(line) for line in file]
    with open(args.results) as file:
        results = {r["id"]: r.get("text") for r in map(json.loads, file)}
    table = score(expected, results)
    if args.json:
        print(json.dumps({k: {"right": r, "total": n, "percent": round(100 * r / n, 2)} for k, (r, n, _) in table.items()}))
        return
    print(f"{'set':<12}{'right':>7}{'of':>7}{'percent':>10}")
    for name, (right, total, wrong) in table.items():
        print(f"{name:<12}{right:>7}{total:>7}{100 * right / total:>9.1f}%")
        for example in wrong[:args.wrong]:
            print("   ", *example, sep=" | ")


if __name__ == "__main__":
    main()
