import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver

import polyak
from polyak.trainers.ignite import WeightAverage

model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)


def step(engine, batch):
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()


def look(engine, batch):
    with torch.no_grad():
        return model(batch)  # the average


trainer, evaluator = Engine(step), Engine(look)
average = WeightAverage(model, optimizer, polyak.Warmup(0.999))
average.attach(trainer, evaluator)

batches = [torch.randn(4, 8) for _ in range(8)]
trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(batches[:1]))
everything = {"trainer": trainer, "model": model, "optimizer": optimizer, "ema": average.ema}
save = Checkpoint(everything, DiskSaver("runs", create_dir=True))
evaluator.add_event_handler(Events.COMPLETED, save)
trainer.run(batches, max_epochs=2)
