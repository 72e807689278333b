import torch
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver
from ignite.metrics import Accuracy
from sklearn.datasets import load_digits
from torch import nn

import polyak
from polyak.trainers.ignite import WeightAveraging

images, labels = map(torch.tensor, load_digits(return_X_y=True))
batches = list(zip((images.float() / 16).split(50), labels.split(50), strict=True))
model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
evaluator = create_supervised_evaluator(model, {"accuracy": Accuracy()})
average = WeightAveraging(polyak.Warmup(0.999), model=model, optimizer=optimizer)
average.attach(trainer, evaluator)
everything = {"trainer": trainer, "model": model, "optimizer": optimizer, "ema": average.ema}
trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(batches[30:]))
save = Checkpoint(everything, DiskSaver("runs", create_dir=True))
evaluator.add_event_handler(Events.COMPLETED, save)
trainer.run(batches[:30], max_epochs=3)
