import torch
from accelerate import Accelerator

import polyak
from polyak.trainers.accelerate import average

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = accelerator.prepare(model, optimizer)
ema = average(accelerator, model, optimizer, polyak.Warmup(0.999))

for _ in range(8):
    with accelerator.accumulate(model):
        accelerator.backward(model(torch.randn(4, 8)).square().mean())
        optimizer.step()
        optimizer.zero_grad()
assert ema.step == 4

accelerator.save_state("runs")  # the average too; load_state continues bit for bit
with ema.average_parameters():
    model.eval()
    model(torch.randn(4, 8))
