"""Looks for a seed whose tiny Idefics2 answers make good tests.

In: a range of seeds, the cases. Out: the seeds that pass, on stdout. Owns: what "good" means. Not here: the weights themselves.

A seed is good when no step of any case is nearly a tie (3e-3 nats; 0.02 for JPEG, where decoders differ by a few levels), most answers
are long and varied, at least two end by an end token, and the answers to one question differ between pictures.

Run: python tools/golden/idefics2_seed.py FIRST LAST
"""

import sys

import torch
from idefics2_case_list import CASES
from idefics2_cases import DATA, MAX_TOKENS, Reference, image_files
from idefics2_tiny import weights

MARGIN, JPEG_MARGIN = 3e-3, 2e-2


def judge(refs: dict, prepared: list) -> str | None:
    """What is wrong with the weights now loaded, or None."""
    answers = []
    for case, inputs, jpeg in prepared:
        model = refs[case.get("model", "idefics2-tiny")].model
        out = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False, output_scores=True, return_dict_in_generate=True)
        top = torch.cat(out.scores).topk(2).values
        margin = (top[:, 0] - top[:, 1]).min().item()
        if margin < (JPEG_MARGIN if jpeg else MARGIN):
            return f"{case['name']}: margin {margin:.4f}"
        answers.append(out.sequences[0, inputs["input_ids"].shape[1] :].tolist())
    lengths = [len(a) for a in answers]
    if sum(n == MAX_TOKENS for n in lengths) < len(CASES) // 2 or sum(n < MAX_TOKENS for n in lengths) < 2:
        return f"lengths {lengths}"
    loops = [p[0]['name'] for p, a in zip(prepared, answers) if len(set(a)) < 0.6 * len(a)]
    if len(loops) > 1:
        return f"an answer repeats itself: {loops}"
    if len({tuple(a) for a in answers}) < len(answers):
        return "two answers are equal"
    return None


def main(first: int, last: int) -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    refs = {name: Reference(DATA / name) for name in sorted({c.get("model", "idefics2-tiny") for c in CASES})}
    prepared = [(c, refs[c.get("model", "idefics2-tiny")].inputs(c)[0], any(f.endswith("jpg") for f in image_files(c))) for c in CASES]
    prepared.sort(key=lambda p: not p[2])
    for seed in range(first, last):
        tensors = weights(seed)
        for ref in refs.values():
            ref.model.load_state_dict(tensors)
        print(seed, judge(refs, prepared) or "GOOD", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
