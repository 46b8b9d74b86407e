"""Trains the built-in model on the CPU: float32, two workers, resumable, annealed to a time budget.

In:  the folder made by prepare.py.   Out: OUT/last.pt (resume), OUT/ema.pt (weights for export), a log on stdout.
Run: python train.py --rows ROWS --out OUT --minutes 90          (or --steps 12 for a smoke run)

Stages: the picture side alone learns to name what covers each patch and what is in each cell of the grid, through heads that are not
exported (a hundred answers a picture instead of ten words); then whole rows join, captions and questions, and the naming goes on
beside them, that of nouns added: half way up the text model the token of a noun must tell which cell it means; at last the vision
model stays as it is, at its running average, and the rest goes on. The learning rate is constant, then a cosine to zero. The budget
is wall time (a run always ends annealed, however many steps the machine made) or steps (then a run repeats itself).
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

from language import plural
from model import DemoModel
from optimizer import FlatOptimizer
from scenes import CELL_CLASSES, GRID, LABEL_COLORS, LABEL_SHAPES, NUM_COLORS, NUM_THINGS, SHAPES, SIZES, UNKNOWN
from tokens import IMAGE

PATCH_CLASSES = (NUM_THINGS, NUM_COLORS)
NOUN_CLASSES = (GRID * GRID, NUM_COLORS, CELL_CLASSES[2])  # cell, colour, size


class Rows:
    """Batches from the prepared files, every worker its own files; files that appear during the run are picked up."""

    def __init__(self, folder, seed, rank, workers, reading=1.0):
        """reading: the share of the scenes with text that is used."""
        self.reading = reading
        self.folder, self.rng, self.rank, self.workers = Path(folder), np.random.default_rng(seed), rank, workers
        self.easy, self.easy_order = dict(np.load(self.folder / "easy.npz")), []
        self.order, self.file, self.used = {}, {}, {}

    def _take(self, kind, n):
        """n rows of a file of this kind ("crowd-" or "[0-9]"), the next file when this one is used up."""
        if len(self.order.get(kind, ())) < n:
            names = sorted(p.name for p in self.folder.glob(f"{kind}*.npz"))
            names = names[self.rank::self.workers] or names
            if kind not in self.used or not set(names) - set(self.used[kind]):
                self.used[kind] = []
            fresh = [name for name in names if name not in self.used[kind]]
            self.used[kind].append(fresh[self.rng.integers(len(fresh))])
            self.file[kind] = dict(np.load(self.folder / self.used[kind][-1]))
            text = (self.file[kind]["cells"][:, :, 0] > len(LABEL_SHAPES)).any(1)
            usable = np.flatnonzero(~text | (self.rng.random(len(text)) < self.reading))
            self.order[kind] = self.rng.permutation(usable)
        take, self.order[kind] = self.order[kind][:n], self.order[kind][n:]
        return {k: v[take] for k, v in self.file[kind].items()}

    def _take_easy(self, n):
        if len(self.easy_order) < n:
            self.easy_order = self.rng.permutation(len(self.easy["ids"]))
        take, self.easy_order = self.easy_order[:n], self.easy_order[n:]
        return {k: v[take] for k, v in self.easy.items()}

    def batch(self, rows, drills, easy, crowd):
        """{"pictures": float [all, 3, 64, 64] in -1..1, "patches", "cells"; "ids" and so on [all but crowds, ROW]}."""
        wanted = ((self._take, "[0-9]", rows), (self._take, "drill-", drills), (self._take_easy, easy), (self._take, "crowd-", crowd))
        parts = [take(*what) for take, *what in wanted if what[-1] > 0]
        joined = {k: np.concatenate([p[k] for p in parts if k in p]) for k in parts[0]}
        batch = {k: torch.from_numpy(v if v.dtype == bool else v.astype(np.int64)) for k, v in joined.items() if k != "pictures"}
        batch["pictures"] = torch.from_numpy(joined["pictures"]).permute(0, 3, 1, 2).float() / 127.5 - 1
        return batch


class Clock:
    """The used share of the budget, 0..1: of steps, or of the wall time up to an end."""

    def __init__(self, args, share=0.0):
        self.share, self.steps = share, args.steps
        self.end, self.last = time.time() + args.minutes * 60, time.time()

    def tick(self):
        now = time.time()
        worked, self.last = now - self.last, now
        if self.steps:
            self.share += 1 / self.steps
        else:
            left = max(self.end - now, 1e-6)
            self.share = 1.0 if now >= self.end else self.share + (1 - self.share) * worked / (left + worked)
        self.share = min(1.0, self.share)


def learning_rate(share, hold):
    """Factor of the peak: constant up to `hold`, then a cosine to zero."""
    return 1.0 if share < hold else 0.5 * (1 + math.cos(math.pi * (share - hold) / (1 - hold)))


def naming_loss(logits, labels, classes, background, digits=False):
    """(loss of naming, share of things named right). logits: [n, places, sum of classes], labels: [n, places, len(classes)].

    Most places are background; they weigh less, so that the loss is about the things. Digits count where there is a number."""
    thing = labels[..., 0]
    weight = torch.where(thing > 0, 1.0, background)
    number = (thing == classes[0] - 1).float()
    loss = 0.0
    for k, part in enumerate(logits.split(list(classes), -1)):
        known = labels[..., k] != UNKNOWN
        w = (number if digits and k > 2 else weight) * known
        each = F.cross_entropy(part.flatten(0, 1), labels[..., k].flatten(), ignore_index=UNKNOWN, reduction="none")
        loss = loss + (each * w.flatten()).sum() / (w.sum() + 1e-6)
    things = logits[..., :classes[0]].argmax(-1)
    right = (things == thing)[(thing > 0) & (thing != UNKNOWN)]
    return loss, right.float().mean().item()


class Nouns:
    """Finds what the nouns of a row mean: "the small red circle", "orange stars" or "shapes" mean the cells with such things."""

    def __init__(self, tokenizer):
        size = tokenizer.get_vocab_size()
        self.shape, self.color, self.size = (torch.zeros(size, dtype=torch.int64) for _ in range(3))
        for table, words in ((self.shape, LABEL_SHAPES), (self.color, LABEL_COLORS), (self.size, tuple(SIZES))):
            for k, word in enumerate(words):
                table[tokenizer.token_to_id("▁" + word)] = 1 + k
        for k, word in enumerate(SHAPES):
            self.shape[tokenizer.token_to_id("▁" + plural(word))] = 1 + k
        for words, any_shape in ((("shape", "object"), -1), (("shapes", "objects"), -2)):
            for word in words:
                self.shape[tokenizer.token_to_id("▁" + word)] = any_shape

    def __call__(self, ids, cells):
        """(row, token, fits) of every noun; fits: bool [nouns, cells]. ids: [n, row]; cells: [n, cells, 5]."""
        shape, color = self.shape[ids], F.pad(self.color[ids], (1, 0))[:, :-1]
        before = F.pad(self.size[ids], (2, 0))
        size = torch.where(color > 0, before[:, :-2], before[:, 1:-1])
        row, token = ((shape > 0) | (shape == -2) | ((shape == -1) & (color > 0))).nonzero(as_tuple=True)
        things = cells[row]
        fits = (things[..., 0] > 0) & (things[..., 0] <= len(LABEL_SHAPES))
        for words, k in ((shape.clamp(min=0), 0), (color, 1), (size, 2)):
            word = words[row, token][:, None]
            fits &= (word == 0) | (things[..., k] == word)
        return row, token, fits


def noun_loss(heads, hidden, found, cells, scenes):
    """(loss of telling which cell the nouns mean, what colour and size the thing there is, and which cells hold anything that a noun
    fits; share of cells right). Only nouns that fit one cell mean one; only the first `scenes` rows say all that their pictures hold.
    found: (row, token, fits) of the nouns; hidden: [n, row, hidden], half way up the text model."""
    row, token, fits = found
    if len(row) == 0:
        return hidden.sum() * 0.0, 0.0
    at = F.rms_norm(hidden[row, token], hidden.shape[-1:])
    loss, right = at.sum() * 0.0, 0.0
    told = row < scenes
    if told.any():
        loss = loss + F.binary_cross_entropy_with_logits(heads["marks"](at[told]), fits[told].float()) * fits.shape[1] / 2
    one = fits.sum(-1) == 1
    if one.any():
        row, cell = row[one], fits[one].to(torch.uint8).argmax(-1)
        labels = [cell, cells[row, cell, 1], cells[row, cell, 2]]
        parts = heads["nouns"](at[one]).split(list(NOUN_CLASSES), -1)
        for part, label in zip(parts, labels):
            known = label != UNKNOWN
            if known.any():
                loss = loss + F.cross_entropy(part[known], label[known])
        right = (parts[0].argmax(-1) == cell).float().mean().item()
    return loss, right


def spoken_loss(logits, wanted, groups, targets):
    """Cross entropy of the answers' tokens, each weighed by one over the root of its answer's length: a caption of a dozen easy words
    must not drown five questions of one hard word."""
    length = torch.zeros(len(groups), 256).scatter_add_(1, groups, targets.float())
    weight = length.gather(1, groups)[:, 1:][targets[:, 1:]].rsqrt()
    return (F.cross_entropy(logits, wanted, reduction="none") * weight).sum() / weight.sum()


@torch.no_grad()
def evaluate(model, path, rank, workers):
    """{category: share of answers that greedy decoding gets exactly right}, on the rows of eval.npz; each worker does its part."""
    rows = np.load(path)
    names, category = list(rows["names"]), rows["category"]
    table = torch.zeros(len(names), 2)
    for at in range(rank * 50, len(category), 50 * workers):
        part = slice(at, at + 50)
        pictures = torch.from_numpy(rows["pictures"][part]).permute(0, 3, 1, 2).float() / 127.5 - 1
        ids, positions, groups = (torch.from_numpy(rows[k][part].astype(np.int64)) for k in ("ids", "positions", "groups"))
        targets = torch.from_numpy(rows["targets"][part])
        logits, _ = model(pictures, ids, positions, groups, targets)
        wrong = torch.zeros(len(ids), targets.shape[1] - 1)
        wrong[targets[:, 1:]] = (logits.argmax(-1) != ids[:, 1:][targets[:, 1:]]).float()
        for k, bad in zip(category[part], wrong.amax(1).tolist()):
            table[k] += torch.tensor([1.0 - bad, 1.0])
    dist.all_reduce(table)
    return {n: (table[k, 0] / table[k, 1]).item() for k, n in enumerate(names)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--batch", type=int, nargs=4, default=(18, 4, 2, 4), help="scenes, drills, easy-VQA pictures and crowds in a step")
    parser.add_argument("--look-batch", type=int, nargs=4, default=(8, 0, 2, 26), help="the same of the first stage")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="AdamW: embeddings, heads, norms and biases")
    parser.add_argument("--muon-lr", type=float, default=4e-3)
    parser.add_argument("--hold", type=float, default=0.48, help="share of the budget at the full learning rate")
    parser.add_argument("--look-share", type=float, default=0.12, help="share of the budget in which only patches and cells are named")
    parser.add_argument("--freeze-share", type=float, default=0.75, help="share of the budget from which the vision model stays as it is")
    parser.add_argument("--reading", type=float, default=1.0, help="share of the scenes with text that is used; reading is learned first")
    parser.add_argument("--naming-weight", type=float, default=0.3)
    parser.add_argument("--start", help="weights to begin from, a file of torch.save({name: tensor}) such as ema.pt; may have fewer text layers")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-every", type=float, default=240, help="seconds")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each; they never spin on a busy machine")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=29571)
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
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{args.port}", rank=args.rank, world_size=args.workers,
                            timeout=timedelta(hours=12))
    first = args.rank == 0
    tokenizer = Tokenizer.from_file(str(Path(args.rows) / "tokenizer.json"))
    model = DemoModel(tokenizer.get_vocab_size(), tokenizer.token_to_id(IMAGE), PATCH_CLASSES, CELL_CLASSES, NOUN_CLASSES,
                      GRID * GRID)
    if args.start:
        model.start_from(torch.load(args.start, weights_only=True))
    optimizer = FlatOptimizer(model, args.lr, args.muon_lr, args.rank, args.workers)
    nouns = Nouns(tokenizer)
    if first:
        print(f"parameters {len(optimizer.master):,}", flush=True)
    step, clock, frozen = 0, Clock(args), False
    if (out / "last.pt").exists():
        state = torch.load(out / "last.pt", weights_only=True)
        optimizer.restore(state["optimizer"])
        step, clock = state["step"], Clock(args, state["share"])
        if first:
            print(f"resumed at step {step}, share {clock.share:.3f}", flush=True)
    dist.barrier()  # everyone has read last.pt before it can be replaced
    rows = Rows(args.rows, args.seed + 1000 * args.rank + step, args.rank, args.workers, args.reading)

    def save():
        torch.save({"optimizer": optimizer.state(), "step": step, "share": clock.share}, out / "last.tmp")
        (out / "last.tmp").rename(out / "last.pt")
        weights = {k: v for k, v in optimizer.named(optimizer.average).items() if not k.startswith("aux.")}
        torch.save(weights, out / "ema.tmp")
        (out / "ema.tmp").rename(out / "ema.pt")

    def report():
        held_out = Path(args.rows) / "eval.npz"
        if held_out.exists():
            with optimizer.averaged():
                scores = evaluate(model, held_out, args.rank, args.workers)
            if first:
                print("held out: " + "  ".join(f"{k} {100 * v:.1f}" for k, v in scores.items()), flush=True)

    saved = logged = time.time()
    log, count, share = torch.zeros(10), 0, clock.share
    while share < 1.0:
        factor = learning_rate(share, args.hold) * min(1.0, (step + 1) / 60)
        looking = share < args.look_share
        if not frozen and share >= args.freeze_share:
            optimizer.freeze("model.vision_model.")
            frozen = True
        batch = rows.batch(*(n // args.workers for n in (args.look_batch if looking else args.batch)))
        with torch.set_grad_enabled(not frozen):
            vision = model.model.vision_model(batch["pictures"])
        context = model.model.connector.modality_projection(vision)
        latents = model.model.connector(context)
        patches, patches_right = naming_loss(model.aux["patches"](context), batch["patches"], PATCH_CLASSES, 0.1)
        cells, cells_right = naming_loss(model.aux["cells"](latents), batch["cells"], CELL_CLASSES, 0.4, digits=True)
        loss, spoken, right, words = patches + cells, torch.zeros(()), 0, 1
        pointing, pointed = torch.zeros(()), 0.0
        if not looking:
            ids, targets = batch["ids"], batch["targets"]
            found = nouns(ids, batch["cells"][:len(ids)])
            logits, hidden = model(latents[:len(ids)], ids, batch["positions"], batch["groups"], targets)
            wanted = ids[:, 1:][targets[:, 1:]]
            spoken = spoken_loss(logits, wanted, batch["groups"], targets)
            right, words = (logits.argmax(-1) == wanted).sum().item(), len(wanted)
            pointing, pointed = noun_loss(model.aux, hidden, found, batch["cells"], sum(args.batch[:2]) // args.workers)
            loss = spoken + args.naming_weight * (loss + pointing)
        optimizer.grads.zero_()
        loss.backward()
        clock.tick()
        due = time.time() - saved > args.save_every
        facts = torch.tensor([clock.share * first, float(due and first), spoken.item(), patches.item(), patches_right, cells.item(),
                              cells_right, right / words, pointing.item(), pointed])
        grad = torch.cat([optimizer.grads / args.workers, facts])
        dist.all_reduce(grad)
        facts = grad[-len(facts):]
        share, due = facts[0].item(), facts[1].item() > 0  # the first worker's clock rules
        update = optimizer.muon_update(grad)
        dist.all_reduce(update)
        optimizer.step(grad[:-len(facts)], update, factor)
        step, count = step + 1, count + 1
        log += facts / args.workers
        if first and step % 25 == 0:
            now, mean = time.time(), (log / count).tolist()
            print(f"{time.strftime('%H:%M:%S')} step {step} share {share:.3f} loss {mean[2]:.4f} right {mean[7]:.4f} patches {mean[3]:.3f} {mean[4]:.3f} "
                  f"cells {mean[5]:.3f} {mean[6]:.3f} nouns {mean[8]:.3f} {mean[9]:.3f} {(now - logged) / count:.3f} s/step lr x{factor:.2f}", flush=True)
            logged, count = now, 0
            log.zero_()
        if due:
            if first:
                save()
            if not looking:
                report()
            saved = time.time()
    if first:
        save()
    report()
    if first:
        print(f"done at step {step}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
