"""Several seeds of the model "features" of bench_seeds.py in PyTorch: what they cost elsewhere.

python benchmarks/torch_seeds.py --form=loop|at_once --start=FILE.npz [--device=cuda] [--threads=2]

`bench_seeds.py` writes the file and calls both forms, each in a process of its own; they need
PyTorch and NumPy, and nothing of the library. A file holds `settings` (optimiser, number of steps),
`params/<path>` [seeds, ...], `inputs/<modality>` [seeds, rows, features] and `target`
[seeds, rows]. A line {"do": "train", "calls": 3} on the standard input is answered by one with the
seconds that so many steps of all seeds take and the losses [seeds] of the last; "facts" asks for
versions.

Equal to the library's step: MLP encoders (no bias, layer norm, GELU by tanh, projection), sum of
the modalities, linear head, losses of the sum and of each modality alone, gradient norm and
clipping, AdamW with its warm-up and cosine, and no decay of biases and norms.

"loop" takes a step of one seed after the other, each with its own fused AdamW; "at_once" has all of
a parameter in one tensor, `torch.func.vmap` over `torch.func.grad`, and one fused AdamW.
"""

import argparse
import json
import platform
import sys
import time

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch_common import learning_rate, wait

Params = dict[str, Tensor]


def loss_of(params: Params, inputs: dict[str, Tensor], target: Tensor) -> Tensor:
    """Mean loss of one seed's rows: of the fused prediction, and of each modality alone."""
    features = []
    for name, x in inputs.items():
        mine = {
            path.removeprefix(f"encoders_{name}/"): values
            for path, values in params.items()
            if path.startswith(f"encoders_{name}/")
        }
        x = x @ mine["Dense_0/kernel"]
        scale, bias = mine["LayerNorm_0/scale"], mine["LayerNorm_0/bias"]
        x = functional.layer_norm(x, x.shape[-1:], scale, bias, eps=1e-6)
        x = functional.gelu(x, approximate="tanh")
        features.append(x @ mine["Dense_1/kernel"] + mine["Dense_1/bias"])
    each = torch.stack([sum(features), *features])
    logits = each @ params["head/Dense_0/kernel"] + params["head/Dense_0/bias"]
    rows = target.expand(len(each), len(target))
    return functional.cross_entropy(logits.transpose(1, 2), rows, reduction="none").mean(1).sum()


class Program:
    """The training step of all seeds, with their state."""

    def __init__(self, arrays: dict[str, np.ndarray], options: argparse.Namespace) -> None:
        self.settings = json.loads(str(arrays["settings"]))
        self.device = torch.device(options.device)
        self.inputs = self.under(arrays, "inputs/")
        self.target = self.place(arrays["target"]).long()
        self.at_once = options.form == "at_once"
        self.count = 0
        stacked = self.under(arrays, "params/")
        self.params = (
            [stacked]
            if self.at_once
            else [
                {name: values[seed].clone() for name, values in stacked.items()}
                for seed in range(len(self.target))
            ]
        )
        self.optimizers = [self.optimizer(params) for params in self.params]
        self.gradients = torch.func.vmap(torch.func.grad_and_value(loss_of))

    def place(self, values: np.ndarray) -> Tensor:
        """An array on the device."""
        return torch.from_numpy(values).to(self.device)

    def under(self, arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
        """The arrays whose names begin so, by the rest of their names."""
        found = {name: values for name, values in arrays.items() if name.startswith(prefix)}
        return {name.removeprefix(prefix): self.place(values) for name, values in found.items()}

    def optimizer(self, params: Params) -> torch.optim.Optimizer:
        """AdamW that decays matrices alone."""
        axes = 2 if self.at_once else 1
        decay = self.settings["optimizer"]["weight_decay"]
        groups = [
            {"params": [p for p in params.values() if p.dim() > axes], "weight_decay": decay},
            {"params": [p for p in params.values() if p.dim() <= axes], "weight_decay": 0.0},
        ]
        for values in params.values():
            values.requires_grad_(not self.at_once)
        return torch.optim.AdamW(groups, lr=0.0, fused=True)

    def step(self) -> Tensor:
        """One step of every seed; losses [seeds]."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.settings, self.count)
        self.count += 1
        limit = self.settings["optimizer"]["clip_norm"]
        if self.at_once:
            return self.step_at_once(limit)
        losses = []
        for seed, (params, optimizer) in enumerate(zip(self.params, self.optimizers, strict=True)):
            optimizer.zero_grad()
            inputs = {name: x[seed] for name, x in self.inputs.items()}
            loss = loss_of(params, inputs, self.target[seed])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params.values(), limit)
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    def step_at_once(self, limit: float) -> Tensor:
        """One step of every seed in one program; gradients are clipped seed by seed."""
        params, optimizer = self.params[0], self.optimizers[0]
        gradients, losses = self.gradients(params, self.inputs, self.target)
        squares = [values.flatten(1).square().sum(1) for values in gradients.values()]
        norm = torch.stack(squares).sum(0).sqrt()
        # As clip_grad_norm_.
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        for name, values in params.items():
            values.grad = gradients[name] * factor.view(-1, *(1,) * (values.dim() - 1))
        optimizer.step()
        return losses

    def timed(self, calls: int) -> tuple[float, list[float]]:
        """Seconds of so many steps of all seeds, and the last losses."""
        wait(self.device)
        start = time.perf_counter()
        for _ in range(calls):
            losses = self.step()
        wait(self.device)
        return time.perf_counter() - start, losses.tolist()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--form", required=True, choices=("loop", "at_once"))
    parser.add_argument("--start", required=True)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    program = Program(dict(np.load(options.start)), options)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "facts":
            answer = {"python": platform.python_version(), "torch": torch.__version__}
        else:
            seconds, losses = program.timed(request["calls"])
            answer = {"seconds": seconds, "losses": losses}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
