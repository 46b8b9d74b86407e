"""Trains the built-in model on the CPU: bfloat16 compute, float32 weights, resumable, annealed to a time budget.

In:  the folder made by prepare.py.   Out: OUT/last.pt (resume), OUT/ema.pt (weights for export), a log on stdout.
Run: python train.py --rows ROWS --out OUT --minutes 90          (or --steps 40 for a smoke run)

Four stages, each beginning at a share of the budget: the picture side alone learns to name what covers each patch, through heads
that are not exported (64 answers a picture instead of ten words); then the rest joins with short captions of easy scenes; then short
captions of all scenes; then whole rows, with questions and easy-VQA. The learning rate follows the share too: constant, then a cosine
to zero. The budget is wall time (a SIGSTOP is not counted as work, but the end stays where it was, so the run always ends annealed),
or CPU time for a machine that others use, or steps.
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
from scenes import NUM_COLORS, NUM_THINGS
from tokens import IMAGE

CAPTION_ROW = 56  # the prefix, a question and a caption of at most two things


class Rows:
    """Batches from the prepared files; files that appear during the run are picked up."""

    def __init__(self, folder, seed, rank=0):
        self.folder, self.rng = Path(folder), np.random.default_rng(seed)
        self.easy = self._load("easy.npz")
        self.easy_order, self.order, self.file, self.used, self.rank = [], [], None, [], rank
        self.starter = False

    def _load(self, name):
        rows = dict(np.load(self.folder / name))
        rows.setdefault("labels", np.full((len(rows["ids"]), 2, 64), 255, np.uint8))
        return rows

    def _next_file(self, captions_only, starter):
        names = sorted(p.name for p in self.folder.glob("starter-*.npz" if starter else "[0-9]*.npz"))
        fresh = [n for n in names if n not in self.used]
        if not fresh:
            self.used, fresh = [], names
        name = fresh[self.rank % len(fresh)]
        self.used.append(name)
        self.file = self._load(name)
        usable = np.arange(len(self.file["ids"]))
        if captions_only:
            usable = usable[~(self.file["groups"][:, CAPTION_ROW:] == 1).any(1)]
        self.order = list(self.rng.permutation(usable))

    def batch(self, size, captions_only, starter=False, easy_share=0.0):
        if starter != self.starter:
            self.starter, self.order = starter, []
        easy = round(size * easy_share)
        if len(self.order) < size - easy:
            self._next_file(captions_only, starter)
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
        self.labels = torch.from_numpy(parts["labels"].astype(np.int64))
        return (pictures, torch.from_numpy(parts["ids"].astype(np.int64)), torch.from_numpy(parts["positions"].astype(np.int64)),
                torch.from_numpy(parts["groups"].astype(np.int64)), torch.from_numpy(parts["targets"]))


class Clock:
    """The used share of the budget, 0..1: of steps, or of CPU time of this worker, or of the wall time up to an end."""

    def __init__(self, args, share=0.0):
        self.share, self.args = share, args
        self.end = time.time() + args.minutes * 60
        self.last = self._now()

    def _now(self):
        return time.process_time() if self.args.cpu_minutes else time.time()

    def tick(self):
        now = self._now()
        worked, self.last = now - self.last, now
        if self.args.steps:
            self.share += 1 / self.args.steps
        elif self.args.cpu_minutes:
            self.share += worked / (self.args.cpu_minutes * 60)
        else:
            worked = min(worked, 15.0)  # a longer gap was a pause
            left = max(self.end - now, 1e-6)
            self.share = 1.0 if now >= self.end else self.share + (1 - self.share) * worked / (left + worked)
        self.share = min(1.0, self.share)


def learning_rate(share, peak, hold=0.45):
    """Constant up to `hold`, then a cosine to zero."""
    return peak if share < hold else peak * 0.5 * (1 + math.cos(math.pi * (share - hold) / (1 - hold)))


def patch_loss(heads, context, labels):
    """(loss of naming thing and colour of each patch, share of covered patches named right). labels: [n, 2, patches]; 255 unknown.

    Most patches are background; they weigh a seventh, so that the loss is about the things."""
    known = labels[:, 0, 0] != 255
    if not known.any():
        return context.sum() * 0.0, 0.0
    context, labels = context[known], labels[known]
    things, colors = heads["things"](context).float().flatten(0, 1), heads["colors"](context).float().flatten(0, 1)
    thing, color = labels[:, 0].flatten(), labels[:, 1].flatten()
    weight = torch.where(thing > 0, 1.0, 0.15)
    loss = (F.cross_entropy(things, thing, reduction="none") + F.cross_entropy(colors, color, reduction="none")) * weight
    right = (things.argmax(-1) == thing)[thing > 0]
    return loss.sum() / weight.sum(), right.float().mean().item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--cpu-minutes", type=float, default=0, help="budget in CPU time of one worker, for a machine that others use")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-4, help="AdamW; a row of the embedding that is hit seldom moves by 7 rates a hit")
    parser.add_argument("--muon-lr", type=float, default=1.2e-3)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each; they never spin on a busy machine")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=29571)
    parser.add_argument("--caption-share", type=float, default=0.08)
    parser.add_argument("--look-share", type=float, default=0.12, help="share of the budget in which only patches are named")
    parser.add_argument("--patch-weight", type=float, default=0.3)
    parser.add_argument("--starter-share", type=float, default=0.15)
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
    model = DemoModel(tokenizer.get_vocab_size(), tokenizer.token_to_id(IMAGE), NUM_THINGS, NUM_COLORS)
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
    rows = Rows(args.rows, args.seed + 1000 * args.rank + step, args.rank)

    def save():
        torch.save({"optimizer": optimizer.state(), "step": step, "share": clock.share}, out / "last.tmp")
        (out / "last.tmp").rename(out / "last.pt")
        weights = {k: v for k, v in optimizer.named(optimizer.average).items() if not k.startswith("aux.")}
        torch.save(weights, out / "ema.tmp")
        (out / "ema.tmp").rename(out / "ema.pt")

    saved = logged = time.time()
    log, share = torch.zeros(7), clock.share
    while share < 1.0:
        factor = learning_rate(share, 1.0) * min(1.0, (step + 1) / 60)
        looking = share < args.look_share
        short = not looking and share < args.caption_share
        easy_share = 0.0 if looking or short else args.easy_share
        pictures, ids, positions, groups, targets = rows.batch(
            args.batch // args.workers, short, not looking and share < args.starter_share, easy_share)
        context = model.look(pictures.bfloat16())
        patches, covered = patch_loss(model.aux, context, rows.labels)
        facts = [0.0, 0.0, 0, 1]
        loss = patches
        if not looking:
            logits = model(context, ids, positions, groups, targets)
            wanted = ids[:, 1:][targets[:, 1:]]
            spoken = F.cross_entropy(logits.float(), wanted)
            facts = [0.0, spoken.item() / args.workers, (logits.argmax(-1) == wanted).sum(), len(wanted)]
            loss = spoken + args.patch_weight * patches
        optimizer.grads.zero_()
        loss.backward()
        clock.tick()
        facts += [patches.item() / args.workers, covered / args.workers, clock.share if first else 0.0]
        grad = torch.cat([optimizer.grads.float() / args.workers, torch.tensor(facts)])
        dist.all_reduce(grad)
        share = grad[-1].item()  # the first worker's clock rules
        update = optimizer.muon_update(grad)
        dist.all_reduce(update)
        optimizer.step(grad[:-7], update, factor)
        step += 1
        log += grad[-7:]
        if first and step % 20 == 0:
            now = time.time()
            print(f"step {step} share {share:.3f} loss {log[1] / 20:.4f} token accuracy {log[2] / log[3]:.4f} patches {log[4] / 20:.4f} {log[5] / 20:.4f} "
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
