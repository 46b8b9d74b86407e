"""Trains the built-in model on the CPU: bfloat16 compute, float32 weights, resumable, annealed to a time budget.

In:  the folder made by prepare.py.   Out: OUT/last.pt (resume), OUT/ema.pt (weights for export), a log on stdout.
Run: python train.py --rows ROWS --out OUT --minutes 90          (or --steps 40 for a smoke run)

Captions alone come first (--caption-share of the budget): rows are cut behind the caption, which is both the densest target and
the shortest row. Questions and easy-VQA join afterwards. The learning rate follows the share of the budget that is used; a pause
of the process (SIGSTOP) is not counted as work but the end stays where it was asked for, so the run always ends annealed.
"""

import argparse
import math
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer

from model import DemoModel
from optimizer import FlatOptimizer
from tokens import IMAGE

CAPTION_ROW = 72


class Rows:
    """Batches from the prepared files; files that appear during the run are picked up."""

    def __init__(self, folder, seed, easy_share, rank=0):
        self.folder, self.rng, self.easy_share = Path(folder), np.random.default_rng(seed), easy_share
        self.easy = dict(np.load(self.folder / "easy.npz"))
        self.easy_order, self.order, self.file, self.used, self.rank = [], [], None, [], rank

    def _next_file(self):
        names = sorted(p.name for p in self.folder.glob("[0-9]*.npz"))
        fresh = [n for n in names if n not in self.used]
        if not fresh:
            self.used, fresh = [], names
        name = fresh[self.rank % len(fresh)]
        self.used.append(name)
        self.file = dict(np.load(self.folder / name))
        self.order = list(self.rng.permutation(len(self.file["ids"])))

    def batch(self, size, captions_only):
        easy = 0 if captions_only else round(size * self.easy_share)
        if len(self.order) < size - easy:
            self._next_file()
        take, self.order = self.order[:size - easy], self.order[size - easy:]
        parts = {k: v[take] for k, v in self.file.items()}
        if easy:
            if len(self.easy_order) < easy:
                self.easy_order = list(self.rng.permutation(len(self.easy["ids"])))
            pick, self.easy_order = self.easy_order[:easy], self.easy_order[easy:]
            extra = {k: v[pick] for k, v in self.easy.items()}
            if self.rng.random() < 0.5:  # no easy-VQA question is about sides
                extra["pictures"] = extra["pictures"][:, :, ::-1]
            parts = {k: np.concatenate([parts[k], extra[k]]) for k in parts}
        if captions_only:
            keep = parts["groups"][:, :CAPTION_ROW]
            parts = {k: v if k == "pictures" else v[:, :CAPTION_ROW] for k, v in parts.items()}
            parts["targets"] = parts["targets"] & (keep == 1)
        pictures = torch.from_numpy(np.ascontiguousarray(parts["pictures"])).permute(0, 3, 1, 2).float() / 127.5 - 1
        return (pictures, torch.from_numpy(parts["ids"].astype(np.int64)), torch.from_numpy(parts["positions"].astype(np.int64)),
                torch.from_numpy(parts["groups"].astype(np.int64)), torch.from_numpy(parts["targets"]))


class Clock:
    """The used share of the budget, 0..1, by steps or by seconds up to a wall-clock end."""

    def __init__(self, args, share=0.0):
        self.share, self.steps = share, args.steps
        self.end = time.time() + args.minutes * 60
        self.last = time.time()

    def tick(self):
        if self.steps:
            self.share += 1 / self.steps
            return
        now = time.time()
        worked = min(now - self.last, 15.0)  # a longer gap was a pause
        left = max(self.end - now, 1e-6)
        self.share = min(1.0, self.share + (1 - self.share) * worked / (left + worked))
        if now >= self.end:
            self.share = 1.0
        self.last = now


def learning_rate(share, peak, hold=0.45):
    """Constant up to `hold`, then a cosine to zero."""
    return peak if share < hold else peak * 0.5 * (1 + math.cos(math.pi * (share - hold) / (1 - hold)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--batch", type=int, default=80)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--muon-lr", type=float, default=4e-3)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each; they never spin on a busy machine")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=29571)
    parser.add_argument("--caption-share", type=float, default=0.08)
    parser.add_argument("--easy-share", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-every", type=float, default=240, help="seconds")
    args = parser.parse_args()
    workers = [subprocess.Popen([sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--rank", str(r)])
               for r in range(1, args.workers)] if args.rank == 0 else []
    try:
        train(args)
    finally:
        for worker in workers:
            worker.terminate() if sys.exc_info()[0] else worker.wait()


def train(args):
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    meeting = f"tcp://127.0.0.1:{args.port}"
    dist.init_process_group("gloo", init_method=meeting, rank=args.rank, world_size=args.workers, timeout=timedelta(hours=12))
    first = args.rank == 0
    tokenizer = Tokenizer.from_file(str(Path(args.rows) / "tokenizer.json"))
    model = DemoModel(tokenizer.get_vocab_size(), tokenizer.token_to_id(IMAGE))
    optimizer = FlatOptimizer(model, args.lr, args.muon_lr, args.rank, args.workers)
    if first:
        print(f"parameters {len(optimizer.master):,}", flush=True)
    step, clock = 0, Clock(args)
    if (out / "last.pt").exists():
        state = torch.load(out / "last.pt", weights_only=True)
        optimizer.restore(state["optimizer"])
        step, clock = state["step"], Clock(args, state["share"])
        if first:
            print(f"resumed at step {step}, share {clock.share:.3f}", flush=True)
    dist.barrier()  # everyone has read last.pt before it can be replaced
    rows = Rows(args.rows, args.seed + 1000 * args.rank + step, args.easy_share, args.rank)

    def save():
        torch.save({"optimizer": optimizer.state(), "step": step, "share": clock.share}, out / "last.tmp")
        (out / "last.tmp").rename(out / "last.pt")
        torch.save(optimizer.named(optimizer.average), out / "ema.tmp")
        (out / "ema.tmp").rename(out / "ema.pt")

    saved = logged = time.time()
    log, share = torch.zeros(4), clock.share
    while share < 1.0:
        factor = learning_rate(share, 1.0) * min(1.0, (step + 1) / 60)
        pictures, ids, positions, groups, targets = rows.batch(args.batch // args.workers, share < args.caption_share)
        logits = model(pictures.bfloat16(), ids, positions, groups, targets)
        wanted = ids[:, 1:][targets[:, 1:]]
        loss = F.cross_entropy(logits.float(), wanted)
        optimizer.grads.zero_()
        loss.backward()
        clock.tick()
        facts = [clock.share if first else 0.0, loss.item() / args.workers, (logits.argmax(-1) == wanted).sum(), len(wanted)]
        grad = torch.cat([optimizer.grads.float() / args.workers, torch.tensor(facts)])
        dist.all_reduce(grad)
        share = grad[-4].item()  # the first worker's clock rules
        update = optimizer.muon_update(grad)
        dist.all_reduce(update)
        optimizer.step(grad[:-4], update, factor)
        step += 1
        log += grad[-4:]
        if first and step % 20 == 0:
            now = time.time()
            print(f"step {step} share {share:.3f} loss {log[1] / 20:.4f} token accuracy {log[2] / log[3]:.4f} "
                  f"{(now - logged) / 20:.2f} s/step lr x{factor:.2f}", flush=True)
            logged = now
            log.zero_()
        if first and (time.time() - saved > args.save_every):
            save()
            saved = time.time()
    if first:
        save()
        print(f"done at step {step}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
