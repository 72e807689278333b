import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

import polyak
from polyak.trainers.lightning import WeightAverage, load


class Regression(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)

    def training_step(self, batch, index):
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, index):
        self.log("val_loss", self.layer(batch[0]).square().mean())  # of the average

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


data = DataLoader(TensorDataset(torch.randn(64, 8)), batch_size=8)
average = WeightAverage(polyak.Warmup(0.999))
best = ModelCheckpoint("runs", filename="best", monitor="val_loss")
trainer = Trainer(callbacks=[average, best], max_epochs=2, accelerator="cpu", logger=False)
trainer.fit(Regression(), data, data)
average.ema.save("average.safetensors")

ema = load("runs/best.ckpt", Regression())  # raw weights in the module, the average in the EMA
ema.save("best.safetensors")
