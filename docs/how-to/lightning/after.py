import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import polyak
from polyak.trainers.lightning import WeightAveraging, load


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_loss", nn.functional.cross_entropy(self.layers(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


images, labels = map(torch.tensor, load_digits(return_X_y=True))
data = TensorDataset(images.float() / 16, labels)
train = DataLoader(data, batch_size=64, sampler=range(1500))
held_out = DataLoader(data, batch_size=297, sampler=range(1500, 1797))
best = ModelCheckpoint("runs", filename="best", monitor="val_loss")
average = WeightAveraging(polyak.Warmup(0.999))
trainer = Trainer(callbacks=[best, average], max_epochs=3, accelerator="cpu", logger=False)
model = Classifier()
trainer.fit(model, train, held_out)

ema = load("runs/best.ckpt", Classifier())  # raw weights in the module, the average in the EMA
ema.save("average.safetensors")
