"""Times transformers + torch on one request, as the figure to compare with in bench/runs/.

In: a checkpoint folder, a picture, a prompt. Out: one JSON line: seconds to load, to preprocess, to the first token (vision and prefill), decoding speed, peak
memory. Owns: how the reference is timed. Not here: correctness (idefics2_cases.py).

Each data type runs in a process of its own, so that peak memory is that run's. The image processor is the PIL one; attention is
sdpa. A first short request warms up; the times are of the second. Ids are tokenizer.json's.

Run: python tools/golden/torch_baseline.py --model DIR --image FILE --prompt TEXT [--dtype f32 bf16] [--threads 2] [--max-tokens 16]
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time


def measure(args) -> dict:
    """One data type, in this process."""
    import torch
    import transformers
    from idefics2_files import CHAT_TEMPLATE
    from transformers import AutoModelForImageTextToText, Idefics2Processor, PreTrainedTokenizerFast
    from transformers.image_utils import load_image
    from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype[0]]

    began = time.perf_counter()
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=dtype).eval()
    load = time.perf_counter() - began
    names = {k: v for k, v in zip(("bos_token", "eos_token", "pad_token", "unk_token"), ("<s>", "</s>", "<unk>", "<unk>"))}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(args.model / "tokenizer.json"), **names)
    latents = json.loads((args.model / "processor_config.json").read_text())["image_seq_len"]
    processor = Idefics2Processor(Idefics2ImageProcessorPil.from_pretrained(args.model), tokenizer, image_seq_len=latents, chat_template=CHAT_TEMPLATE)
    turn = {"role": "user", "content": [{"type": "image"}] * bool(args.image) + [{"type": "text", "text": args.prompt}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True)

    def request(new_tokens: int) -> tuple[float, float, float, int]:
        t0 = time.perf_counter()
        images = [load_image(str(args.image))] if args.image else None
        inputs = processor(text=[text], images=[images] if images else None, return_tensors="pt")
        if images:
            inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        t1 = time.perf_counter()
        stamps = []
        out = model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens, streamer=Stamps(stamps))
        prompt = inputs["input_ids"].shape[1]
        assert out.shape[1] == prompt + new_tokens
        return t1 - t0, stamps[1] - t1, stamps[-1] - stamps[1], prompt

    if args.warm_up:
        request(2)
    image, first, decode, prompt = request(args.max_tokens)
    return {
        "dtype": args.dtype[0],
        "threads": args.threads,
        "load_s": round(load, 3),
        "preprocess_s": round(image, 3),
        "image_prefill_s": round(first, 3),
        "decode_tokens_per_s": round((args.max_tokens - 1) / decode, 3) if args.max_tokens > 1 else None,
        "prompt_tokens": prompt,
        "max_tokens": args.max_tokens,
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


class Stamps:
    """A streamer that notes when the prompt and each token came."""

    def __init__(self, stamps: list[float]):
        self.stamps = stamps

    def put(self, _ids):
        self.stamps.append(time.perf_counter())

    def end(self):
        pass


def cpu() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def main(args) -> None:
    if len(args.dtype) == 1:
        print(json.dumps(measure(args)))
        return
    runs = []
    for dtype in args.dtype:
        command = [sys.executable, __file__, "--model", str(args.model), "--prompt", args.prompt, "--dtype", dtype, "--threads", str(args.threads), "--max-tokens", str(args.max_tokens)]
        command += ["--image", str(args.image)] if args.image else []
        command += [] if args.warm_up else ["--no-warm-up"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout.strip().splitlines()[-1]))
    print(json.dumps({"model": args.model.name, "image": args.image.name if args.image else None, "cpu": cpu(), "date": time.strftime("%Y-%m-%d"), "runs": runs}))


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", type=pathlib.Path, required=True)
    ap.add_argument("--image", type=pathlib.Path)
    ap.add_argument("--prompt", default="What is in this picture?")
    ap.add_argument("--dtype", nargs="+", choices=["f32", "bf16"], default=["f32", "bf16"])
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--max-tokens", type=int, default=16)
    ap.add_argument("--no-warm-up", dest="warm_up", action="store_false")
    main(ap.parse_args())
