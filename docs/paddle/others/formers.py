import numpy as np
import paddle
from paddle import nn
from paddleformers.trainer import Trainer, TrainerCallback, TrainingArguments

from polyak.paddle import EMA


class Average(TrainerCallback):
    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.ema = EMA(model)
        self.ema.attach(optimizer)

    def on_save(self, args, state, control, **kwargs):
        folder = f"{args.output_dir}/checkpoint-{state.global_step}"
        self.ema.save(f"{folder}/polyak.safetensors", resumable=True)


class Network(nn.Layer):
    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x, labels):
        scores = self.head(x)
        return nn.functional.cross_entropy(scores, labels), scores


class Points(paddle.io.Dataset):
    def __init__(self, count, seed):
        self.x = np.random.default_rng(seed).normal(size=(count, 16)).astype("float32")
        self.labels = (self.x[:, :4].sum(1) > 0).astype("int64")

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "labels": self.labels[index]}


arguments = TrainingArguments("runs", max_steps=60, save_steps=30, report_to=[], amp_master_grad=False)
average = Average()
trainer = Trainer(
    Network(), args=arguments, train_dataset=Points(640, 0), eval_dataset=Points(64, 1), callbacks=[average]
)
trainer.train()
raw = trainer.evaluate()
with average.ema.average_parameters():
    averaged = trainer.evaluate()
average.ema.save("average.safetensors")
