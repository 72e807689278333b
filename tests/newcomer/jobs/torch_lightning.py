"""Lightning with one more callback: raw and average side by side, a best file of each, resumed."""

import subprocess

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from polyak.trainers.lightning import WeightAveraging, load


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_loss", nn.functional.cross_entropy(self.layers(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


seed_everything(0)
images, labels = map(torch.tensor, load_digits(return_X_y=True))
data = TensorDataset(images.float() / 16, labels)
train = DataLoader(data, batch_size=32, sampler=torch.utils.data.SubsetRandomSampler(range(1400)))
held_out = DataLoader(data, batch_size=397, sampler=range(1400, 1797))


def trainer(epochs):
    best = ModelCheckpoint("runs", filename="best", monitor="val_loss", save_last=True)
    best_raw = ModelCheckpoint("runs", filename="best-raw", monitor="raw/val_loss")
    average = WeightAveraging(evaluate="both")
    callbacks = [best, best_raw, average]
    return (
        Trainer(max_epochs=epochs, callbacks=callbacks, accelerator="cpu", logger=False),
        average,
        best,
        best_raw,
    )


first, *_ = trainer(3)
first.fit(Classifier(), train, held_out)
second, average, best, best_raw = trainer(8)
module = Classifier()
second.fit(module, train, held_out, ckpt_path="runs/last.ckpt")
assert average.ema.step == second.global_step == 8 * 44, "the average went on where it stopped"

[found] = second.validate(module, held_out)
print(found)
assert found["val_loss"] < found["raw/val_loss"], "at a constant rate"
print(best.best_model_path, best.best_model_score, best_raw.best_model_path, best_raw.best_model_score)
assert best.best_model_score < best_raw.best_model_score

module = Classifier()
load(best.best_model_path, module).save("average.safetensors")
module.load_state_dict(load_file("average.safetensors"))
module.eval()
with torch.no_grad():
    loss = nn.functional.cross_entropy(module.layers(images[1400:].float() / 16), labels[1400:])
assert abs(float(loss - best.best_model_score)) < 1e-5, "what was evaluated is what is deployed"
subprocess.run("polyak inspect runs average.safetensors", shell=True, check=True)
