"""The training step of bench_step.py in plain PyTorch: what it costs elsewhere.

python benchmarks/torch_step.py --check=FILE.npz [--device=cuda] [--layout=channels_last]
    [--compile]
python benchmarks/torch_step.py --serve=FILE.npz [--device=cuda] [--layout=channels_last]
    [--compile] [--dtype=bfloat16] [--tf32] [--threads=2]

`bench_step.py` writes the files and calls both forms, each in a process of its own. They need
PyTorch, NumPy and SciPy (of torch_grid.py, whose model this trains), and nothing of the library. A
file holds `settings` (shapes, recipe, optimiser), a batch, and the variables to start from. With
`--serve` a line {"do": "train", "calls": 3} on the standard input is answered by one with the
seconds that so many steps take on the batch, already on the device; "forward" is the prediction in
evaluation mode, "facts" asks for versions and memory. Between requests the process sleeps.

Equal to the library's step: white noise and Gaussian noise with their probability, severities,
strengths, rounding and levels; modality dropout with its survivor; preprocessing; encoders;
predicted noise and its loss; dependence, from the head on each modality alone and on all, of the
clean examples, with its running mean; weights, sum, head; losses of the fused prediction and of
each modality alone; the gradient's norm and clipping; AdamW with its warm-up and cosine, and no
decay of biases and norms. bfloat16 covers the encoders, the rest is in float32, in both.

`--check` compares three steps in float32 with those of the library from the same variables on the
same batch, with missing modalities. The first step is clean, so that dependence is measured, and
its learning rate is 0; the others have a stated noise level at an amplitude that changes nothing.
Losses and gradient norms agree to 1e-4 relative, the clipped gradients of the first two steps to
1e-3 of their norm together and 1e-2 each (rounding turns a ReLU now and then; behind the second
step parameters differ), dependence to 1e-6, which is 1e-4 of what one batch measured, each
parameter after the last step to 1e-2 of the way that it went (Adam turns gradients near 0 into
whole steps). Of the law of random numbers it compares levels, the size of the noise, to 15 %, and
how often a modality is dropped, to 0.03.

Not equal: random numbers are PyTorch's. The library also returns metrics (accuracies, mean weights
and signals), this returns losses. Autocast computes the norms of bfloat16 encoders in float32 on a
GPU; the library computes their statistics so, and keeps maps in bfloat16.

PyTorch's usual settings: noise and preprocessing of the whole batch at once, fused AdamW, cuDNN's
own choice of algorithms by trial, inference mode, `--compile` for `torch.compile` of everything
before the backward pass and, through it, of that; maps as channels first or channels last.
"""

import argparse
import contextlib
import json
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_common import learning_rate, wait
from torch_grid import MODALITIES, LogMel, Model, Standardise, parameters_of

TOLERANCES = {
    "loss": 1e-4,
    "gradient": 1e-3,
    "gradient of a parameter": 1e-2,
    "dependence": 1e-6,
    "parameter": 1e-2,
    "noise": 0.15,
    "dropout": 0.03,
}

# Of the running dependence.
DECAY, MARGIN = 0.99, 0.2


