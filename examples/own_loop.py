"""Your own training loop, watched: three lines record it, one finds what does not belong."""

import sys

import numpy as np
import torch

import untaint as ut

out = sys.argv[1] if len(sys.argv) > 1 else "runs/own-loop"
generator = np.random.default_rng(0)
torch.manual_seed(0)
labels = np.arange(600) % 2
pictures = (generator.normal(90 + 70 * labels[:, None, None, None], 40, (600, 3, 8, 8))).clip(0, 255)
shown = labels.copy()
shown[100:130] = 1 - labels[100:130]  # thirty wrong labels; the pictures from 300 on were looked at
x, y = torch.tensor(pictures / 255, dtype=torch.float32), torch.tensor(shown)

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
recorder = ut.Recorder(shown, out)
for _ in range(5):
    for rows in torch.randperm(len(x)).split(50):
        loss = torch.nn.functional.cross_entropy(logits := model(x[rows]), y[rows])
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        recorder.record(rows, logits)
    recorder.end_epoch()
print(ut.score(out, probes=np.arange(300, 550)))