class Noise(nn.Module):
    """Normal noise by severity, of a stated deviation or relative to each row's own RMS."""

    def __init__(
        self, kind: str, strengths: list[float], reference: float, deviation: float = 1.0
    ) -> None:
        super().__init__()
        self.relative = {"WhiteNoise": True, "GaussianNoise": False}[kind]
        self.reference, self.deviation = reference, deviation
        self.register_buffer("strengths", torch.tensor(strengths), persistent=False)

    def strength(self, severity: Tensor) -> Tensor:
        """Linear between the table's strengths [B]."""
        place = severity * (len(self.strengths) - 1)
        low = place.long().clamp(max=len(self.strengths) - 2)
        return torch.lerp(self.strengths[low], self.strengths[low + 1], place - low)

    def forward(self, x: Tensor, severity: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy rows of x [B, ...] in its dtype, and their noise levels [B]."""
        strength = self.strength(severity)
        values, rows = x.float(), (-1, *(1,) * (x.dim() - 1))
        size = strength * (active_rms(values) if self.relative else self.deviation)
        noisy = values + size.view(rows) * torch.randn_like(values)
        if not x.is_floating_point():
            limits = torch.iinfo(x.dtype)
            noisy = noisy.round().clamp(limits.min, limits.max).to(x.dtype)
        return noisy, strength / self.reference


def active_rms(x: Tensor) -> Tensor:
    """Root mean square of each row over what is not 0."""
    rows = x.flatten(1)
    return (rows.square().sum(1) / (rows != 0).sum(1).clamp(min=1)).sqrt()


def drop_modalities(present: Tensor, rate: float) -> Tensor:
    """Each present modality dropped with a probability; one is kept where that drops all."""
    kept = present & (torch.rand(present.shape, device=present.device) >= rate)
    scores = torch.rand(present.shape, device=present.device).masked_fill(~present, -1.0)
    survivor = functional.one_hot(scores.argmax(1), present.shape[1]).bool()
    return torch.where(kept.any(1, keepdim=True), kept, present & survivor)


class ChannelsFirst(nn.Module):
    """Maps [B, H, W, C] as they are, as [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


def preprocessing(given: dict[str, Any] | None) -> nn.Module:
    """What stands before an encoder."""
    if given is None:
        return ChannelsFirst()
    if given["kind"] == "LogMel":
        return LogMel()
    return Standardise(given["mean"], given["deviation"])


class StepModel(Model):
    """The model with its noise and its losses."""

    def __init__(self, settings: dict[str, Any], *, dtype: str, layout: str) -> None:
        super().__init__(
            {name: preprocessing(settings["prepare"][name]) for name in MODALITIES},
            channels=tuple(settings["channels"][name] for name in MODALITIES),
            width=settings["width"],
            classes=settings["classes"],
        )
        self.recipe, self.dtype, self.layout = settings["recipe"], dtype, layout
        self.noise = nn.ModuleDict({n: Noise(**x) for n, x in settings["noise"].items()})

    def encode(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tokens in float32, computed in the dtype and memory format that were asked for."""
        low, device = self.dtype == "bfloat16", next(iter(maps.values())).device.type
        laid = {name: laid_out(x, self.layout) for name, x in maps.items()}
        with torch.autocast(device, torch.bfloat16) if low else contextlib.nullcontext():
            tokens = super().encode(laid)
        return {name: values.float() for name, values in tokens.items()}

    def severities(self, rows: int, device: torch.device) -> Tensor:
        """Severities of noisy rows: of the recipe's grid, or of all in (0, largest]."""
        if grid := self.recipe["severities"]:
            return torch.tensor(grid, device=device)[torch.randint(len(grid), (rows,))]
        return self.recipe["max_severity"] * (1 - torch.rand(rows, device=device))

    def corrupted(
        self, inputs: dict[str, Tensor], present: Tensor, noisy: bool
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Inputs with noise, its levels [B, M], and what is left present [B, M]."""
        levels = torch.zeros(present.shape, device=present.device)
        recipe, inputs = self.recipe, dict(inputs)
        for m, name in enumerate(MODALITIES if noisy else ()):
            coins = torch.rand(len(present), device=present.device) < recipe["noise_rate"]
            severity = self.severities(len(present), present.device) * coins
            inputs[name], levels[:, m] = self.noise[name](inputs[name], severity)
        if recipe["modality_dropout"]:
            present = drop_modalities(present, recipe["modality_dropout"])
        return inputs, levels, present

    def losses(
        self, inputs: dict[str, Tensor], present: Tensor, target: Tensor, noisy: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Means of the whole loss, of the fused prediction's and of the noise estimator's."""
        inputs, levels, present = self.corrupted(inputs, present, noisy)
        tokens = self.encode(self.prepared(inputs, present))
        pooled = [values.mean(1) for values in tokens.values()]
        here = present.float()
        alone = self.head(torch.stack(pooled, 1) * here[..., None])
        with torch.no_grad():
            everything = self.fused(pooled, here / here.sum(1, keepdim=True), present)
            share = next_share(self.scheduler.share, everything, alone, present, levels)
            self.scheduler.share.copy_(share)
        log_scales = self.scheduler.log_scales(tokens)
        weights = self.scheduler.weights(log_scales.detach(), present)
        prediction = self.fused(pooled, weights, present)
        task = functional.cross_entropy(prediction, target)
        each = functional.cross_entropy(
            alone.transpose(1, 2), target[:, None].expand(present.shape), reduction="none"
        )
        errors = (log_scales - 0.5 * torch.log1p(levels.square())).square()
        noise = (here * errors).sum(1).mean()
        return task + (here * each).sum(1).mean() + noise, task.detach(), noise.detach()


def next_share(
    share: Tensor, everything: Tensor, alone: Tensor, present: Tensor, levels: Tensor
) -> Tensor:
    """The running dependence [M] after a batch, of two modalities.

    Args:
        share: before it.
        everything: logits [B, K] of both modalities with equal weights.
        alone: logits [B, M, K] of each alone.
        present: Bool[B, M].
        levels: of the noise, [B, M].
    """
    rows = (present & (levels == 0)).all(1)
    everything, alone = (x - x.mean(-1, keepdim=True) for x in (everything, alone))
    # Without the first modality, the second is alone.
    change = (everything[:, None] - alone.flip(1)).abs().sum(-1)
    mean = (change * rows[:, None]).sum(0) / rows.sum().clamp(min=1)
    measured = (2 * mean / mean.sum().clamp(min=1e-12)).clamp(MARGIN, 2 - MARGIN)
    return torch.where(rows.any() & (mean.sum() > 0), torch.lerp(measured, share, DECAY), share)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Maps [B, C, H, W] in a memory format; one channel fits both, and PyTorch leaves it as is."""
    channels, height, width = x.shape[1:]
    last = layout == "channels_last"
    strides = (1, channels * width, channels) if last else (height * width, width, 1)
    x = x.contiguous(memory_format=getattr(torch, layout))
    return x.as_strided(x.shape, (channels * height * width, *strides))


class Program:
    """The training step and the forward pass, with their state."""

    def __init__(self, arrays: dict[str, np.ndarray], options: argparse.Namespace) -> None:
        self.settings = settings = json.loads(str(arrays["settings"]))
        self.device = torch.device(options.device)
        model = StepModel(settings, dtype=options.dtype, layout=options.layout)
        model.load_state_dict(parameters_of(arrays), strict=True)
        self.model = model.to(self.device, memory_format=getattr(torch, options.layout))
        self.inputs = {name: self.place(arrays[f"inputs/{name}"]) for name in MODALITIES}
        self.present, self.target = (self.place(arrays[name]) for name in ("present", "target"))
        self.parameters = list(model.parameters())
        groups = [
            {"params": [p for p in self.parameters if p.dim() > 1]},
            {"params": [p for p in self.parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        decay = settings["optimizer"]["weight_decay"]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=decay, fused=True)
        self.count, self.finite = 0, True
        wrap = torch.compile if options.compile else (lambda function: function)
        self.losses, self.predict = wrap(model.losses), wrap(model.forward)

    def place(self, values: np.ndarray) -> Tensor:
        """An array on the device; class numbers are 64-bit in PyTorch."""
        tensor = torch.from_numpy(values).to(self.device)
        return tensor.long() if values.dtype == np.int32 else tensor

    def train(self) -> dict[str, Tensor]:
        """One step; gradients stay until the next one."""
        start = self.settings["recipe"]["noise_start"]
        noisy = self.count / self.settings["num_steps"] >= start
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.count)
        self.optimizer.zero_grad()
        loss, task, noise = self.losses(self.inputs, self.present, self.target, noisy)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings["optimizer"]["clip_norm"])
        self.optimizer.step()
        self.count += 1
        terms = {"loss": loss.detach(), "task_loss": task, "scheduler_loss": noise}
        return terms | {"gradient_norm": norm}

    @torch.inference_mode()
    def forward(self) -> dict[str, Tensor]:
        """Logits and weights in evaluation mode."""
        logits, weights = self.predict(self.inputs, self.present)
        return {"logits": logits, "weights": weights}

    def timed(self, do: str, calls: int) -> float:
        """Seconds of so many steps, or forward passes, from a device at rest to one at rest.

        `facts` says whether every last result was finite: on CPU some convolutions of PyTorch make
        NaN of finite bfloat16 maps, which is told and not repaired.
        """
        function = {"train": self.train, "forward": self.forward}[do]
        wait(self.device)
        start = time.perf_counter()
        for _ in range(calls):
            found = function()
        wait(self.device)
        seconds = time.perf_counter() - start
        self.finite &= all(bool(values.isfinite().all()) for values in found.values())
        return seconds

    def facts(self) -> dict[str, Any]:
        """What this process runs on, and the most memory that it held, in MB."""
        found: dict[str, Any] = {
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "threads": torch.get_num_threads(),
            "memory": {"process": peak_megabytes()},
            "finite": self.finite,
        }
        if self.device.type == "cuda":
            found["memory"]["device"] = torch.cuda.max_memory_allocated() / 1e6
            found["versions"] |= {"cuda": torch.version.cuda}
            found["versions"] |= {"cudnn": str(torch.backends.cudnn.version())}
        return found


def peak_megabytes() -> float:
    """The most memory that this process held; `getrusage` would count its parent's too."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else float("nan")


def distance(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what is wanted."""
    difference = torch.linalg.vector_norm(found.cpu().double() - wanted.double())
    return float(difference / torch.linalg.vector_norm(wanted.double()))


def under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}


def check(arrays: dict[str, np.ndarray], options: argparse.Namespace) -> dict[str, float]:
    """Compare three steps, and the law of the noise, with the library's.

    Args:
        arrays: what `Program` takes; `step<n>/metrics/<name>`, `step<n>/gradients/<path>` (after
            clipping) and, after the last step, `after/<path>` of the library.
        options: of the command line.

    Returns:
        The largest differences, by the names of their tolerances.

    Raises:
        AssertionError: where something differs by more than its tolerance.
    """
    program = Program(arrays, options)
    named = dict(program.model.named_parameters())
    start = {name: x.detach().cpu().clone() for name, x in named.items()}
    found: dict[str, list[float]] = {name: [] for name in TOLERANCES}
    for step in range(3):
        terms = program.train()
        for name, wanted in under(arrays, f"step{step}/metrics/").items():
            found["loss"].append(distance(terms[name], torch.tensor(float(wanted))))
        if step < 2:
            wanted = parameters_of(under(arrays, f"step{step}/gradients/"))
            assert wanted.keys() == named.keys()
            pairs = [(named[name].grad.cpu(), values) for name, values in wanted.items()]
            found["gradient of a parameter"] += [distance(*pair) for pair in pairs]
            whole = [torch.cat([x.flatten() for x in side]) for side in zip(*pairs, strict=True)]
            found["gradient"].append(distance(*whole))
    after = parameters_of(under(arrays, "after/"))
    found["dependence"].append(distance(program.model.scheduler.share, after["scheduler.share"]))
    for name, value in named.items():
        way = value.detach().cpu() - start[name]
        found["parameter"].append(distance(way, after[name] - start[name]))
    check_law(under(arrays, "law/"), program, found)
    largest = {name: max(values) for name, values in found.items()}
    for name, value in largest.items():
        assert value <= TOLERANCES[name], (name, value)
    return largest


def check_law(
    arrays: dict[str, np.ndarray], program: Program, found: dict[str, list[float]]
) -> None:
    """Compare noise and modality dropout of the timed recipe with the library's, up to chance."""
    settings = json.loads(str(arrays["settings"]))
    for name in MODALITIES:
        noise = Noise(**settings["noise"][name]).to(program.device)
        x, severity = program.inputs[name], program.place(arrays["severity"])
        noisy, levels = noise(x, severity)
        assert distance(levels, torch.from_numpy(arrays[f"{name}/level"])) < 1e-6, name
        size = (noisy.float() - x.float()).flatten(1).square().mean(1).sqrt().cpu().numpy()
        wanted = arrays[f"{name}/size"]
        found["noise"] += list(map(float, np.abs(size - wanted) / np.maximum(wanted, 1e-6)))
    present = torch.ones((20000, len(MODALITIES)), dtype=torch.bool, device=program.device)
    kept = drop_modalities(present, settings["recipe"]["modality_dropout"])
    difference = kept.float().mean(0).cpu().numpy() - arrays["kept"]
    found["dropout"] += list(map(float, np.abs(difference)))


def serve(arrays: dict[str, np.ndarray], options: argparse.Namespace) -> None:
    """Answer requests until there are no more."""
    start = time.perf_counter()
    program = Program(arrays, options)
    arrays.clear()
    program.timed("train", 1)
    first = {"first_step_seconds": time.perf_counter() - start}
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "facts":
            answer = program.facts() | first
        else:
            answer = {"seconds": program.timed(request["do"], request["calls"])}
        print(json.dumps(answer), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check")
    parser.add_argument("--serve")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--layout", default="contiguous_format", choices=("contiguous_format", "channels_last")
    )
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    torch.backends.cudnn.allow_tf32 = options.tf32
    torch.backends.cudnn.benchmark = True
    arrays = dict(np.load(options.check or options.serve))
    if options.check:
        print(json.dumps(check(arrays, options)))
    else:
        serve(arrays, options)


if __name__ == "__main__":
    main()
